"""A run of seconds, for tests of the loop; and a forged manifest, for tests of what reads it."""

import json

from gen.config.spec import digest
from gen.training.objectives.denoise import Denoising
from gen.training.run import Run, Sampler


def tiny(**changes):
    settings = {
        "model": {
            "name": "dit",
            "size": 8,
            "patch": 4,
            "channels": 1,
            "classes": 10,
            "width": 16,
            "depth": 1,
            "heads": 2,
        },
        "data": "digits",
        "objective": Denoising(),
        "optim": {"name": "adamw", "lr": 1e-3},
        "sampler": Sampler("euler", steps=2),
        "steps": 6,
        "batch_size": 8,
        "log_every": 1,
        "sample_every": 0,
        "validate_every": 3,
        "save_every": 0,
    }
    return Run(**(settings | changes))


def seal(folder, **changes):
    """Write a manifest with changes, and with the digest that it then needs."""
    info = json.loads((folder / "manifest.json").read_text()) | changes
    body = {k: v for k, v in info.items() if k != "sha256"}
    (folder / "manifest.json").write_text(json.dumps(body | {"sha256": digest(body)}))
