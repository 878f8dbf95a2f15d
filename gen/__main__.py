"""`python -m gen VERB ...` is `gen VERB ...`."""

import sys
from pathlib import Path

import gen

if __name__ == "__main__" and not sys.flags.safe_path:  # python -m puts the current folder first: its files hide ours
    here = sys.path.pop(0)
    sys.path += [here] if here == str(Path(gen.__file__).parents[1]) else []  # a checkout, which is not installed

from gen.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
