"""Pipelines that diffusers divides are themselves; what it cannot divide is refused in one line."""

import pytest
import torch

from gen.config.errors import UserError
from gen.models.interop.pipelines.divided import divide_tokens
from tests.pipelines.tiny import tiny
from tests.ranks import spread


@pytest.mark.slow
def test_two_processes_sample_as_one(tmp_path):
    """On a CPU, where diffusers is told that there is an accelerator; the tokens of these captions do not divide."""
    for rank in spread("tests.models.divided_shares:everything", 2, tmp_path):
        for name in ("flux", "wan"):
            torch.testing.assert_close(rank[f"{name} samples"], rank[f"{name} alone"], rtol=1e-4, atol=1e-5)


def test_refusals():
    with pytest.raises(
        UserError, match=r"^divide_tokens divides transformers, and a StableDiffusionPipeline has none$"
    ):
        divide_tokens(tiny("sd15"), 2)
    with pytest.raises(UserError, match=r"^divide_tokens: diffusers has no plan to divide a PixArtTransformer2DModel$"):
        divide_tokens(tiny("pixart"), 2)
    with pytest.raises(
        UserError, match=r"^divide_tokens: ulysses x ring = 2 x 1 on 1 process; start as many, more than one, "
    ):
        divide_tokens(tiny("flux"), 2)
