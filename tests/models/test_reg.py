"""REG: the published counts and names, and a joint state that any solver samples."""

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.models.dit import DiT
from gen.models.reg import REG
from gen.pipeline import Pipeline
from gen.training.run import Sampler


def test_the_names_are_the_published_ones():
    with torch.device("meta"):
        reg, dit = REG.preset("B/2").build().state_dict(), DiT.preset("B/2").build().state_dict()
    assert set(reg) - set(dit) == {
        *(
            f"{name}.{kind}"
            for name in ("cls_projectors2", "wg_norm", "final_layer.linear_cls")
            for kind in ("weight", "bias")
        )
    }
    assert set(dit) < set(reg)
    assert reg["pos_embed"].shape == (1, 257, 768)


def test_it_starts_as_published():
    net = REG.preset("digits").build()
    x = torch.randn(3, 128)
    assert torch.equal(net(x, torch.rand(3), {"y": torch.arange(3)}), torch.zeros(3, 128))
    assert torch.equal(net.pos_embed[:, 0], torch.zeros(1, 64)) and not net.pos_embed.requires_grad
    assert torch.equal(net.pos_embed[:, 1:], DiT.preset("digits").build().pos_embed)


def random_net(seed=1):
    torch.manual_seed(seed)
    net = REG.preset("digits").build().double()
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return net


def test_the_class_token_goes_first_and_the_ends_are_their_formulas():
    net, t, cond = random_net(), torch.rand(2).double(), {"y": torch.tensor([1, 2])}
    x, seen = torch.randn(2, 128).double(), {}

    def look(site, compute, h):
        seen[site] = h, compute(h)
        return seen[site][1]

    out = net(x, t, cond, tap=look)
    cls, patches = nn.functional.layer_norm(net.cls_projectors2(x[:, 64:]), (64,), eps=1e-6), net.x_embedder["proj"]
    first = torch.cat([(cls * net.wg_norm.weight + net.wg_norm.bias)[:, None], patches(net.image(x)).flatten(2).mT], 1)
    torch.testing.assert_close(seen["trunk"][0], first + net.pos_embed)
    final, c = net.final_layer, seen["time"][1] + net.y_embedder(cond["y"])
    shift, scale = final.adaLN_modulation[1](nn.functional.silu(c))[:, None].split(64, -1)
    h = nn.functional.layer_norm(seen["trunk"][1], (64,), eps=1e-6) * (1 + scale) + shift
    torch.testing.assert_close(out[:, 64:], h[:, 0] @ final.linear_cls.weight.T + final.linear_cls.bias)
    image = (h[:, 1:] @ final.linear.weight.T + final.linear.bias).reshape(2, 4, 4, 2, 2)  # [B, row, column, y, x]
    torch.testing.assert_close(net.image(out)[:, 0], image.transpose(2, 3).reshape(2, 8, 8))


def test_the_image_is_the_front_of_the_state_and_both_halves_matter():
    net = random_net()
    x, t, cond = torch.randn(2, 128).double(), torch.rand(2).double(), {"y": torch.tensor([1, 2])}
    assert net.state_shape == (128,) and torch.equal(net.image(x), x[:, :64].reshape(2, 1, 8, 8))
    out = net(x, t, cond)
    for half in (slice(0, 64), slice(64, 128)):
        moved = x.clone()
        moved[:, half] += 1
        change = (net(moved, t, cond) - out).abs()
        assert change[:, :64].max() > 1e-6 and change[:, 64:].max() > 1e-6


def test_wrong_states_and_fields_are_one_line():
    net = REG.preset("digits").build()
    with pytest.raises(UserError, match=r"this REG takes \[B, 128\]: 1 x 8 x 8 and 64 of cls"):
        net(torch.zeros(2, 1, 8, 8), torch.zeros(2), {"y": torch.zeros(2).long()})
    with pytest.raises(UserError, match="learn_sigma"):
        REG(learn_sigma=True)
    with pytest.raises(UserError, match=r"REG: cls_dim = 0"):
        REG(cls_dim=0)


class Joint(nn.Module):
    """The exact flow of a correlated Gaussian over an image of 1 x 2 x 2 and a class token of 2."""

    state_shape = (6,)

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        root = torch.randn(6, 6) / 2
        self.mean, self.cov = torch.linspace(-1, 1, 6), root @ root.mT + 0.05 * torch.eye(6)

    def forward(self, x, t, cond, *, s=None, tap=None):
        alpha, sigma = 1 - t[0], t[0]
        gain = alpha * self.cov @ torch.linalg.inv(alpha**2 * self.cov + sigma**2 * torch.eye(6))
        x0 = self.mean + (x - alpha * self.mean) @ gain.mT
        return (x - alpha * x0) / sigma - x0  # eps - x0

    def null(self, cond):
        return cond

    def image(self, x):
        self.states.append(x)
        return x[:, :4].reshape(-1, 1, 2, 2)


@pytest.mark.parametrize(("solver", "steps"), [("flow_sde", 64), ("heun", 16)])
def test_a_joint_gaussian_is_sampled_exactly(solver, steps):
    """REG's own sampler is Euler-Maruyama on both at once: with one state, any solver is."""
    n, net = 2000, Joint()
    net.states = []
    pipeline = Pipeline(Denoiser(net, Flow(), Velocity()), (1, 2, 2), sampler=Sampler(solver, steps=steps))
    images = pipeline.sample(n, batch_size=n).x
    (x,) = net.states
    assert torch.equal(images, x[:, :4].reshape(n, 1, 2, 2))
    scale = net.cov.diagonal().sqrt()
    assert ((x.mean(0) - net.mean) / scale).abs().max() < 0.1  # 4.5 standard errors
    assert ((x.mT.cov() - net.cov) / torch.outer(scale, scale)).abs().max() < 0.12  # correlations reach .84
