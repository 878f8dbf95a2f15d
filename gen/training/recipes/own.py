"""Own pictures: a small U-Net for whatever is given as --data."""

from __future__ import annotations

from dataclasses import replace

from gen.training.recipes.photographs import photographs
from gen.training.run import Run

__all__ = ["own"]


def own() -> Run:
    """Train the U-Net of `photographs` on pictures of your own: `gen train own --data ./photos --size 32`.

    Channels, classes and their names follow from the pictures (docs/data.md), and so does the size if they are all of
    one. A path is data of its kind: a folder, a .zip, tar shards, a .csv or .jsonl list.

    Nothing was measured, as the data are yours. From 64 pixels on take more: `--model.width 64 --steps 20000`, or
    another model, such as `--model dit-s/4` or the published U-Net by `--model adm-64`.
    """
    return replace(photographs(), data=None)
