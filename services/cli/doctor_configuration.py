"""The doctor's looks at what needs no server: entity files, settings, secrets, disks."""

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from services.cli.doctor_findings import Report, parted
from services.cli.doctor_verdicts import judge_disk, size_in_words, unknown_variables
from services.cli.edges import ArchiveSettings, CacheSettings, Edges, KafkaTopics, RawSettings
from services.cli.validate import compiled
from shared.config import PREFIX, ConfigError, HttpSettings, LogSettings, load_config, struct_in
from shared.entities import Auth, Entities
from shared.owners import Secret

SERVICES = {
    "poller-producer": ("services.poller_producer.config", "PollerConfig"),
    "s3-sink": ("services.s3_sink.config", "SinkConfig"),
    "dynamo-retrier": ("services.dynamo_retrier.config", "RetrierConfig"),
    "stale-notifier": ("services.stale_notifier.config", "NotifierConfig"),
    "delta-loader": ("services.delta_loader.config", "LoaderConfig"),
}
"""Read by name: no command depends on a service, and an image need not hold the libraries of all."""
FOREIGN = frozenset({"TIDEMARK_VERSION", "TIDEMARK_STACK", "TIDEMARK_RUN_HOME", "TIDEMARK_CACHE_HOME"})
"""Of images, and of the local stack."""
_UNSET = ": not set; expected "


class _Command(Struct, frozen=True, kw_only=True):
    """What ``tidemark`` reads besides the services' settings."""

    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    topic: KafkaTopics = KafkaTopics()


async def look_at_folder(edges: Edges, report: Report) -> None:
    try:
        entities = edges.entities
        general = compiled(entities)
    except ConfigError as error:
        for problem in error.problems:
            where, _, text = problem.partition(": ")
            what, remedy = parted(text)
            report.config(where, what, remedy or "mend it, then `tidemark validate`")
        return
    report.ok("entity folder", f"{len(entities.entities)} entities of {len(entities.sources)} sources")
    for name, why in general.items():
        report.note(name, f"its schema runs on the slower general path: {why}")


async def look_at_settings(environ: Mapping[str, str], folder: Entities | None, report: Report) -> None:
    """Each service's settings as it would read them here; what isn't set here may be set where the service runs."""
    known, problems, absent = {f"{PREFIX}TEST_FULL"}, [], []
    for service, (module, name) in SERVICES.items():
        try:
            form = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError:
            absent.append(service)
            continue
        known |= set(_variables(form))
        problems += _problems(form, environ)
    for form in (_Command, RawSettings, ArchiveSettings, CacheSettings):
        known |= set(_variables(form))
        problems += _problems(form, environ)
    for problem in dict.fromkeys(problems):
        variable, _, text = problem.partition(": ")
        report.config(variable, text, "see CONFIGURATION.md")
    named = set() if folder is None else _named_by(folder)
    strangers = {name for name in environ if name.startswith(PREFIX)} - FOREIGN - named
    if not absent:  # else its settings would be taken for mistakes
        for variable, judgement in unknown_variables(strangers, known):
            say = report.wrong if judgement.is_wrong else report.note
            say(variable, judgement.text, judgement.remedy)
    if report.is_fine:
        there = [service for service in SERVICES if service not in absent]
        report.ok("settings", f"as {', '.join(there)} would read them here")


async def look_at_secrets(environ: Mapping[str, str], folder: Entities | None, report: Report) -> None:
    """Of sources: needed here and by the poller. Of channels: only the notifier is given them."""
    if folder is None:
        report.note("entity folder", "not looked at: it can't be read")
        return
    count, elsewhere = 0, dict[str, list[str]]()
    for source in folder.sources.values():
        if source.auth is not None:
            count += _reads(f"source {source.name}", source.auth, environ, report)
    for owner, channel, secret in _secrets_of_channels(folder):
        if _is_here(secret, environ):
            count += _reads(f"owner {owner}, {channel}", secret, environ, report)
        else:
            elsewhere.setdefault(str(secret.env or secret.file), []).append(f"{owner}'s {channel}")
    for name, channels in elsewhere.items():
        report.note(name, f"is not here; the notifier needs it for {', '.join(channels)}")
    if report.is_fine:
        report.ok("secrets", f"{count} can be read" if count else "none to be read here")


async def look_at_disk(environ: Mapping[str, str], report: Report) -> None:
    folders = {"TMPDIR": Path(tempfile.gettempdir())}
    if cache := environ.get("TIDEMARK_CACHE_DIR"):
        folders["TIDEMARK_CACHE_DIR"] = Path(cache)
    for variable, folder in folders.items():
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        usage = shutil.disk_usage(there)
        judgements = judge_disk(usage.free, usage.total, is_writable=os.access(there, os.W_OK))
        report.judged(f"{variable} {folder}", judgements, f"{size_in_words(usage.free)} free")


def _is_here(secret: Secret, environ: Mapping[str, str]) -> bool:
    return secret.env in environ if secret.file is None else os.path.exists(secret.file)


def _reads(thing: str, secret: Auth | Secret, environ: Mapping[str, str], report: Report) -> bool:
    try:
        secret.value(environ) if isinstance(secret, Auth) else secret.read(environ)
    except ConfigError as error:
        for problem in error.problems:
            where, _, text = problem.partition(": ")
            what, _, remedy = text.partition("; ")
            report.config(thing, f"{where}: {what}", remedy)
        return False
    return True


def _secrets_of_channels(folder: Entities) -> Iterator[tuple[str, str, Secret]]:
    for owner in folder.owners.values():
        for channel in owner.channels:
            for field in structs.fields(type(channel)):
                secret = getattr(channel, field.name)
                if isinstance(secret, Secret):
                    yield owner.name, f"{channel.name}.{field.name}", secret


def _named_by(folder: Entities) -> set[str]:
    """Variables that entity files name."""
    named = {secret.env for _owner, _channel, secret in _secrets_of_channels(folder)}
    for source in folder.sources.values():
        named |= {source.url_env, None if source.auth is None else source.auth.value_env}
    return {name for name in named if name}


def _problems(form: type[Struct], environ: Mapping[str, str]) -> list[str]:
    try:
        load_config(form, environ)
    except ConfigError as error:
        return [problem for problem in error.problems if _UNSET not in problem]
    return []


def _variables(form: type[Struct], prefix: str = PREFIX) -> Iterator[str]:
    for field in structs.fields(form):
        nested: Any = struct_in(field.type)
        variable = prefix + field.name.upper()
        if nested is None:
            yield variable
        else:
            yield from _variables(nested, variable + "_")
