"""Rows → one zstd frame. Pure, and bounded: a small object costs its rows, a large one a compressor and its output."""

import zstandard

LEVEL = 3
STREAM_BYTES = 1024 * 1024
"""Below this many bytes rows are kept as they are: a compressor holds megabytes, and there may be many partitions."""
COMPRESSOR_BYTES = 4 * 1024 * 1024
"""What one compressor at level 3 holds, about."""


class Pack:
    """The body of one object, growing. Not for two threads at once."""

    def __init__(self) -> None:
        self._rows: list[bytes] = []
        self._rows_bytes = 0
        self._frame: zstandard.ZstdCompressionObj | None = None
        self._parts: list[bytes] = []
        self.compressed_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._rows_bytes + self.compressed_bytes + (COMPRESSOR_BYTES if self._frame is not None else 0)

    def add(self, rows: bytes) -> None:
        self._rows.append(rows)
        self._rows_bytes += len(rows)
        if self._rows_bytes >= STREAM_BYTES:
            if self._frame is None:
                self._frame = zstandard.ZstdCompressor(level=LEVEL).compressobj()
            for waiting in self._rows:
                self._keep(self._frame.compress(waiting))
            self._rows, self._rows_bytes = [], 0

    def finish(self) -> bytes:
        """The whole body, one frame (readers of several frames in one file are rare). The pack is used up."""
        if self._frame is None:
            return zstandard.ZstdCompressor(level=LEVEL).compress(b"".join(self._rows))
        for waiting in self._rows:
            self._keep(self._frame.compress(waiting))
        self._keep(self._frame.flush())
        self._frame = None
        return b"".join(self._parts)

    def _keep(self, part: bytes) -> None:
        if part:
            self._parts.append(part)
            self.compressed_bytes += len(part)
