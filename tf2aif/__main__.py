"""`python -m tf2aif` and the `tf2aif` command."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
