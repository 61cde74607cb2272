"""``python -m awm.lab`` is the command ``awm-lab``."""

import sys

from awm.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
