"""The code of scripts/VERB.py: `gen VERB` from a checkout, without an installation."""

import sys
from pathlib import Path


def main(script: str) -> None:
    """Run the verb that a script is named after, and exit."""
    path = Path(script).resolve()
    sys.path[0] = str(path.parents[1])  # the checkout in place of scripts/, whose names would hide other modules
    from gen.cli import main

    raise SystemExit(main([path.stem.replace("_", "-"), *sys.argv[1:]]))
