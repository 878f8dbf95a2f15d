"""Small runs of the objectives that align, and what their tests look at."""

import torch

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.training.objectives import Batch
from tests.gen.tiny import tiny

SMALL = {"name": "dit", "preset": "digits", "width": 16, "depth": 3, "heads": 2}
RUNS = {
    "repa": {"model": SMALL, "objective": {"name": "repa", "site": "hidden.1", "hidden": 32}},
    "urepa": {"model": {**SMALL, "patch": 4}, "objective": {"name": "urepa", "site": "hidden.1", "hidden": 32}},
    "reg": {"model": {**SMALL, "name": "reg"}, "objective": {"name": "reg", "site": "hidden.1", "hidden": 32}},
    "erw": {
        "model": SMALL,
        "objective": {"name": "erw", "site": "hidden.1", "warm_site": "hidden.0", "warmup": 4, "hidden": 32},
    },
}


def run_of(name, **changes):
    return tiny(**{**RUNS[name], **changes})


def batch_of(run, n=8, step=0, **cond):
    """The first items of the run's data."""
    data = run.data.open("train")
    x, y = (torch.stack([data[i][k] for i in range(n)]) for k in ("x", "y"))
    return Batch(x, {"y": y, **cond}, training_noise(0, 0, range(n)), step=step)


def roles_of(run, seed=0, live=True):
    """Denoisers of a fresh network, whose output is not zero if it is `live`, and of its head."""
    torch.manual_seed(seed)
    nets = run.objective.roles(run.model.build(), None)
    with torch.no_grad():
        for weight in nets["net"].parameters() if live else ():
            if weight.requires_grad and weight.std(correction=0) == 0:
                weight.add_(0.1 * torch.randn_like(weight))
    return {role: Denoiser(net, Flow(), Velocity()) for role, net in nets.items()}
