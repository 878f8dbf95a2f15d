"""What each process of tests/models/interop/pipelines/test_divided.py computes."""

from unittest.mock import patch

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.sampling import integrate
from gen.models.interop.pipelines.divided import divide_tokens
from gen.models.interop.pipelines.listening import listen
from gen.models.interop.pipelines.network import denoiser_of
from gen.samplers.solvers.euler import Euler
from tests.pipelines.tiny import call, tiny


@torch.no_grad()
def everything():
    found = {}
    for name in ("flux", "wan"):
        pipe = tiny(name)
        heard = listen(pipe, **call(name))
        f = denoiser_of(heard)

        def sampled(f=f, heard=heard):
            grid = [f.path.t1 * part for part in (1.0, 0.6, 0.3)]
            return integrate(f, heard.latents, grid, Euler(), cond=heard.cond)

        found[f"{name} alone"] = sampled()
        with pytest.raises(
            UserError, match=r"^divide_tokens: diffusers gives each process an accelerator of its own, and"
        ):
            divide_tokens(pipe, 2)
        with pytest.raises(
            UserError, match=r"^divide_tokens: ulysses x ring = 2 x 2 on 2 processes; start as many, more than one"
        ):
            divide_tokens(pipe, 2, 2)
        with patch("torch.accelerator.device_count", lambda: 1):  # which diffusers divides by
            divide_tokens(pipe, 2)
            with pytest.raises(UserError, match=r"cannot divide this \w+ \(Parallelism is already applied"):
                divide_tokens(pipe, 2)
        found[f"{name} samples"] = sampled()
    return found
