"""Where the lake's tables lie, and what their own columns are called. Pure."""

from typing import Annotated

from msgspec import Meta, Struct

DELETED = "_deleted"
ORDER = ("_rank", "_tiebreak", "_rev", "_event_id")
"""One key's events in order: the greatest wins."""
START_AT, END_AT, CURRENT = "__start_at", "__end_at", "__current"
HISTORY = "_history"
PURGED = "tidemark.purged_before_us"
"""A table's property: of deletes that were first shown before, in microseconds, rows were removed on request."""


class LakeSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As a field ``lake`` it reads ``TIDEMARK_LAKE_URI`` and ``TIDEMARK_LAKE_CATALOG``."""

    uri: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9]*://.*[^/]$")] = "s3a://tidemark-lake"
    """No slash at its end."""
    catalog: str = ""
    """A schema of Spark's catalog (``lake`` or ``main.lake``) in which tables and views are named, with a
    namespace as ``<namespace>__<entity>``; empty: in none."""


class Lake(Struct, frozen=True):
    """Table addresses. ``prefix`` is the namespace's: empty, or ends in ``/``."""

    uri: str
    prefix: str = ""

    def table(self, entity: str) -> str:
        """The current rows, one for each key."""
        return f"{self.uri}/{self.prefix}lake/{entity}"

    def history(self, entity: str) -> str:
        """All events with their intervals (SCD type 2)."""
        return f"{self.table(entity)}{HISTORY}"

    def quarantine(self, entity: str) -> str:
        """Raw rows that can't be merged, and why."""
        return f"{self.uri}/{self.prefix}quarantine/{entity}"

    def refresh(self, entity: str) -> str:
        """Where a full refresh builds what it will put in the table's place."""
        return f"{self.uri}/{self.prefix}refresh/{entity}"


def commit_file(table: str, version: int) -> str:
    """The log's file of one commit."""
    return f"{table}/_delta_log/{version:020d}.json"


def on_s3(uri: str) -> bool:
    return uri.startswith(("s3://", "s3a://"))


def for_s3_clients(uri: str) -> str:
    """Spark says ``s3a``, everybody else ``s3``."""
    return f"s3://{uri.removeprefix('s3a://')}" if uri.startswith("s3a://") else uri
