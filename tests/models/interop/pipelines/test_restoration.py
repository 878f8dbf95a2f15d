"""Restoration by pipelines of diffusers: y = A decode(z) by their own autoencoder, and A of their latents."""

from __future__ import annotations

import pytest
import torch

import gen
from gen.config.errors import UserError
from tests.gen.test_latent_restoration import BY_DERIVATIVE, METHODS, spec
from tests.pipelines.tiny import FAMILIES, call, tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers' schedulers


def loaded(name):
    given = {key: value for key, value in call(name).items() if key not in ("generator", "output_type")}
    return gen.load_diffusers(tiny(name), **given)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_with_a_gradient_are_those_of_the_pipeline(name):
    model = loaded(name).pipeline
    z = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    seen = model.decoder.decode_with_gradient(z)
    torch.testing.assert_close(seen.detach().clamp(-1, 1), model.decoder.decode(z.detach()), rtol=0, atol=1e-4)
    assert torch.autograd.grad(seen.sum(), z)[0].abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_every_method_runs_or_refuses_in_one_line(name):
    """On two prompts; on pictures through the decoder, and on latents, which are of another size than pictures."""
    whole, operator = loaded(name), {"name": "pool", "factor": 2}
    model, cond = whole.pipeline, whole.heard.cond
    pictures = torch.linspace(-1, 1, 2 * 3 * 8 * 4).reshape(2, 3, 8, 4)
    latents = torch.linspace(-1, 1, 2 * 4 * 4 * 2).reshape(2, 4, 4, 2)
    for method in METHODS:
        try:
            made = model.restore(pictures, operator, spec(method), cond=cond, autoencoder=model.decoder)
            assert made.x.shape == (2, 3, 16, 8) and made.x.isfinite().all(), method
            assert method in BY_DERIVATIVE
        except UserError as error:
            assert method not in BY_DERIVATIVE and "\n" not in str(error), method
        made = model.restore(latents, operator, spec(method), cond=cond)
        assert made.x.shape == (2, 4, 8, 4) and made.x.isfinite().all(), method
    assert not any(p.grad is not None for p in model.denoiser.net.parameters())
