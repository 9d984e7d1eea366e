"""``python -m deploy.entity_reference``: the tables of ``shared/README.md``, from the structs that read entity files.

Keys, types, bounds and defaults are the code's; the line that says what a key is for stands here. A key without a line,
or a line without a key, is a failing test.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from msgspec import NODEFAULT, Struct, inspect, structs

from shared import entities, owners
from shared.config import struct_in
from shared.entity_repairs import _OPTIONAL, _OPTIONS
from shared.events.model import EventRules
from shared.events.repair import RepairRule

README = Path(__file__).parents[1] / "shared" / "README.md"
BEGIN, END = "<!-- tables: python -m deploy.entity_reference -->", "<!-- end of tables -->"

UNITS = {"seconds": "s", "_us": "µs", "_s": "s", "_s_max": "s", "_h": "h", "_bytes_max": "bytes"}
"""By the end of a key's name, the longest first."""
DAY_S, HOUR_S, MIB = 86_400, 3_600, 1024 * 1024
PATTERN_CHARS_MAX = 36


class Table(Struct, frozen=True):
    """One map of the files. ``defaults``: where the value of a key that isn't written comes from."""

    title: str
    intro: str
    form: type[Struct]
    defaults: tuple[type[Struct], ...]
    lines: dict[str, str]
    computed: dict[str, str] = {}
    """What stands for a key that isn't written, where that is no constant."""


TABLES = (
    Table(
        "`sources:` a REST API, by name",
        "One of `url` and `url_env` is required.",
        entities._SourceForm,
        (entities.Source,),
        {
            "url": "without query: `https://bank.example/cdc`",
            "url_env": "the variable that holds it",
            "auth": "a header whose value is a secret, read anew at each call",
            "entity_param": "name of the parameter that says which entity",
            "since_param": "name of the parameter that says since when",
            "limit_param": "name of the parameter that says how many rows; without one the source decides",
            "since_format": "how the time is written in it",
            "connect_timeout_s": "until there is a connection",
            "read_timeout_s": "of each wait for more of the answer",
            "body_bytes_max": "a larger answer is refused, unread",
            "requests_per_s": "budget for the host, which all its sources share (the smallest counts)",
            "ca_file": "certificates to trust instead of the system's",
            "plain_http": "allow `http://` to a host that isn't this machine",
        },
    ),
    Table(
        "`auth:` of a source",
        "A bare text is its `value_file`. One of `value_env` and `value_file` is required.",
        entities._AuthForm,
        (),
        {
            "header": "its name",
            "value_env": "the variable that holds the secret",
            "value_file": "the file that holds it, relative to the yaml file",
            "prefix": 'stands before the secret, as `"Bearer "`',
        },
    ),
    Table(
        "`entities:` a stream of changes, by name",
        "Five keys make one: `source`, `key`, `updated_at`, `schema`, `owner`.",
        entities._EntityForm,
        (entities.Entity, EventRules),
        {
            "source": "one of `sources:`",
            "key": "the field or fields by which a row is known; required and non-null in the schema",
            "updated_at": "the field by which the source is asked for what is newer",
            "schema": "the Avro schema that its events must fit",
            "owner": "one of `owners:`, who hears of events that nobody can publish",
            "source_entity": "its name at the source",
            "records": 'JSON pointer to the array of rows in the answer, as `/events`; `""`: the body is the array',
            "id": "the field with the source's own event id; without one, what an event says is its identity",
            "op": "the field that says what happened to the row",
            "version": "the field that orders the changes of one row; without it the order of showing does",
            "shows": "does the source show a row's present state, or every event?",
            "topic": "Kafka topic, before the namespace's prefix",
            "partitions": "of the topic, when it is made",
            "poll_interval_s": "from one question for news to the next",
            "page_rows": "asked for at once; needs the source's `limit_param`",
            "page_rows_max": "asked for at most, where a larger page is needed to get past one tick",
            "start_at": "where a new cursor begins: `beginning`, `now`, or a time as `2026-01-31T00:00:00Z`",
            "window_s": "how far the lookback reaches behind the cursor, to begin with; it widens by itself",
            "lookback_period_s": "from one lookback to the next",
            "lateness_cap_s": "a change that the source commits later than this may be missed",
            "cap_period_s": "from one lookback as far as the cap to the next",
            "seen_bytes_max": "memory for what was seen; full, it shortens the cap, and says so",
            "outage_parked_events_max": "parked while Kafka is down; then the cursor waits",
            "stale_after_s": "how long a refused event waits for a cure before its owner is told",
            "future_s_max": "an event dated further ahead is parked",
            "clock_tolerance_s": "how far ahead of our own clock the cursor may go",
            "freshness_s": "the objective: how old the lake may be; alerts and boards go by it",
            "heartbeat_s": "how often a heartbeat goes through the whole pipe: tells a quiet table from a broken pipe",
            "event_bytes_max": "a larger event is parked",
            "depth_max": "an event that nests deeper is parked",
            "pause": "when too many refused events pause the entity",
            "repair": "what may be changed in a refused event: see below",
            "delta": "its Delta table",
        },
        {
            "owner": "`default_owner`",
            "source_entity": "the entity's name",
            "topic": "`cdc.<entity>`",
            "page_rows": "no limit is sent",
            "op": "nothing is a delete",
            "pause": "as below",
            "repair": "none",
            "delta": "as below",
        },
    ),
    Table(
        "`updated_at:` of an entity",
        "A bare text is its `field`.",
        entities._TimeForm,
        (),
        {
            "field": "top-level field of the event",
            "format": "how it is written",
            "granularity_us": "the source's tick: stamps closer together than this are equal to it",
            "utc_offset": "for ISO stamps that carry none, as `+02:00`; without it those are refused",
        },
        {"granularity_us": "the format's unit; 1 for ISO"},
    ),
    Table(
        "`schema:` of an entity",
        "A bare text is its `file`.",
        entities._SchemaForm,
        (),
        {
            "file": "Avro schema, relative to the yaml file",
            "subject": "in the registry, before the namespace's prefix",
            "register": "`file`: bootstrap and the poller register the file; `require`: only what is registered counts",
            "on_unknown_field": "a field that the schema lacks: `park` the event, or `ignore` the field",
        },
        {"file": "required unless `register: require`", "subject": "`<topic>-value`"},
    ),
    Table(
        "`op:` of an entity",
        "A bare text is its `field`.",
        entities._OpForm,
        (),
        {"field": "top-level field of the event", "delete": "which of its values mean that the row is gone"},
        {"delete": ", ".join(f"`{op}`" for op in sorted(EventRules(entity="", key=(), updated_at="").delete_ops))},
    ),
    Table(
        "`pause:` of an entity",
        "It pauses when, within the window, both `share_max` and `invalid_max` are exceeded; or after `in_a_row_max`.",
        entities._PauseForm,
        (entities.PauseRules,),
        {
            "events": "the window: so many of the last ones",
            "seconds": "the window: none older than this",
            "share_max": "of the window that may be refused",
            "invalid_max": "that may be refused in the window, however large their share",
            "in_a_row_max": "that may be refused one after the other",
        },
    ),
    Table(
        "`delta:` of an entity",
        "",
        entities._DeltaForm,
        (entities.DeltaRules,),
        {
            "transform": "a file with SQL over the view `events`, relative to the yaml file",
            "history": "keep all events with their intervals in `<entity>_history` as well",
            "properties": "table properties, set when the table is made",
        },
        {"transform": "rows as they are"},
    ),
    Table(
        "`owners:` by name",
        "A bare text is its `contact`.",
        owners._OwnerForm,
        (),
        {
            "contact": "for people: a channel, an address; stands in notices",
            "channels": "in the order of trying: see below",
        },
        {"channels": "the `default_owner`'s"},
    ),
)
CHANNELS = Table(
    "`channels:` of an owner",
    "What every kind has:",
    owners._ChannelForm,
    (owners.ChannelSettings,),
    {
        "kind": "which of the tables below holds its further keys",
        "name": "in receipts and metrics; unique among the owner's channels",
        "escalate_after_h": "told when the group stands so long after its first notice, or those before it fail",
        "allow_addresses": "networks (CIDR) that may be reached though they are link-local or a metadata service's",
        "ca_file": "certificates to trust instead of the system's",
        "timeout_s": "of connecting, and of each wait for an answer",
    },
    {"name": "the kind", "escalate_after_h": "told at once"},
)
KINDS = {
    "slack": "An incoming webhook. One of `url_env` and `url_file` is required.",
    "webhook": "A receiver of Standard Webhooks. An url and a secret are required.",
    "sns": "A topic of Amazon SNS.",
    "smtp": "Mail.",
    "pagerduty": "Events API v2. One of `key_env` and `key_file` is required.",
    "alertmanager": "API v2 of Prometheus's Alertmanager.",
}
CHANNEL_LINES = {
    "url": "where to post to",
    "url_env": "the variable that holds the url, where that is a secret",
    "url_file": "the file that holds it",
    "secret_env": "the variable that holds the secret: signs (webhook: `whsec_<base64>`), or is sent in `auth_header`",
    "secret_file": "the file that holds it",
    "old_secret_env": "during a rotation messages are signed with both",
    "old_secret_file": "the file that holds it",
    "plain_http": "allow `http://` to a host that isn't this machine",
    "topic_arn": "the topic's ARN",
    "host": "of the mail server",
    "port": "of the mail server",
    "tls": "`none` only to a server on this machine",
    "sender": "the From address",
    "to": "addresses",
    "user": "goes with a password",
    "password_env": "the variable that holds the password",
    "password_file": "the file that holds it",
    "key_env": "the variable that holds the routing key",
    "key_file": "the file that holds it",
    "auth_header": "name of the header in which the secret is sent",
    "auth_prefix": 'stands before it, as `"Bearer "`',
    "labels": "labels of each alert, besides our own",
    "repost_s": "how often an open alert is posted again: after four times that it would resolve by itself",
}
KIND_URLS = {"pagerduty": "where to post to", "alertmanager": "without `/api/v2/alerts`"}


def missing() -> list[str]:
    """Keys without a line, and lines without a key."""
    found = [
        f"{table.title}: {name}" for table in (*TABLES, CHANNELS) for name in _keys(table.form) ^ table.lines.keys()
    ]
    own = set().union(*(_own_keys(form) for form, _ in owners._FORMS.values()))
    return [
        *found,
        *(f"channels: {name}" for name in own ^ CHANNEL_LINES.keys()),
        *(owners._FORMS.keys() ^ KINDS.keys()),
    ]


def text() -> str:
    """All tables, as they stand in the README."""
    parts = [part for table in TABLES for part in _section(table)]
    parts += ["### `repair:` of an entity", "", *_repairs(), "", *_section(CHANNELS)]
    for kind, (form, settings) in owners._FORMS.items():
        assert isinstance(settings, type)
        own = [field for field in structs.fields(form) if field.name in _own_keys(form)]
        lines = CHANNEL_LINES | ({"url": KIND_URLS[kind]} if kind in KIND_URLS else {})
        parts += [f"#### `kind: {kind}`", "", KINDS[kind], "", *_rows(own, (settings,), lines, {}), ""]
    return "\n".join(parts).rstrip()


def renewed(readme: str) -> str:
    """``readme`` with its tables anew."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, f"{README}: expected {BEGIN!r} and {END!r}"
    return f"{before}{BEGIN}\n\n{text()}\n\n{END}{after}"


def _section(table: Table) -> Iterator[str]:
    yield f"### {table.title}"
    yield ""
    if table.intro:
        yield table.intro
        yield ""
    yield from _rows(structs.fields(table.form), table.defaults, table.lines, table.computed)
    yield ""


def _rows(
    fields: Iterable[structs.FieldInfo],
    defaults: Sequence[type[Struct]],
    lines: dict[str, str],
    computed: dict[str, str],
) -> Iterator[str]:
    yield "| key | value | default | |"
    yield "|---|---|---|---|"
    for field in fields:
        name = field.encode_name
        default = computed.get(name) or _default(field, defaults)
        yield f"| `{name}` | {_value(field)} | {default} | {lines.get(name, '')} |".replace("| |", "| – |")


def _repairs() -> Iterator[str]:
    """One row a rule: what it does is its class's own first words."""
    yield "| rule | needs | may have | does |"
    yield "|---|---|---|---|"
    for rule in get_args(RepairRule):
        options = _OPTIONS[rule.rule]
        needs = ", ".join(f"`{name}`" for name in options if name not in _OPTIONAL) or "–"
        may = ", ".join(f"`{name}`" for name in options if name in _OPTIONAL) or "–"
        doc = " ".join((rule.__doc__ or "").split()).replace("``", "`")
        yield f"| `{rule.rule}` | {needs} | {may} | {doc} |"


def value_in_words(field: structs.FieldInfo) -> str:
    """Its type, bounds and unit."""
    return _value(field)


def default_in_words(field: structs.FieldInfo) -> str:
    """``required``, or the default, as a person would write it."""
    return _default(field, ())


def _value(field: structs.FieldInfo) -> str:
    form = struct_in(field.type)
    if form is not None:
        shorthand = getattr(form, "shorthand", None)
        return f"map, or its `{shorthand}`" if shorthand else "map"
    unit = _unit(field.name)
    return _in_words(inspect.type_info(field.type)) + (f" ({unit})" if unit else "")


def _unit(name: str) -> str:
    if name.endswith(("_per_s", "_per_s_max")):
        return ""
    return next((UNITS[end] for end in sorted(UNITS, key=len, reverse=True) if name.endswith(end)), "")


def _in_words(info: inspect.Type) -> str:
    match info:
        case inspect.Metadata(type=inner):
            return _in_words(inner)
        case inspect.UnionType(types=options):
            return " or ".join(_in_words(option) for option in options if not isinstance(option, inspect.NoneType))
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case inspect.IntType() | inspect.FloatType():
            return ("integer" if isinstance(info, inspect.IntType) else "number") + _bounds(info)
        case inspect.BoolType():
            return "true, false"
        case inspect.StrType(pattern=pattern):
            is_short = pattern is not None and len(pattern) <= PATTERN_CHARS_MAX
            return f"text as `{pattern}`".replace("|", "\\|") if is_short else "text"
        case inspect.CustomType():
            return "path"
        case inspect.VarTupleType():
            return "list of texts"
        case inspect.ListType(item_type=item, max_length=most):
            kinds = {inspect.DictType: "maps", inspect.AnyType: "maps"}
            return f"list of {kinds.get(type(item), 'texts')}" + (f", at most {most}" if most else "")
        case inspect.DictType():
            return "map of texts"
    raise AssertionError(f"no words for {info}")


def _bounds(info: inspect.IntType | inspect.FloatType) -> str:
    signs = {"> ": info.gt, "≥ ": info.ge, "≤ ": info.le, "< ": info.lt}
    found = [f"{sign}{bound:,}" for sign, bound in signs.items() if bound is not None]
    return f" {', '.join(found)}" if found else ""


def _default(field: structs.FieldInfo, defaults: Sequence[type[Struct]]) -> str:
    if field.required:
        return "required"
    own = [field, *(found for cls in defaults for found in structs.fields(cls) if found.name == field.name)]
    for found in own:
        value = found.default_factory() if found.default_factory is not NODEFAULT else found.default
        if value is not NODEFAULT and value is not None and not isinstance(value, Struct):
            return _written(value, _unit(field.name))
    return "–"


def _written(value: Any, unit: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"`{value}`" if value else '`""`'
    if isinstance(value, int | float):
        return f"{value:,g}" if value != int(value) else f"{int(value):,}{_readable(int(value), unit)}"
    assert not value, "a default that holds something needs words of its own: `computed`"
    return "none"


def _readable(value: int, unit: str) -> str:
    if unit == "bytes" and value % MIB == 0:
        return f" ({value // MIB} MiB)"
    if unit == "s" and value >= HOUR_S:
        return f" ({value // DAY_S} d)" if value % DAY_S == 0 else f" ({value // HOUR_S} h)"
    return ""


def _keys(form: type[Struct]) -> set[str]:
    return {field.encode_name for field in structs.fields(form)}


def _own_keys(form: type[Struct]) -> set[str]:
    """Of one kind of channel, besides what all have."""
    return _keys(form) - _keys(owners._ChannelForm)


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
