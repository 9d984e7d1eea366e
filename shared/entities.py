"""Entities, sources and owners: a folder of ``*.yaml``, read at start, refused with every error named by file and line.

Five lines make a working entity::

    entities:
      accounts: {source: bank, key: id, updated_at: updated_at, schema: accounts.avsc, owner: ledger}
    sources: {bank: {url: "https://bank.example/cdc"}}
    owners: {ledger: {contact: "#ledger"}}

Units stand in the names (``window_s: 60``). Secrets are never values: ``value_env`` names a variable, ``value_file``
a file. Values are read as in YAML 1.2 (``no`` is text).
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from msgspec import Meta, Struct, structs

from shared import logs
from shared.config import ConfigError, guess, read_secret, reason, unreadable
from shared.entity_repairs import read_repairs
from shared.events.model import EventRules
from shared.events.repair import RULES_MAX, RepairRule
from shared.located_yaml import Located, Problems, parse, read_form
from shared.owners import Owner as Owner
from shared.owners import is_this_machine, read_owner

NAMESPACE_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,30}")
ENTITY_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,99}")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
TOPIC_LENGTH_MAX = 249
SCHEMA_CHARACTERS_MAX = 1_000_000
TRANSFORM_CHARACTERS_MAX = 100_000
PAGE_ROWS_MAX = 10_000
LATENESS_CAP_S = 3_600.0

_S = TypeVar("_S", bound=Struct)
_Part = TypeVar("_Part", bound=Struct)

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Field = Annotated[str, Meta(min_length=1, max_length=200)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
TimeFormat = Literal["iso8601", "epoch_s", "epoch_ms", "epoch_us"]


class Namespace(Struct, frozen=True):
    """Prefixes everything outside the process that is named after Tidemark or an entity. ``""`` prefixes nothing."""

    name: str = ""

    def __post_init__(self) -> None:
        if self.name and not NAMESPACE_PATTERN.fullmatch(self.name):
            raise ValueError(f"namespace {self.name!r}: expected lower-case letters, digits and '-', at most 31")

    def topic(self, entity: str) -> str:
        """``[<ns>.]cdc.<entity>``"""
        return self.dotted(f"cdc.{entity}")

    def group(self, name: str) -> str:
        """A Kafka consumer group: ``[<ns>.]<name>``."""
        return self.dotted(name)

    def subject(self, topic: str) -> str:
        """The registry subject of a topic's values. The topic's name holds the namespace already."""
        return f"{topic}-value"

    def table(self, name: str = "tidemark_parked") -> str:
        """A DynamoDB table: ``[<ns>_]<name>``."""
        return f"{self.name}_{name}" if self.name else name

    def postgres_schema(self) -> str:
        """``tidemark`` or ``<ns>_tidemark`` ('-' becomes '_')."""
        return f"{self.name.replace('-', '_')}_tidemark" if self.name else "tidemark"

    def prefix(self, path: str) -> str:
        """A bucket prefix: ``[<ns>/]<path>``."""
        return f"{self.name}/{path}" if self.name else path

    def dotted(self, name: str) -> str:
        """``[<ns>.]<name>``"""
        return f"{self.name}.{name}" if self.name else name


class Auth(Struct, frozen=True, kw_only=True):
    """A header whose value is a secret, read anew at each call so that it can be rotated."""

    header: str = "Authorization"
    value_env: str | None = None
    value_file: str | None = None
    prefix: str = ""
    """Stands before the secret, as ``"Bearer "``."""

    def value(self, environ: Mapping[str, str] = os.environ) -> str:
        """The header's value. Raises ``ConfigError`` when the secret is gone."""
        if self.value_file is not None:
            return self.prefix + read_secret(self.value_file)
        assert self.value_env is not None
        secret = environ.get(self.value_env, "")
        if not secret:
            raise ConfigError([f"{self.value_env}: not set; it should hold the secret of header {self.header!r}"])
        logs.hide(secret)
        return self.prefix + secret


class Source(Struct, frozen=True, kw_only=True):
    """A REST API, named once and shared by its entities."""

    name: str
    url: str
    """Without query: ``https://bank.example/cdc``. ``""`` only where the environment was not looked at."""
    url_env: str | None = None
    auth: Auth | None = None
    entity_param: str = "entity"
    since_param: str = "updatedSince"
    limit_param: str | None = None
    since_format: TimeFormat = "iso8601"
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0
    body_bytes_max: int = 32 * 1024 * 1024
    requests_per_s: float = 50.0
    """Budget for the host, shared by all of its sources (the smallest counts)."""
    ca_file: str | None = None
    plain_http: bool = False
    """Allow ``http://`` to a host that is not this machine."""


class PauseRules(Struct, frozen=True, kw_only=True):
    """When too many invalid events pause an entity: in a window, both share and count exceeded; or a row of them."""

    events: int = 1_000
    seconds: float = 300.0
    share_max: float = 0.05
    invalid_max: int = 50
    in_a_row_max: int = 200


class DeltaRules(Struct, frozen=True, kw_only=True):
    """How an entity's rows become its Delta table."""

    transform: str | None = None
    """SQL over one view named ``events``: ``SELECT *, upper(iban) AS iban FROM events``. The loader judges it."""
    history: bool = False
    """Keep all events with their intervals in ``<entity>_history`` as well."""
    properties: dict[str, str] = {}
    """Table properties; `tidemark table maintain` sets those that differ."""


class Entity(Struct, frozen=True, kw_only=True):
    """One stream of changes and everything that is particular to it. Names are complete: namespace included."""

    name: str
    source: Source
    rules: EventRules
    owner: Owner
    topic: str
    schema_subject: str
    schema_file: Path | None
    schema_text: str | None
    """The file's text as read at start; ``None`` where only the registry has it (``register: require``, no file)."""
    register: Literal["file", "require"] = "file"
    source_entity: str = ""
    """The value of the source's entity parameter."""
    records: str = ""
    """JSON pointer to the array in the body; ``""``: the body is the array."""
    partitions: int = 3
    poll_interval_s: float = 5.0
    page_rows: int | None = None
    """``None``: the first request carries no limit (nor does the source need a limit parameter)."""
    page_rows_max: int = PAGE_ROWS_MAX
    start_at: str = "beginning"
    """``beginning``, ``now`` or an ISO time with an offset; resolved by ``start_at_us`` when the cursor is made."""
    window_s: float = 60.0
    lookback_period_s: float = 30.0
    lateness_cap_s: float = LATENESS_CAP_S
    cap_period_s: float = 600.0
    seen_bytes_max: int = 256 * 1024 * 1024
    outage_parked_events_max: int = 10_000
    stale_after_s: float = 7 * 86_400.0
    """How long a refused event waits for a cure (a schema, a repair rule, an operator) before its owner is told."""
    future_s_max: float = 86_400.0
    clock_tolerance_s: float = 2.0
    freshness_s: float = 300.0
    """The objective: how old the lake may be."""
    heartbeat_s: float | None = None
    """How often a heartbeat goes through the whole pipe; ``None``: none does."""
    pause: PauseRules = PauseRules()
    repairs: tuple[RepairRule, ...] = ()
    """What may be changed in an event that the contract refuses, before it is tried again."""
    delta: DeltaRules = DeltaRules()

    def start_at_us(self, now_us: int) -> int:
        """Where a cursor made now begins, in microseconds since 1970 UTC."""
        match self.start_at:
            case "beginning":
                return 0
            case "now":
                return now_us
        return time_us(self.start_at)


class Entities(Struct, frozen=True, kw_only=True):
    """All that the folder says, by name, in order of name."""

    namespace: Namespace
    sources: dict[str, Source]
    entities: dict[str, Entity]
    owners: dict[str, Owner]
    default_owner: Owner | None = None
    """Who hears of what has no other owner: entities without one, and events of entities that are no longer here."""

    @property
    def topics(self) -> dict[str, Entity]:
        """Topic → its entity (one each)."""
        return {entity.topic: entity for entity in self.entities.values()}


def time_us(text: str) -> int:
    """An ISO 8601 time with an offset (``Z`` or ``+02:00``), in microseconds since 1970 UTC. Raises ``ValueError``."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no offset from UTC; write {text}Z")
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def load_entities(folder: str | Path, namespace: str = "", environ: Mapping[str, str] | None = None) -> Entities:
    """Read all ``*.yaml`` files of ``folder``. Raises ``ConfigError`` with every problem as ``file:line: message``.

    ``environ`` None: variables that ``url_env`` and ``value_env`` name are not looked at.
    """
    try:
        space = Namespace(namespace)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    return _Folder(Path(folder), space, environ).read()


class _AuthForm(Struct, kw_only=True):
    shorthand: ClassVar[str] = "value_file"

    header: Annotated[str, Meta(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")] = "Authorization"
    value_env: Name | None = None
    value_file: Name | None = None
    prefix: str = ""


class _SourceForm(Struct, kw_only=True):
    url: Name | None = None
    url_env: Name | None = None
    auth: _AuthForm | None = None
    entity_param: Field | None = None
    since_param: Field | None = None
    limit_param: Field | None = None
    since_format: TimeFormat | None = None
    connect_timeout_s: Seconds | None = None
    read_timeout_s: Seconds | None = None
    body_bytes_max: Annotated[int, Meta(ge=1024, le=1024 * 1024 * 1024)] | None = None
    requests_per_s: Annotated[float, Meta(gt=0, le=100_000)] | None = None
    ca_file: Name | None = None
    plain_http: bool | None = None


class _TimeForm(Struct, kw_only=True):
    shorthand: ClassVar[str] = "field"

    field: Field
    format: TimeFormat = "iso8601"
    granularity_us: Annotated[int, Meta(ge=1, le=86_400_000_000)] | None = None
    utc_offset: Annotated[str, Meta(pattern=r"^[+-](0[0-9]|1[0-4]):[0-5][0-9]$")] | None = None


class _SchemaForm(Struct, kw_only=True):
    shorthand: ClassVar[str] = "file"

    file: Name | None = None
    subject: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,200}$")] | None = None
    register: Literal["file", "require"] = "file"
    on_unknown_field: Literal["park", "ignore"] = "park"


class _OpForm(Struct, kw_only=True):
    shorthand: ClassVar[str] = "field"

    field: Field
    delete: Annotated[list[Field], Meta(min_length=1)] | None = None


class _PauseForm(Struct, kw_only=True):
    events: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    seconds: Seconds | None = None
    share_max: Annotated[float, Meta(gt=0, le=1)] | None = None
    invalid_max: Annotated[int, Meta(ge=0)] | None = None
    in_a_row_max: Annotated[int, Meta(ge=1)] | None = None


class _DeltaForm(Struct, kw_only=True):
    transform: Name | None = None
    history: bool | None = None
    properties: dict[Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,199}$")], str] | None = None


class _EntityForm(Struct, kw_only=True):
    source: Name
    key: Field | Annotated[list[Field], Meta(min_length=1, max_length=16)]
    updated_at: _TimeForm
    schema: _SchemaForm
    owner: Name | None = None
    source_entity: Field | None = None
    records: str | None = None
    id: Field | None = None
    op: _OpForm | None = None
    version: Field | None = None
    shows: Literal["rows", "events"] = "rows"
    topic: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,200}$")] | None = None
    partitions: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    poll_interval_s: Seconds | None = None
    page_rows: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    page_rows_max: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    start_at: str | None = None
    window_s: Seconds | None = None
    lookback_period_s: Seconds | None = None
    lateness_cap_s: Seconds | None = None
    cap_period_s: Seconds | None = None
    seen_bytes_max: Annotated[int, Meta(ge=64 * 1024)] | None = None
    outage_parked_events_max: Annotated[int, Meta(ge=0)] | None = None
    stale_after_s: Seconds | None = None
    future_s_max: Seconds | None = None
    clock_tolerance_s: Annotated[float, Meta(ge=0, le=3600)] | None = None
    freshness_s: Seconds | None = None
    heartbeat_s: Annotated[float, Meta(ge=1, le=86_400)] | None = None
    event_bytes_max: Annotated[int, Meta(ge=64, le=16 * 1024 * 1024)] | None = None
    depth_max: Annotated[int, Meta(ge=1, le=128)] | None = None
    pause: _PauseForm | None = None
    repair: Annotated[list[Any], Meta(max_length=RULES_MAX)] | None = None
    delta: _DeltaForm | None = None


_PASSED_ON = (
    *("source_entity", "records", "partitions", "poll_interval_s", "page_rows", "page_rows_max", "start_at"),
    *("window_s", "lookback_period_s", "lateness_cap_s", "cap_period_s", "seen_bytes_max"),
    *("outage_parked_events_max", "stale_after_s", "future_s_max", "clock_tolerance_s", "freshness_s", "heartbeat_s"),
)
"""Fields of the form that the entity takes as they are; its defaults stand where they are not written."""

_GRANULARITY_US: Mapping[str, int] = {"iso8601": 1, "epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}


class _Folder:
    """One reading of the folder; everything wrong is collected in ``_problems``."""

    def __init__(self, folder: Path, namespace: Namespace, environ: Mapping[str, str] | None) -> None:
        self._folder = folder
        self._namespace = namespace
        self._environ = environ
        self._problems = Problems()
        self._sections: dict[str, dict[str, Located]] = {"sources": {}, "entities": {}, "owners": {}}
        self._default_owner: Located | None = None

    def read(self) -> Entities:
        """Sources and owners first, since entities refer to them; what refers to a broken one is not reported again."""
        for file in self._files():
            root = parse(file, self._problems)
            if root is not None:
                self._sort_in(root)
        sources = {name: self._source(name, node) for name, node in sorted(self._sections["sources"].items())}
        owners = {
            name: read_owner(name, node, self._problems) for name, node in sorted(self._sections["owners"].items())
        }
        default = self._default(owners)
        entities = {
            name: self._entity(name, node, sources, owners, default)
            for name, node in sorted(self._sections["entities"].items())
        }
        self._refuse_shared_topics({name: entity for name, entity in entities.items() if entity is not None})
        if not entities and not len(self._problems):
            self._problems.add_at(self._folder, 0, "no entity in this folder; write one under 'entities:'")
        if len(self._problems):
            raise ConfigError(list(self._problems))
        return Entities(
            namespace=self._namespace,
            sources=_whole(sources),
            entities=_whole(entities),
            owners=_whole(owners),
            default_owner=default,
        )

    def _files(self) -> list[Path]:
        try:
            files = sorted(path for path in self._folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise ConfigError([f"{self._folder}: can't be read as a folder ({reason(error)})"]) from None
        for path in files:
            if path.suffix == ".yml":
                self._problems.add_at(path, 0, "would not be read; rename it to .yaml")
        return [path for path in files if path.suffix == ".yaml"]

    def _sort_in(self, root: Located) -> None:
        if not isinstance(root.value, dict):
            self._problems.add(root, f"expected a map with {', '.join(self._sections)}")
            return
        for section, items in root.value.items():
            where = root.key(section)
            if section == "default_owner":
                if self._default_owner is not None:
                    first = self._default_owner
                    self._problems.add(where, f"default_owner stands twice (first in {first.file}:{first.line})")
                self._default_owner = items
            elif section not in self._sections:
                known = [*self._sections, "default_owner"]
                hint = guess(section, known) or f"; known are {', '.join(known)}"
                self._problems.add(where, f"unknown key {section!r}{hint}")
            elif not isinstance(items.value, dict):
                self._problems.add(where, f"expected a map of names under {section!r}")
            else:
                self._sort_names(section, items)

    def _sort_names(self, section: str, items: Located) -> None:
        assert isinstance(items.value, dict)
        known = self._sections[section]
        for name, node in items.value.items():
            where = items.key(name)
            pattern = ENTITY_PATTERN if section == "entities" else NAME_PATTERN
            if not pattern.fullmatch(name):
                self._problems.add(where, f"name {name!r}: expected to match {pattern.pattern}")
            elif name in known:
                first = known[name]
                self._problems.add(where, f"{name!r} is defined twice (first in {first.file}:{first.line})")
            else:
                known[name] = Located(node.value, where.file, where.line, node.key_lines)

    def _default(self, owners: Mapping[str, Owner | None]) -> Owner | None:
        node = self._default_owner
        if node is None:
            return None
        if not isinstance(node.value, str) or node.value not in owners:
            hint = guess(str(node.value), list(owners)) or "; define it under 'owners:'"
            self._problems.add(node, f"default_owner {node.value!r} is not defined{hint}")
            return None
        return owners[node.value]

    def _source(self, name: str, node: Located) -> Source | None:
        before = len(self._problems)
        form = read_form(_SourceForm, node, self._problems)
        if form is None:
            return None
        written = {field: value for field, value in structs.asdict(form).items() if value is not None}
        written["url"] = self._url(form, node)
        if form.auth is not None:
            written["auth"] = self._auth(form.auth, node.find("auth"))
        if form.ca_file is not None:
            written["ca_file"] = self._readable(form.ca_file, node.find("ca_file"))
        return Source(name=name, **written) if len(self._problems) == before else None

    def _url(self, form: _SourceForm, node: Located) -> str:
        if (form.url is None) == (form.url_env is None):
            self._problems.add(node, "expected one of 'url' and 'url_env'")
            return ""
        where = node.find("url" if form.url_env is None else "url_env")
        url = form.url if form.url_env is None else self._variable(form.url_env, where)
        if not url:
            return ""
        wrong = _wrong_with_url(url, form.plain_http is True)
        if wrong:
            self._problems.add(where, wrong)
        return url

    def _auth(self, form: _AuthForm, node: Located) -> Auth:
        if (form.value_env is None) == (form.value_file is None):
            self._problems.add(node, "expected one of 'value_env' (a variable's name) and 'value_file' (a path)")
        if form.value_env is not None:
            self._variable(form.value_env, node.find("value_env"))
        file = None if form.value_file is None else self._readable(form.value_file, node.find("value_file"))
        return Auth(header=form.header, value_env=form.value_env, value_file=file, prefix=form.prefix)

    def _variable(self, name: str, where: Located) -> str:
        if self._environ is None:
            return ""
        value = self._environ.get(name, "")
        if not value:
            self._problems.add(where, f"the environment variable {name} is not set")
        return value

    def _readable(self, path: str, where: Located) -> str:
        whole = where.file.parent / path
        try:
            unreadable(whole)
        except ValueError as error:
            self._problems.add(where, str(error))
        return str(whole)

    def _entity(
        self,
        name: str,
        node: Located,
        sources: Mapping[str, Source | None],
        owners: Mapping[str, Owner | None],
        default_owner: Owner | None,
    ) -> Entity | None:
        before = len(self._problems)
        source = self._named("source", node, sources)
        owner = self._owner(node, owners, default_owner)
        form = read_form(_EntityForm, node, self._problems)
        if form is None:
            return None
        rules = self._rules(name, form, node)
        file, text = self._schema(form.schema, rules, node)
        repairs = () if form.repair is None else read_repairs(node.find("repair"), rules, self._problems)
        delta = DeltaRules() if form.delta is None else self._delta(form.delta, node.find("delta"))
        self._check_times(form, node)
        self._check_paging(form, source, node)
        if len(self._problems) > before or source is None or owner is None:
            return None
        topic = self._namespace.topic(name) if form.topic is None else self._namespace.dotted(form.topic)
        subject = form.schema.subject
        return Entity(
            name=name,
            source=source,
            owner=owner,
            rules=rules,
            topic=topic,
            schema_subject=f"{topic}-value" if subject is None else self._namespace.dotted(subject),
            schema_file=file,
            schema_text=text,
            register=form.schema.register,
            pause=_with(PauseRules(), form.pause),
            repairs=repairs,
            delta=delta,
            **{"source_entity": name} | _written(form, _PASSED_ON),
        )

    def _named(self, field: str, node: Located, known: Mapping[str, _Part | None]) -> _Part | None:
        name = node.find(field).value
        if not isinstance(name, str):
            return None  # missing or no text: read_form says so
        if name not in known:
            hint = guess(name, list(known)) or f"; define it under '{field}s:'"
            self._problems.add(node.find(field), f"{field} {name!r} is not defined{hint}")
        return known.get(name)

    def _owner(self, node: Located, owners: Mapping[str, Owner | None], default: Owner | None) -> Owner | None:
        if isinstance(node.value, dict) and "owner" not in node.value:
            if self._default_owner is None:
                self._problems.add(node, "'owner' is missing; name one of 'owners:', or a 'default_owner:' for all")
            return default
        return self._named("owner", node, owners)

    def _rules(self, name: str, form: _EntityForm, node: Located) -> EventRules:
        key = (form.key,) if isinstance(form.key, str) else tuple(form.key)
        if len(set(key)) < len(key):
            self._problems.add(node.find("key"), "key: a field is named twice")
        time = form.updated_at
        if time.utc_offset is not None and time.format != "iso8601":
            self._problems.add(node.find("updated_at", "utc_offset"), "utc_offset: only with format iso8601; remove it")
        op: dict[str, Any] = {}
        if form.op is not None:
            op["op"] = form.op.field
            if form.op.delete is not None:
                op["delete_ops"] = frozenset(form.op.delete)
        return EventRules(
            entity=name,
            key=key,
            updated_at=time.field,
            updated_at_format=time.format,
            utc_offset_minutes=None if time.utc_offset is None else _minutes(time.utc_offset),
            granularity_us=time.granularity_us or _GRANULARITY_US[time.format],
            event_id=form.id,
            version=form.version,
            shows=form.shows,
            on_unknown_field=form.schema.on_unknown_field,
            **op,
            **_written(form, ("event_bytes_max", "depth_max")),
        )

    def _schema(self, form: _SchemaForm, rules: EventRules, node: Located) -> tuple[Path | None, str | None]:
        if form.file is None:
            if form.register == "file":
                self._problems.add(node.find("schema"), "'file' is missing; or write 'register: require' and a subject")
            return None, None
        file = node.file.parent / form.file
        where = node.find("schema", "file")
        try:
            text = read_schema(file)
        except ValueError as error:
            self._problems.add(where, f"schema: {error}")
            return file, None
        fields = _schema_fields(text)
        if fields is None:
            self._problems.add(where, f"schema: {file} is no Avro record; its top level must be a record with fields")
        else:
            self._check_fields(rules, fields, file, node)
        return file, text

    def _delta(self, form: _DeltaForm, node: Located) -> DeltaRules:
        written = _written(form, ("history", "properties"))
        if form.transform is not None:
            where = node.find("transform")
            try:
                written["transform"] = read_transform(where.file.parent / form.transform)
            except ValueError as error:
                self._problems.add(where, f"transform: {error}")
        return DeltaRules(**written)

    def _check_fields(self, rules: EventRules, fields: Mapping[str, bool], file: Path, node: Located) -> None:
        """Each named field stands in the schema: else every event would be refused, or the key would be lost."""
        for field in rules.key:
            if field not in fields:
                hint = guess(field, list(fields)) or "; it must be, required and non-null"
                self._problems.add(node.find("key"), f"key field {field!r} is not in {file}{hint}")
            elif fields[field]:
                self._problems.add(node.find("key"), f"key field {field!r} may be null in {file}; make it required")
        if rules.on_unknown_field == "ignore":
            return
        named = {"updated_at": rules.updated_at, "id": rules.event_id, "op": rules.op, "version": rules.version}
        for setting, name in named.items():
            if name is not None and name not in fields:
                advice = guess(name, list(fields)) or "; add it, or every event is refused for an unknown field"
                self._problems.add(node.find(setting), f"{setting}: field {name!r} is not in {file}{advice}")

    def _check_times(self, form: _EntityForm, node: Located) -> None:
        if form.start_at not in (None, "beginning", "now"):
            try:
                time_us(form.start_at)
            except ValueError:
                self._problems.add(
                    node.find("start_at"),
                    f"start_at: expected beginning, now or a time as 2026-01-31T00:00:00Z, got {form.start_at!r}",
                )
        cap_s = form.lateness_cap_s or LATENESS_CAP_S
        if form.window_s is not None and form.window_s > cap_s:
            wrong = f"window_s: {form.window_s:g} is above lateness_cap_s ({cap_s:g}); a window ends at the cap"
            self._problems.add(node.find("window_s"), wrong)

    def _check_paging(self, form: _EntityForm, source: Source | None, node: Located) -> None:
        pointer = form.records
        if pointer and not re.fullmatch(r"(/([^/~]|~[01])*)+", pointer):
            self._problems.add(node.find("records"), f"records: expected a JSON pointer as /events, got {pointer!r}")
        if form.page_rows is None:
            return
        most = form.page_rows_max or PAGE_ROWS_MAX
        if form.page_rows > most:
            self._problems.add(node.find("page_rows"), f"page_rows: {form.page_rows} is above page_rows_max ({most})")
        if source is not None and source.limit_param is None:
            self._problems.add(
                node.find("page_rows"), f"page_rows: source {source.name!r} has no limit_param; name it there"
            )

    def _refuse_shared_topics(self, entities: Mapping[str, Entity]) -> None:
        """Kafka also refuses topics that differ only in '.' and '_': their metrics would collide."""
        taken: dict[str, Entity] = {}
        for name, entity in entities.items():
            where = self._sections["entities"][name].find("topic")
            first = taken.setdefault(entity.topic.replace(".", "_"), entity)
            if first is not entity:
                self._problems.add(where, f"topic {entity.topic!r} is that of entity {first.name!r}; give it its own")
            if len(entity.topic) > TOPIC_LENGTH_MAX or entity.topic in (".", ".."):
                self._problems.add(where, f"topic {entity.topic!r} is no name that Kafka takes; shorten it")


def read_schema(file: Path) -> str:
    """A schema file's text, known to be JSON. Raises ``ValueError`` in words."""
    try:
        with open(file, encoding="utf-8") as stream:
            text = stream.read(SCHEMA_CHARACTERS_MAX + 1)
        if len(text) > SCHEMA_CHARACTERS_MAX:
            raise ValueError(f"{file} is longer than {SCHEMA_CHARACTERS_MAX} characters")
        json.loads(text)
    except OSError as error:
        raise ValueError(f"can't read {file} ({reason(error)}); paths are relative to the yaml file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno} is no JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError(f"{file} is nested too deeply") from None
    return text


def read_transform(file: Path) -> str:
    """The SQL of a file. Raises ``ValueError`` in words. Whether it is a transform is for the loader to judge."""
    try:
        with open(file, encoding="utf-8") as stream:
            text = stream.read(TRANSFORM_CHARACTERS_MAX + 1)
    except OSError as error:
        raise ValueError(f"can't read {file} ({reason(error)}); paths are relative to the yaml file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8") from None
    if not text.strip() or len(text) > TRANSFORM_CHARACTERS_MAX:
        raise ValueError(f"{file}: expected SQL of 1 to {TRANSFORM_CHARACTERS_MAX} characters, got {len(text)}")
    return text


def _schema_fields(text: str) -> dict[str, bool] | None:
    """Top-level field → may it be null? ``None`` when the schema is no record. The rest is the compiler's to judge."""
    schema = json.loads(text)
    if not isinstance(schema, dict) or schema.get("type") != "record" or not isinstance(schema.get("fields"), list):
        return None
    fields: dict[str, bool] = {}
    for field in schema["fields"]:
        if not isinstance(field, dict) or not isinstance(field.get("name"), str):
            return None
        kind = field.get("type")
        fields[field["name"]] = kind == "null" or (isinstance(kind, list) and "null" in kind)
    return fields


def _wrong_with_url(url: str, plain_http: bool) -> str | None:
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return "url: expected https://host[:port]/path"
    if parts.scheme not in ("http", "https") or not host:
        return "url: expected https://host[:port]/path"
    if parts.username is not None or parts.password is not None:
        return "url: holds a user or password; use 'auth' with a file or a variable"
    if parts.query or parts.fragment:
        return "url: expected no '?' or '#' part; the parameters are added by Tidemark"
    if parts.scheme == "http" and not plain_http and not is_this_machine(host):
        return "url: http:// sends secrets and rows in the clear; use https://, or say 'plain_http: true'"
    return None


def _minutes(utc_offset: str) -> int:
    minutes = int(utc_offset[1:3]) * 60 + int(utc_offset[4:6])
    return -minutes if utc_offset[0] == "-" else minutes


def _written(form: Struct, fields: Iterable[str]) -> dict[str, Any]:
    return {field: value for field in fields if (value := getattr(form, field)) is not None}


def _with(defaults: _S, form: Struct | None) -> _S:
    return defaults if form is None else structs.replace(defaults, **_written(form, form.__struct_fields__))


def _whole(parts: Mapping[str, _Part | None]) -> dict[str, _Part]:
    return {name: part for name, part in parts.items() if part is not None}
