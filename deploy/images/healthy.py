"""Exit code 0 if the address answers 200: the health check of a container, with nothing but Python's own library.

``python -I healthy.py [URL]``; without one, ``/live`` on the port of the service. ``-I``: PYTHONPATH is not read.
"""

import os
import sys
import urllib.request

TIMEOUT_S = 4.0


def main(arguments: list[str]) -> int:
    url = arguments[0] if arguments else f"http://127.0.0.1:{os.environ.get('TIDEMARK_HTTP_PORT', '8080')}/live"
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with no_proxy.open(url, timeout=TIMEOUT_S) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:  # urllib's errors are some, a status of 503 among them
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
