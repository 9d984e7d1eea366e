"""The rows of a table whose columns were widened, which ``deltalake`` can open and not scan ("Unsupported table
features required: [TypeWidening]").

Its log is replayed here, newest commit first, down to a checkpoint; Parquet is polars' part. Files, deletion vectors
and column mapping are as Delta's protocol has them: <https://github.com/delta-io/delta/blob/master/PROTOCOL.md>. What
it allows and no table of ours has (V2 or multi-part checkpoints, files of other tables) is refused, not passed over.
Once ``deltalake`` scans such tables, this module can go.
"""

import base64
import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import unquote
from uuid import UUID

import msgspec
import polars as pl
from msgspec import Struct
from pyroaring import BitMap64

from shared.lake.layout import commit_file

ROWS_PER_BATCH = 8192
DELETIONS_BYTES_MAX = 256 * 1024 * 1024
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_FROM_Z85 = str.maketrans(_Z85, _B85)
_UUID_CHARS = 20
_PORTABLE = 1681511377
_PRIMITIVES: Mapping[str, pl.DataType] = {
    "byte": pl.Int8(),
    "short": pl.Int16(),
    "integer": pl.Int32(),
    "long": pl.Int64(),
    "float": pl.Float32(),
    "double": pl.Float64(),
    "boolean": pl.Boolean(),
    "string": pl.String(),
    "binary": pl.Binary(),
    "date": pl.Date(),
    "timestamp": pl.Datetime("us", "UTC"),
    "timestamp_ntz": pl.Datetime("us"),
}


class UnknownToReader(Exception):
    """The table holds what this reader does not know."""


class Files(Protocol):
    """A table's own store; paths below its root. Raises ``FileNotFoundError``."""

    def open_input_file(self, path: str) -> Any: ...


class Column(Struct, frozen=True):
    """``stored``: its name in the Parquet files. ``type``: one of Delta's primitives, such as ``decimal(10,2)``."""

    name: str
    stored: str
    type: str

    @property
    def dtype(self) -> pl.DataType | None:
        """``None``: it is no primitive."""
        if self.type.startswith("decimal("):
            precision, scale = self.type[len("decimal(") : -1].split(",")
            return pl.Decimal(int(precision), int(scale))
        return _PRIMITIVES.get(self.type)


class Vector(Struct, frozen=True, rename="camel"):
    """Where a file's deletion vector is: the numbers of its rows that are deleted."""

    storage_type: str
    path_or_inline_dv: str
    size_in_bytes: int
    cardinality: int
    offset: int | None = None


class File(Struct, frozen=True, rename="camel"):
    path: str
    deletion_vector: Vector | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What the log knows it by: a file is added anew with each change of its deletion vector."""
        vector = self.deletion_vector
        return (self.path, *((vector.storage_type, vector.path_or_inline_dv, str(vector.offset)) if vector else ()))


class _Action(Struct):
    add: File | None = None
    remove: File | None = None


_decode_action = msgspec.json.Decoder(_Action).decode


def rows(
    root: str,
    files: Files,
    options: Mapping[str, str],
    version: int,
    columns: Sequence[Column],
    names: Sequence[str],
    where: str = "",
) -> Iterator[list[tuple[Any, ...]]]:
    """As ``LakeTable.rows``. ``columns``: those of the table; only primitive ones can be asked for.

    Raises ``UnknownToReader``, ``FileNotFoundError``, and whatever polars raises for a file that it can't read.
    """
    known = [(one, one.dtype) for one in columns if one.dtype is not None]
    if unknown := [one for one in columns if one.name in names and one.dtype is None]:
        raise UnknownToReader(f"column {unknown[0].name} of type {unknown[0].type}")
    for file in live_files(files, version):
        frame = pl.scan_parquet(
            f"{root}/{file.path}", storage_options=dict(options) or None, glob=False, hive_partitioning=False
        )
        if file.deletion_vector is not None:
            gone = pl.LazyFrame({"": deleted(files, file.deletion_vector)}, schema={"": pl.UInt32})
            frame = frame.with_row_index("").join(gone, on="", how="anti")
        stored = frame.collect_schema().names()
        frame = frame.select(
            (pl.col(one.stored) if one.stored in stored else pl.lit(None)).cast(dtype).alias(one.name)
            for one, dtype in known
        )
        if where:
            frame = pl.SQLContext(source=frame).execute(f"SELECT * FROM source WHERE {where}")  # noqa: S608  # our own
        for batch in frame.select(names).collect_batches(chunk_size=ROWS_PER_BATCH):
            yield batch.rows()


def live_files(files: Files, version: int) -> list[File]:
    """The data files of a version, each with its deletion vector."""
    settled: set[tuple[str, ...]] = set()
    live: list[File] = []
    for actions in _newest_first(files, version):
        added = [action.add for action in actions if action.add is not None]
        removed = [action.remove for action in actions if action.remove is not None]
        live += [file for file in added if file.identity not in settled]
        settled.update(file.identity for file in (*added, *removed))
    return [_located(file) for file in live]


def _newest_first(files: Files, version: int) -> Iterator[list[_Action]]:
    """The actions of each commit, and at the end those of a checkpoint, if there is one."""
    for at in range(version, -1, -1):
        checkpoint = _read(files, commit_file("", at).lstrip("/").replace(".json", ".checkpoint.parquet"))
        if checkpoint is not None:
            yield [_Action(add=file) for file in _checkpointed(checkpoint)]
            return
        commit = _read(files, commit_file("", at).lstrip("/"))
        if commit is None:
            raise UnknownToReader(f"commit {at} is gone from the log, and no checkpoint in one file stands before it")
        yield [_decode_action(line) for line in commit.splitlines() if line]


def _checkpointed(content: bytes) -> list[File]:
    adds = pl.read_parquet(io.BytesIO(content), columns=["add"])["add"].drop_nulls()
    if adds.is_empty():
        return []
    wanted = [field for field in ("path", "deletionVector") if field in adds.struct.fields]
    found = adds.to_frame("add").select(pl.col("add").struct.field(*wanted)).to_dicts()
    return [msgspec.convert(one, File) for one in found]


def _located(file: File) -> File:
    path = unquote(file.path)
    if "://" in path or path.startswith("/"):
        raise UnknownToReader(f"the data file {path} lies outside the table")
    return File(path, file.deletion_vector)


def deleted(files: Files, vector: Vector) -> list[int]:
    """The rows that it deletes, by number, rising."""
    if not 4 <= vector.size_in_bytes <= DELETIONS_BYTES_MAX:
        raise UnknownToReader(f"a deletion vector of {vector.size_in_bytes} bytes; {DELETIONS_BYTES_MAX} are read")
    content = _vector_bytes(files, vector)
    if len(content) != vector.size_in_bytes:
        raise UnknownToReader(f"a deletion vector that is cut after {len(content)} of {vector.size_in_bytes} bytes")
    (magic,) = struct.unpack_from("<i", content)
    if magic != _PORTABLE:
        raise UnknownToReader(f"a deletion vector of format {magic}")
    numbers = BitMap64.deserialize(content[4:])
    if len(numbers) != vector.cardinality:  # first: a few bytes can name billions
        raise UnknownToReader(f"a deletion vector of {len(numbers)} rows that should name {vector.cardinality}")
    return list(numbers)


def _vector_bytes(files: Files, vector: Vector) -> bytes:
    if vector.storage_type == "i":
        return _from_z85(vector.path_or_inline_dv)[: vector.size_in_bytes]
    if vector.storage_type != "u":
        raise UnknownToReader(f"a deletion vector outside the table: {vector.path_or_inline_dv}")
    folder, name = vector.path_or_inline_dv[:-_UUID_CHARS], vector.path_or_inline_dv[-_UUID_CHARS:]
    path = f"{folder}{'/' if folder else ''}deletion_vector_{UUID(bytes=_from_z85(name))}.bin"
    file = files.open_input_file(path)
    file.seek(vector.offset or 0)
    size = int.from_bytes(file.read(4), "big")
    if size != vector.size_in_bytes:
        raise UnknownToReader(f"{path}: a deletion vector of {size} bytes that should have {vector.size_in_bytes}")
    return bytes(file.read(size))


def _from_z85(text: str) -> bytes:
    return base64.b85decode(text.translate(_FROM_Z85))


def _read(files: Files, path: str) -> bytes | None:
    try:
        file = files.open_input_file(path)
        return bytes(file.read(file.size()))
    except FileNotFoundError:
        return None
