"""Trackers: the settings and pictures of a run, for accelerate's TensorBoard or W&B, beside its metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.config.spec import Json
from gen.training.run import Run, run_spec

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["PROJECT", "log_sheet", "start_trackers"]

PROJECT = "gen"  # one for all runs; a run goes by the name of its folder


def start_trackers(accelerator: Accelerator, run: Run, folder: Path, step: int) -> None:
    """Start a run's trackers, with all settings; what an earlier, longer line wrote after `step` is dropped.

    Args:
        accelerator: made with run.trackers.
        run: its settings are logged by dotted key.
        folder: the run's.
        step: updates done.
    """
    own: dict[str, Json] = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": folder.name, "dir": str(folder)},
    }
    accelerator.init_trackers(PROJECT, dotted(run_spec(run)), {name: own.get(name, {}) for name in run.trackers})


def dotted(spec: Json, prefix: str = "") -> dict[str, bool | int | float | str]:
    """Return a spec's values by dotted key; what is no number or text as JSON.

    Args:
        spec: nested mappings.
        prefix: of all keys.
    """
    flat: dict[str, bool | int | float | str] = {}
    for key, value in spec.items():
        if isinstance(value, dict):
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
    return flat


def log_sheet(accelerator: Accelerator, file: Path, step: int) -> None:
    """Log a sheet of samples to every tracker that takes pictures.

    Args:
        accelerator: with trackers.
        file: a .png; anything else is no sheet.
        step: updates done.
    """
    if file.suffix != ".png" or not accelerator.trackers:
        return
    import numpy as np
    from PIL import Image

    with Image.open(file, formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("RGB"))
    for tracker in accelerator.trackers:
        form: Any = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        if hasattr(tracker, "log_images"):
            tracker.log_images({"samples": pixels[None]}, step=step, **form)
