"""A source that costs the poller's measurement nothing: prepared events, served by a process of its own.

``python -m tests.bench.paged_source PORT EVENTS [DELAY_MS]``; ``GET /cdc?entity=…&updatedSince=<epoch ms>&limit=N``,
inclusive, ascending.
"""

import asyncio
import sys
from email.utils import formatdate
from urllib.parse import parse_qs, urlsplit

from tests.bench.sample import FIRST_US, STEP_US, raw


async def serve(port: int, events: int, delay_s: float = 0) -> None:
    """Answer until killed, each time after ``delay_s``. Prints one line when it listens."""
    rows = [raw(number) for number in range(events)]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            await asyncio.sleep(delay_s)
            query = parse_qs(urlsplit(head.split(b" ", 2)[1].decode()).query)
            since_us = int(query["updatedSince"][0]) * 1_000
            first = max(0, -(-(since_us - FIRST_US) // STEP_US))
            body = b"[" + b",".join(rows[first : first + int(query.get("limit", ["1000"])[0])]) + b"]"
            writer.write(
                f"HTTP/1.1 200 OK\r\nDate: {formatdate(usegmt=True)}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    print("listening", flush=True)
    async with server:
        await server.serve_forever()


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1_000 if len(sys.argv) > 3 else 0))
