"""SSM: state-space mixers in both directions."""

import pytest
import torch

from gen.diffusion.tap import FeatureRecorder, Skip
from gen.models.layers.ssm.mamba import Mamba
from gen.models.layers.ssm.s4d import S4D
from gen.models.ssm import SSM

MIXERS = ["mamba", "s4d"]


def inputs(n=2):
    return torch.randn(n, 1, 8, 8), torch.rand(n), {"y": torch.arange(n)}


def awake(spec):
    """A network whose gates are open."""
    net = spec.build()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad and weight.std(correction=0) == 0:
                weight.add_(0.1 * torch.randn_like(weight))
    return net


def test_mixers_keep_the_start_they_were_published_with():
    """Neither the Xavier-uniform start of the transformer's own maps nor their zero offsets reach into a mixer."""
    net = SSM.preset("digits").build()
    mixer = net.blocks[1].attn.mixer
    assert isinstance(mixer, Mamba) and mixer.bidirectional
    for dt_proj in (mixer.dt_proj, mixer.dt_proj_b):
        dt = torch.nn.functional.softplus(dt_proj.bias)
        assert 0.9e-3 < dt.min() < dt.max() < 0.11
    assert isinstance(SSM.preset("digits", mixer="s4d").build().blocks[0].attn.mixer, S4D)


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_token_sees_every_other(mixer):
    """One block, one changed pixel in any corner: all of the output changes."""
    net = awake(SSM.preset("digits", mixer=mixer, depth=1)).double()
    x, t, cond = inputs(1)
    x, t = x.double().requires_grad_(), t.double()
    out = net(x, t, cond)
    for row, column in ((0, 0), (0, 7), (7, 0), (7, 7)):
        (slope,) = torch.autograd.grad(out[0, 0, row, column], x, retain_graph=True)
        assert (slope != 0).all()


def test_alternate_order_reads_columns_in_every_second_block():
    """With the same weights, a transposed picture through blocks by column is a picture through blocks by row."""
    rows, both = (awake(SSM.preset("digits", order=order)) for order in ("rows", "alternate"))
    both.load_state_dict(rows.state_dict())
    h = torch.randn(2, 16, 64)

    def turn(h):
        return h.reshape(2, 4, 4, 64).transpose(1, 2).reshape(2, 16, 64)

    assert torch.equal(rows.blocks[0].attn(h), both.blocks[0].attn(h))
    torch.testing.assert_close(turn(both.blocks[1].attn(turn(h))), rows.blocks[1].attn(h))
    assert not torch.allclose(both.blocks[1].attn(h), rows.blocks[1].attn(h))


@pytest.mark.parametrize("mixer", MIXERS)
def test_leaving_out_a_mixer_is_the_identity(mixer):
    net = awake(SSM.preset("digits", mixer=mixer, depth=1))
    x, t, cond = inputs()
    record = FeatureRecorder(("hidden.0", "trunk", "blocks.0.mlp"))
    without = net(x, t, cond, tap=Skip(("blocks.0.attn",)))
    assert not torch.allclose(without, net(x, t, cond, tap=record))
    assert set(record.features) == {"hidden.0", "trunk", "blocks.0.mlp"}
