"""python -m stdserve; also under another name, as python -m yourapp._vendor.stdserve."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
