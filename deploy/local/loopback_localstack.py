"""Start LocalStack on the loopback address alone, with the bodies of its S3 objects in this stack's own folder.

Runs with the servers' interpreter. LocalStack has no setting for either: it listens on every address, and keeps bodies
in one folder that all stacks of a machine would share (deleting a bucket in one would delete the other's files).
"""

import functools
import os
from importlib import import_module


def main() -> None:
    endpoints = import_module("twisted.internet.endpoints")
    loopback = functools.partial(endpoints.TCP4ServerEndpoint, interface="127.0.0.1")
    setattr(endpoints, "TCP4ServerEndpoint", loopback)  # noqa: B010  a module has no such attribute to mypy
    s3 = import_module("localstack.services.s3.provider")
    if not hasattr(s3, "DEFAULT_S3_TMP_DIR"):
        raise SystemExit("this LocalStack keeps its S3 bodies elsewhere: look for DEFAULT_S3_TMP_DIR's successor")
    setattr(s3, "DEFAULT_S3_TMP_DIR", os.environ["TIDEMARK_S3_FOLDER"])  # noqa: B010
    import_module("localstack.runtime.main").main()


if __name__ == "__main__":
    main()
