"""`gen train` without an installation: python scripts/train.py --help.

On several processes, with or without GPUs: accelerate launch --multi_gpu --num_processes 2 scripts/train.py digits
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, in place of this folder
    from gen.cli import main

    raise SystemExit(main(["train", *sys.argv[1:]]))
