"""`gen bench` without an installation: python scripts/bench.py --help."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, in place of this folder
    from gen.cli import main

    raise SystemExit(main(["bench", *sys.argv[1:]]))
