"""Install what's missing, then become ``python -m MODULE …`` of the product's environment."""

import os
import sys

from deploy.local import preflight
from deploy.local.install import InstallFailed, install


def main() -> None:
    module, *arguments = sys.argv[1:]
    try:
        python = str(install(lambda line: print(line, file=sys.stderr, flush=True)).product_python)
    except (InstallFailed, preflight.NotReady) as error:
        print(error, file=sys.stderr)
        sys.exit(3)
    os.execv(python, [python, "-m", module, *arguments])


if __name__ == "__main__":
    main()
