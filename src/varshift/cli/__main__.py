"""``python -m varshift.cli``."""

import sys

from varshift.cli._main import main

if __name__ == "__main__":
    sys.exit(main())
