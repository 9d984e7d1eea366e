"""What docker-compose.yml must keep: a rule each, pure, over the parsed file. ``problems`` says what is broken."""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, combinations
from typing import Any

from msgspec import Struct, structs

from deploy.configuration_reference import GROUPS, PROCESSES
from shared.config import PREFIX, struct_in

Compose = Mapping[str, Any]

OURS = "tidemark/"
PROCESS_OF = {"bootstrap": "tidemark", "audit": "tidemark"}
"""Services that run the command line; every other one of ours is named as what it runs."""
USUAL_PORTS = frozenset({3000, 4566, 5432, 8000, 8080, 8081, 9090, 9092})
"""Taken on half of all machines."""
VARIABLE = re.compile(r"(?<!\$)\$(?:\{([^}]*)\}|[A-Za-z_]\w*)")
PORT = re.compile(r"^127\.0\.0\.1:\$\{[A-Z_]+_PORT:-(\d+)\}:\d+$")
TAGGED = re.compile(r"^[^\s:@]+(/[^\s:@]+)*:(?P<tag>[A-Za-z0-9][\w.-]*)(@sha256:[0-9a-f]{64})?$")
PARAMETRISED = re.compile(r"\$\{[A-Z_]+:-([^}]*)\}")
_NAMES = (
    *("bitnami" + r"(?:legacy)?/[a-z]", "localstack/" + "localstack"),
    *("minio/" + "m(?:inio|c)", "wurst" + "meister/"),
)
DEAD = re.compile(rf"(?<![\w.])(?<!\w-)(?:{'|'.join(_NAMES)})")
_MEMORY = re.compile(r"^(\d+)M$")


def dead_images(text: str) -> list[str]:
    """Images that are withdrawn, gated behind a token, or abandoned (in parts here, for this file is searched too)."""
    return [found.group() for found in DEAD.finditer(text)]


def problems(compose: Compose) -> list[str]:
    return list(chain.from_iterable(rule(compose) for rule in RULES))


def default_of(text: str) -> str:
    return PARAMETRISED.sub(r"\1", text)


def one_shots(compose: Compose) -> set[str]:
    return {name for name, service in compose["services"].items() if service.get("restart") == "no"}


def started_by_up(compose: Compose) -> dict[str, Any]:
    """Without those that are there for `docker compose run` alone."""
    return {
        name: service
        for name, service in compose["services"].items()
        if service.get("deploy", {}).get("replicas", 1) != 0
    }


def memory_mb(compose: Compose, *profiles: str) -> int:
    """Of what `up` starts with these profiles, one-shots included."""
    chosen = enabled(started_by_up(compose), profiles)
    return sum(int(service["deploy"]["resources"]["limits"]["memory"][:-1]) for service in chosen.values())


def enabled(services: Mapping[str, Any], profiles: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: service
        for name, service in services.items()
        if not service.get("profiles") or set(service["profiles"]) & set(profiles)
    }


def profile_combinations(compose: Compose) -> list[tuple[str, ...]]:
    names = sorted({name for service in compose["services"].values() for name in service.get("profiles", [])})
    return [chosen for size in range(len(names) + 1) for chosen in combinations(names, size)]


def images_are_pinned(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        image = service.get("image", "")
        pinned = TAGGED.match(default_of(image))
        if pinned is None or pinned["tag"] == "latest":
            yield f"{name}: image {image!r} names no version"
        if not image.startswith((OURS, "${")):
            yield f"{name}: image {image!r} can't be overridden; write ${{{name.upper()}_IMAGE:-…}}"
        if dead := dead_images(default_of(image)):
            yield f"{name}: image {dead[0]!r} can no longer be had, or not without a token"


def one_shots_are_adopted(compose: Compose) -> Iterator[str]:
    """Else `up --wait` ends with 1 as soon as one of them has ended well."""
    services, ending = started_by_up(compose), one_shots(compose)
    for profiles in profile_combinations(compose):
        chosen = enabled(services, profiles)
        adopted = {
            needed
            for name, service in chosen.items()
            if name not in ending
            for needed, how in service.get("depends_on", {}).items()
            if how["condition"] == "service_completed_successfully"
        }
        for orphan in sorted(set(chosen) & ending - adopted):
            yield f"{orphan}: nobody waits for its end with profiles {', '.join(profiles) or '(none)'}"


def variables_have_defaults(compose: Compose) -> Iterator[str]:
    for where, text in _texts(compose):
        for found in VARIABLE.finditer(text):
            if not re.match(r"[A-Z_]+:-.", found[1] or ""):
                yield f"{where}: {found.group()} has no default"


def ports_stay_on_this_machine(compose: Compose) -> Iterator[str]:
    taken: dict[int, str] = {}
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            match = PORT.match(str(port))
            if match is None:
                yield f"{name}: port {port!r} is not 127.0.0.1:${{NAME_PORT:-number}}:number"
                continue
            number = int(match[1])
            if number in USUAL_PORTS:
                yield f"{name}: port {number} is taken on many machines"
            if number in taken:
                yield f"{name}: port {number} is {taken[number]}'s"
            taken[number] = name


def what_runs_is_checked(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        if name in one_shots(compose):
            continue
        health = service.get("healthcheck") or {}
        if not health.get("test") or health.get("disable"):
            yield f"{name}: no health check"
            continue
        if _seconds(health.get("interval", "0s")) < 10:
            yield f"{name}: its health check runs every {health.get('interval')}; 10 s or more cost less CPU"
        if not health.get("start_period") or not health.get("start_interval"):
            yield f"{name}: its health check has no start_period and start_interval"
        if service.get("restart") != "unless-stopped":
            yield f"{name}: restart is {service.get('restart')!r}, not 'unless-stopped'"


def memory_is_limited(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        limit = service.get("deploy", {}).get("resources", {}).get("limits", {}).get("memory")
        if not _MEMORY.match(str(limit)):
            yield f"{name}: no memory limit in M ({limit})"


def logs_are_rotated(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        if "max-size" not in service.get("logging", {}).get("options", {}):
            yield f"{name}: its log grows without end"


def nothing_blocks_a_second_copy(compose: Compose) -> Iterator[str]:
    if "version" in compose:
        yield "version: is ignored, and warned about"
    if compose.get("name") != "tidemark":
        yield "name: is not tidemark"
    yield from (f"{name}: container_name" for name, one in compose["services"].items() if "container_name" in one)


def ours_are_hardened(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        if not service.get("image", "").startswith(OURS):
            continue
        wanted = {
            "read_only": service.get("read_only") is True,
            "cap_drop: [ALL]": service.get("cap_drop") == ["ALL"],
            "no-new-privileges": "no-new-privileges:true" in service.get("security_opt", []),
            "a numeric user": bool(re.match(r"^[1-9]\d+:[1-9]\d+$", str(service.get("user")))),
            "tmpfs /tmp": any(str(one).startswith("/tmp:") for one in service.get("tmpfs", [])),
            "not privileged": not (service.get("privileged") or service.get("cap_add") or service.get("pid")),
        }
        yield from (f"{name}: lacks {what}" for what, there in wanted.items() if not there)


def settings_exist(compose: Compose) -> Iterator[str]:
    """A misspelt variable is read by nobody, and nobody says so."""
    for name, service in compose["services"].items():
        process = PROCESS_OF.get(name, name)
        for variable in service.get("environment", {}):
            if variable.startswith(PREFIX) and variable not in KNOWN.get(process, frozenset()):
                yield f"{name}: {variable} is no setting of {process}"


def secrets_are_files(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if variable.startswith(PREFIX) and re.search(r"://[^/@:]+:[^/@]+@", str(value)):
                yield f"{name}: {variable} holds a password; use …_PASSWORD_FILE and a secret"
        for secret in service.get("secrets", []):
            if secret not in compose.get("secrets", {}):
                yield f"{name}: secret {secret} is not declared"


def volumes_are_declared(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source, target = str(volume).split(":")[:2]
            if not source.startswith((".", "/")) and source not in compose.get("volumes", {}):
                yield f"{name}: volume {source} is not declared"
            if source.startswith(".") and not str(volume).endswith(":ro"):
                yield f"{name}: {source} is mounted writable"
            if target == "/var/lib/postgresql/data":
                yield f"{name}: from 18 on Postgres refuses to start with a volume at {target}"


RULES: tuple[Callable[[Compose], Iterator[str]], ...] = (
    images_are_pinned,
    one_shots_are_adopted,
    variables_have_defaults,
    ports_stay_on_this_machine,
    what_runs_is_checked,
    memory_is_limited,
    logs_are_rotated,
    nothing_blocks_a_second_copy,
    ours_are_hardened,
    settings_exist,
    secrets_are_files,
    volumes_are_declared,
)


def variables(form: type[Struct], prefix: str) -> Iterator[str]:
    """All that ``load_config`` reads into ``form``."""
    for field in structs.fields(form):
        name, nested = prefix + field.name.upper(), struct_in(field.type)
        yield from [name] if nested is None else variables(nested, name + "_")


def _known() -> dict[str, frozenset[str]]:
    groups = {group.field: group.form for group in GROUPS}
    return {
        process.name: frozenset(
            chain(
                chain.from_iterable(variables(form, PREFIX) for form in process.forms),
                chain.from_iterable(variables(groups[more], f"{PREFIX}{more.upper()}_") for more in process.more),
                (f"{PREFIX}ENTITIES_DIR", f"{PREFIX}NAMESPACE") if process.more else (),
            )
        )
        for process in PROCESSES
    }


KNOWN = _known()


def _texts(value: object, where: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not where and str(name).startswith("x-"):
                continue  # seen where it is used
            yield from _texts(inner, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, where)
    elif isinstance(value, str):
        yield where, value


def _seconds(text: str) -> float:
    match = re.match(r"^(\d+)s$", text)
    return float(match[1]) if match else 0.0
