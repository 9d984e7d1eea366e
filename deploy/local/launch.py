"""Install what's missing, then become ``python -m MODULE …`` of the product's environment.

``--spark MODULE …``: of the one that has Spark too.
"""

import os
import sys

from deploy.local import preflight
from deploy.local.install import InstallFailed, install


def main() -> None:
    spark = sys.argv[1] == "--spark"
    module, *arguments = sys.argv[2 if spark else 1 :]
    try:
        installed = install(lambda line: print(line, file=sys.stderr, flush=True), spark=spark)
    except (InstallFailed, preflight.NotReady) as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    python = str(installed.spark_python if spark else installed.product_python)
    os.execv(python, [python, "-m", module, *arguments])


if __name__ == "__main__":
    main()
