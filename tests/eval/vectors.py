"""Seeded weights and pictures of the FID Inception, for which public tools' numbers are known."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gen.eval.features.lib.inception_net import shapes

__all__ = ["inception_state", "pictures"]


def inception_state() -> dict[str, Tensor]:
    """Random weights by torch-fidelity's names: one generator, names in the order of their bytes."""
    generator, state = np.random.default_rng(0), {}
    for name, shape in sorted(shapes().items()):
        if name.endswith("bn.weight"):
            value = np.ones(shape)
        elif name.endswith("running_var"):
            value = 0.5 + generator.random(shape)
        else:
            scale = 0.05 if name == "fc.weight" else 0.1
            scale = np.sqrt(2 / np.prod(shape[1:])) if name.endswith("conv.weight") else scale
            value = scale * generator.standard_normal(shape)
        state[name] = torch.from_numpy(np.asarray(value, np.float32))
    return state


def pictures() -> tuple[Tensor, Tensor]:
    """Samples and references, uint8 [48, 3, 32, 32]: random blocks of 4 x 4 pixels."""
    first, second = (np.random.default_rng(seed).integers(0, 256, (48, 8, 8, 3), np.uint8) for seed in (1, 2))
    sets = first, second // 2 + 64
    return tuple(torch.from_numpy(x.repeat(4, 1).repeat(4, 2)).permute(0, 3, 1, 2) for x in sets)
