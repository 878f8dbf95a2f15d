"""Networks on an x that is higher or wider than the one they were made for: those that say so, and no others."""

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.net import members, takes_shape
from gen.models.dit import DiT
from gen.models.layers.embed import grid_embedding
from tests.models.test_families import FAMILIES, WRAPPERS, digits, inputs, random_net, rows_of

OTHERS = ("dit", "edm2", "mmdit", "pixart", "song_unet", "unet", *WRAPPERS)  # what wraps a DiT takes what that does


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_takes_the_sizes_that_it_says(name):
    spec = digits(name)
    step = getattr(spec, "size_step", None)
    assert (name in OTHERS) == (step is not None)
    net = random_net(spec)
    x, t, cond = inputs(net)
    if step is None:
        if len(members(net).state_shape) == 3:
            wider = torch.cat([x, x], 3)
            assert not takes_shape(spec, wider.shape[1:])
            with pytest.raises(UserError, match="x has shape"):
                net(wider, t, cond)
        return
    for size in [(12, 8), (4, 20), (16, 16)]:
        assert takes_shape(spec, (1, *size))
        x = torch.randn(3, 1, *size, dtype=torch.float64)
        out = net(x, t, cond)
        assert out.shape == x.shape and out.std() > 0
        torch.testing.assert_close(net(x[1:2], t[1:2], rows_of(cond, slice(1, 2))), out[1:2])
    for shape in [(3, 8, 8), (1, 8, 9), (1, 0, 8), (8, 8)]:
        assert not takes_shape(spec, shape)
    with pytest.raises(UserError, match=f"multiples of {step}"):
        net(torch.randn(3, 1, 9, 8), t, cond)


def test_positions_of_a_dit_are_spread_over_the_range_it_was_made_for():
    net = DiT(size=(8, 16), patch=2, channels=1, classes=0, width=16, depth=1, heads=2).build()
    assert net.positions((8, 16)) is net.pos_embed
    double = net.positions((16, 32))[0].unflatten(0, (8, 16))
    torch.testing.assert_close(double[::2, ::2].flatten(0, 1), net.pos_embed[0])
    torch.testing.assert_close(net.positions((8, 8))[0], grid_embedding(16, 4, 4, steps=(1, 2)))
