"""``python -m ddn_cvx`` is the command ``ddn-cvx``."""

import sys

from ddn_cvx.cli import main

if __name__ == "__main__":
    sys.exit(main())
