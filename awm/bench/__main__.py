"""``python -m awm.bench`` is the command ``awm-bench``."""

import sys

from awm.bench.cli import main

if __name__ == "__main__":
    sys.exit(main())
