"""The program `python -m sandboxsdk`."""

from __future__ import annotations

import sys

from sandboxsdk.cli import main

if __name__ == "__main__":
    sys.exit(main())
