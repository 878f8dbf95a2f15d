"""A run of seconds, for tests of the loop."""

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
