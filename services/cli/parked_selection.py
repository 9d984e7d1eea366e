"""From what was typed to the events that are meant."""

from argparse import Namespace
from collections.abc import Sequence

from services.cli.edges import Edges
from services.cli.outcome import FINDING, OK, Outcome
from shared.config import ConfigError, guess
from shared.events.model import Reason
from shared.parked.model import State
from shared.parked.selection import IDS_MAX, Selection

FILTERS = ("entity", "reason", "state", "group", "path", "owner", "key", "id", "older_than", "newer_than")


def selection_of(edges: Edges, arguments: Namespace, now_us: int) -> Selection:
    """Ages become times, so that they mean the same later. Raises ``ConfigError``: an entity isn't in the folder."""
    ids = tuple(dict.fromkeys(arguments.id or ()))
    if len(ids) > IDS_MAX:
        raise ConfigError([f"--id: at most {IDS_MAX} at once; use --group, --path or --entity for more"])
    return Selection(
        entities=known(edges, arguments.entity),
        reasons=tuple(Reason(reason) for reason in dict.fromkeys(arguments.reason or ())),
        state=State(arguments.state) if arguments.state else None,
        owner=arguments.owner,
        path=arguments.path,
        key=arguments.key,
        group=arguments.group,
        ids=ids,
        since_us=None if arguments.newer_than is None else now_us - arguments.newer_than * 1_000_000,
        until_us=None if arguments.older_than is None else now_us - arguments.older_than * 1_000_000,
    )


def known(edges: Edges, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """All entities of the folder where none is named."""
    names = list(edges.entities.entities)
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise ConfigError([f"--entity {name}: not in the folder{guess(name, names)}" for name in unknown])
    return tuple(dict.fromkeys(wanted or names))


def filters_given(arguments: Namespace) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in FILTERS if getattr(arguments, name, None) is not None]


def demand_filter(arguments: Namespace) -> None:
    """Everything is only meant by who says so. Raises ``ConfigError``."""
    given = filters_given(arguments)
    if not given and not arguments.all:
        raise ConfigError([f"parked {arguments.action}: say which events (--group, --entity, --id, ...), or --all"])
    if given and arguments.all:
        raise ConfigError([f"--all goes with no filter, but {', '.join(given)} is given"])


def nothing(selection: Selection) -> Outcome:
    """A finding only where single events were named."""
    exit_code = FINDING if selection.ids else OK
    return Outcome(exit_code=exit_code, lines=["nothing that is parked fits"], document={"total": 0, "counts": {}})
