"""Reads Delta tables without Spark, for audits and traces: one version, its positions, its rows in bounded batches.

By ``deltalake``'s QueryBuilder, the one of its readers that copes with deletion vectors and column mapping. All calls
block: use a thread. Never writes (a second writer's log store is not ours).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError, TableNotFoundError

from shared.lake.layout import for_s3_clients, on_s3
from shared.lake.positions import Commit, Positions, commit_of, positions_at

HISTORY_FIRST = 16
"""Commits read at first; each further look reads twice as many."""
TEXT_CHARS_MAX = 500
_DECORATION = re.compile(r"\x1b\[[0-9;]*m|↳")
_PASSED_ON = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
)


class LakeUnavailable(Exception):
    """The table could not be read: its store does not answer, or a file that the version needs is gone."""


class LakeTable:
    """One version of a table, pinned: later commits change nothing of it. Raises ``LakeUnavailable``."""

    def __init__(self, uri: str, environ: Mapping[str, str], table: DeltaTable) -> None:
        self.uri = uri
        self.version: int = table.version()
        self._table = table
        self._environ = environ
        self._commits: dict[int, Commit] = {}
        self._times_ms: dict[int, int] = {}
        self._oldest_read = self.version + 1
        self._exhausted = False

    @classmethod
    def open(cls, uri: str, environ: Mapping[str, str]) -> "LakeTable | None":
        """Its newest version; ``None``: there is no table. ``uri`` as ``layout.Lake`` gives it."""
        try:
            return cls(uri, environ, _opened(uri, environ))
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            if "NoSuchBucket" in str(error):
                return None
            raise _unavailable(uri, error) from error

    def newest(self) -> "LakeTable":
        """The table as it is now, pinned anew."""
        found = LakeTable.open(self.uri, self._environ)
        if found is None:
            raise LakeUnavailable(f"{self.uri}: the table is gone")
        return found

    @property
    def columns(self) -> list[str]:
        return [field.name for field in self._table.schema().fields]

    def positions(self) -> Positions:
        """Of this version. Usually one commit is read."""
        return positions_at(self.version, self.commit)

    def commit(self, version: int) -> Commit | None:
        """``None``: the log does not have it any more."""
        while version < self._oldest_read and not self._exhausted:
            self._read_more()
        return self._commits.get(version)

    def committed_ms(self, version: int) -> int | None:
        """When, by the writer's clock."""
        return self._times_ms.get(version) if self.commit(version) is not None else None

    def commits(self) -> Iterator[Commit]:
        """Newest first, as far back as the log goes."""
        version = self.version
        while (commit := self.commit(version)) is not None:
            yield commit
            version -= 1

    def rows(self, columns: Sequence[str], where: str = "") -> Iterator[list[tuple[Any, ...]]]:
        """The named columns of all rows, some thousand at a time; ``where``: SQL over columns in double quotes."""
        names = ", ".join(quoted(name) for name in columns)
        sql = f"SELECT {names} FROM source{f' WHERE {where}' if where else ''}"  # noqa: S608  # names of our own
        try:
            for batch in QueryBuilder().register("source", self._table).execute(sql):
                cells = [batch.column(number).to_pylist() for number in range(len(columns))]
                yield list(zip(*cells, strict=True))
        except (DeltaError, OSError, ValueError) as error:
            raise _unavailable(self.uri, error) from error

    def _read_more(self) -> None:
        count = max(HISTORY_FIRST, 2 * len(self._commits))
        try:
            found = self._table.history(count)
        except (DeltaError, OSError) as error:
            raise _unavailable(self.uri, error) from error
        for info in found:
            version = int(info["version"])
            self._commits[version] = commit_of(version, info)
            self._times_ms[version] = int(info.get("timestamp") or 0)
            self._oldest_read = min(self._oldest_read, version)
        self._exhausted = len(found) < count


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def text_literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def storage_options(uri: str, environ: Mapping[str, str]) -> dict[str, str]:
    """How the object store is reached, from ``AWS_*``. Local tables need nothing."""
    if not on_s3(uri):
        return {}
    options = {name: environ[name] for name in _PASSED_ON if environ.get(name)}
    endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["AWS_ENDPOINT_URL"] = endpoint
        options["AWS_ALLOW_HTTP"] = "true" if endpoint.startswith("http://") else "false"
    return options


def _opened(uri: str, environ: Mapping[str, str]) -> DeltaTable:
    return DeltaTable(for_s3_clients(uri), storage_options=storage_options(uri, environ))


def _unavailable(uri: str, error: Exception) -> LakeUnavailable:
    text = " ".join(_DECORATION.sub("", str(error)).split())
    return LakeUnavailable(f"{uri}: {text[:TEXT_CHARS_MAX]}")
