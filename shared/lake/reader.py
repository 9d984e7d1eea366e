"""Reads Delta tables without Spark, for audits and traces: one version, its positions, its rows in bounded batches.

By ``deltalake``'s QueryBuilder, the one of its readers that copes with deletion vectors and column mapping; tables
with widened columns, which it refuses, by ``widened``. All calls block: use a thread. Never writes (a second writer's
log store is not ours).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from deltalake import DeltaTable, QueryBuilder
from deltalake._internal import DeltaFileSystemHandler  # the table's own store: there is no public way to one file
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.schema import Field
from polars.exceptions import PolarsError

from shared.lake import widened
from shared.lake.layout import PURGED, commit_file, for_s3_clients, on_s3
from shared.lake.positions import Commit, Positions, commit_of, positions_at

HEAD_BYTES = 64 * 1024
"""Of a commit's file: its note stands in the first action, as a rule."""
TEXT_CHARS_MAX = 500
WIDENED = {"typeWidening", "typeWidening-preview"}
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
        self._files = DeltaFileSystemHandler(for_s3_clients(uri), storage_options(uri, environ))
        self._infos: dict[int, dict[str, Any] | None] = {}

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

    @property
    def purged_before_us(self) -> int:
        """Rows of deletes that were first shown before were removed on request; 0: of none."""
        return int(self._table.metadata().configuration.get(PURGED, 0))

    def positions(self) -> Positions:
        """Of this version. Usually one commit is read."""
        return positions_at(self.version, self.commit)

    def commit(self, version: int) -> Commit | None:
        """``None``: the log does not have it any more."""
        info = self._info(version)
        return None if info is None else commit_of(version, info)

    def committed_ms(self, version: int) -> int | None:
        """When, by the writer's clock."""
        info = self._info(version)
        return None if info is None else int(info.get("timestamp") or 0)

    def commits(self) -> Iterator[Commit]:
        """Newest first, as far back as the log goes."""
        version = self.version
        while (commit := self.commit(version)) is not None:
            yield commit
            version -= 1

    def rows(self, columns: Sequence[str], where: str = "") -> Iterator[list[tuple[Any, ...]]]:
        """The named columns of all rows, some thousand at a time; ``where``: SQL over columns in double quotes."""
        if WIDENED & set(self._table.protocol().reader_features or ()):
            yield from self._widened_rows(columns, where)
            return
        names = ", ".join(quoted(name) for name in columns)
        sql = f"SELECT {names} FROM source{f' WHERE {where}' if where else ''}"  # noqa: S608  # names of our own
        batches = QueryBuilder().register("source", self._table).execute(sql)
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # the engine's own failures come as plain ``Exception``
                raise _unavailable(self.uri, error) from error
            if batch is None:
                return
            cells = [batch.column(number).to_pylist() for number in range(len(columns))]
            yield list(zip(*cells, strict=True))

    def _widened_rows(self, columns: Sequence[str], where: str) -> Iterator[list[tuple[Any, ...]]]:
        root, options = for_s3_clients(self.uri), storage_options(self.uri, self._environ)
        if self._table.metadata().partition_columns:
            raise LakeUnavailable(f"{self.uri}: widened and partitioned, which no table of ours is; it can't be read")
        known = [_column(field) for field in self._table.schema().fields]
        try:
            yield from widened.rows(root, self._files, options, self.version, known, columns, where)
        except (widened.UnknownToReader, PolarsError, DeltaError, OSError, ValueError, msgspec.MsgspecError) as error:
            raise _unavailable(self.uri, error) from error

    def _info(self, version: int) -> dict[str, Any] | None:
        """The ``commitInfo`` of a version: from its file, since deltalake's ``history`` counts from the log's newest
        commit, whatever version the table is at."""
        if version not in self._infos:
            self._infos[version] = self._read_info(version)
        return self._infos[version]

    def _read_info(self, version: int) -> dict[str, Any] | None:
        path = commit_file("", version).lstrip("/")
        try:
            file = self._files.open_input_file(path)
            head = file.read(HEAD_BYTES)
            found = _commit_info(head.splitlines()[: None if len(head) < HEAD_BYTES else -1])
            if found is None and len(head) == HEAD_BYTES:
                found = _commit_info((head + file.read(file.size() - HEAD_BYTES)).splitlines())
        except FileNotFoundError:
            return None
        except (DeltaError, OSError, msgspec.MsgspecError) as error:
            raise _unavailable(self.uri, error) from error
        return {} if found is None else found


def _column(field: Field) -> widened.Column:
    stored = field.metadata.get("delta.columnMapping.physicalName", field.name)
    return widened.Column(field.name, str(stored), getattr(field.type, "type", str(field.type)))


class _Action(msgspec.Struct):
    commitInfo: dict[str, Any] | None = None


_decode_action = msgspec.json.Decoder(_Action).decode


def _commit_info(lines: Sequence[bytes]) -> dict[str, Any] | None:
    return next((info for line in lines if (info := _decode_action(line).commitInfo) is not None), None)


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
