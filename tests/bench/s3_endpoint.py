"""``python -m tests.bench.s3_endpoint PORT``: an S3 endpoint that costs little, to measure a sink and not an emulator.

It keeps metadata and throws bodies away, except small ones. PUT with ``If-None-Match``, HEAD, GET and LIST: no more.
"""

import sys
from xml.sax.saxutils import escape

from aiohttp import web

KEPT_BYTES_MAX = 64 * 1024


class Bucket:
    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.written_bytes = 0

    async def put(self, request: web.Request) -> web.Response:
        body = await request.read()
        key = request.match_info["key"]
        if key in self.objects and request.headers.get("If-None-Match") == "*":
            return _error(412, "PreconditionFailed")
        metadata = {name: value for name, value in request.headers.items() if name.lower().startswith("x-amz-meta-")}
        self.objects[key] = (body if len(body) <= KEPT_BYTES_MAX else b"", metadata)
        self.written_bytes += len(body)
        return web.Response(headers={"ETag": '"0"'})

    async def get(self, request: web.Request) -> web.Response:
        """HEAD too: aiohttp answers it without the body."""
        if (found := self.objects.get(request.match_info["key"])) is None:
            return _error(404, "NoSuchKey")
        return web.Response(body=found[0], headers=found[1])

    async def list(self, request: web.Request) -> web.Response:
        prefix, after = request.query.get("prefix", ""), request.query.get("start-after", "")
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        limit = int(request.query.get("max-keys", "1000"))
        items = "".join(f"<Contents><Key>{escape(key)}</Key></Contents>" for key in keys[:limit])
        cut = "true" if len(keys) > limit else "false"
        return _xml(f"<ListBucketResult><IsTruncated>{cut}</IsTruncated>{items}</ListBucketResult>", 200)


def _error(status: int, code: str) -> web.Response:
    return _xml(f"<Error><Code>{code}</Code><Message>{code}</Message></Error>", status)


def _xml(text: str, status: int) -> web.Response:
    return web.Response(
        text=f'<?xml version="1.0" encoding="UTF-8"?>{text}', status=status, content_type="application/xml"
    )


def main() -> None:
    bucket = Bucket()
    app = web.Application(client_max_size=256 * 1024 * 1024)
    app.router.add_get("/{bucket}", bucket.list)
    app.router.add_get("/{bucket}/", bucket.list)
    app.router.add_put("/{bucket}/{key:.+}", bucket.put)
    app.router.add_get("/{bucket}/{key:.+}", bucket.get)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)


if __name__ == "__main__":
    main()
