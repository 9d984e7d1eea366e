"""Far more records than memory holds, compared in parts: put into 1,024 parts by their first bits, read back by part.

A record begins with 16 evenly distributed bytes (an event id, a key's hash), so that equal ones of several spills lie
in parts of the same number, and the parts are of a size. What is held is bounded by ``held_bytes_max`` and by the
largest part: at 200 million events some 200,000 records.
"""

import mmap
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from struct import Struct as Layout
from typing import Any

PARTS = 1024
ID_BYTES = 16
HELD_BYTES_MAX = 16 * 1024 * 1024


class Spill:
    """Records of one layout. Small ones never reach the disk. Not safe for several threads at once."""

    def __init__(self, folder: Path, name: str, layout: str, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self._folder = folder
        self._name = name
        self.layout = Layout(layout)
        self._held_bytes_max = held_bytes_max
        self._parts = [bytearray() for _ in range(PARTS)]
        self._held_bytes = 0
        self._spilled: set[int] = set()
        self.count = 0

    def add(self, records: Iterable[bytes]) -> None:
        """Packed records."""
        parts = self._parts
        held = 0
        count = 0
        for record in records:
            parts[record[0] << 2 | record[1] >> 6] += record
            held += len(record)
            count += 1
        self.count += count
        self._held_bytes += held
        if self._held_bytes > self._held_bytes_max:
            self._flush()

    def part(self, number: int) -> Iterator[tuple[Any, ...]]:
        """The unpacked records of one part, in the order in which they came."""
        if number in self._spilled:
            with self._file(number).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                yield from self.layout.iter_unpack(mapped)
        yield from self.layout.iter_unpack(self._parts[number])

    def all(self) -> Iterator[tuple[Any, ...]]:
        for number in range(PARTS):
            yield from self.part(number)

    def close(self) -> None:
        """Give disk and memory back; the spill is empty then."""
        for number in self._spilled:
            self._file(number).unlink(missing_ok=True)
        self._spilled.clear()
        self._parts = [bytearray() for _ in range(PARTS)]
        self._held_bytes = self.count = 0

    def _flush(self) -> None:
        for number, part in enumerate(self._parts):
            if part:
                with self._file(number).open("ab") as file:
                    file.write(part)
                self._spilled.add(number)
                part.clear()
        self._held_bytes = 0

    def _file(self, number: int) -> Path:
        return self._folder / f"{self._name}.{number:04d}"


def packed_id(event_id: str) -> bytes:
    """16 bytes of an event id. One that is none of ours (foreign records carry what they like) is hashed to as many."""
    if len(event_id) == 2 * ID_BYTES:
        try:
            return bytes.fromhex(event_id)
        except ValueError:
            pass
    return blake2b(b"foreign:" + event_id.encode("utf-8", "surrogatepass"), digest_size=ID_BYTES).digest()
