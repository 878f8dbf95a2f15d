"""Shortcut: two half jumps of the exact map are its whole jump; targets, their average and guidance; a student."""

import copy

import pytest
import torch

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import EDM, VP, Flow, Prediction, Trig
from gen.distillers.shortcut import Shortcut
from tests.distill.line import Exact, Taught, batch, student, world


@pytest.mark.parametrize("path", [Flow(), Trig(), VP(), EDM(10.0)], ids=lambda p: type(p).__name__)
def test_the_exact_map_is_consistent_with_itself(path):
    mixture, n = world(path), 64
    t, part = torch.rand(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = (0.05 + 0.95 * t) * path.t1
    s, every = t * part, torch.ones(n, dtype=torch.bool)
    exact, wrong = Exact(mixture), Exact(mixture, wrong=1.1)
    method = Shortcut(velocity="teacher", clip=None)
    for target, fits in ((exact, True), (wrong, False)):
        roles = {"net": target, "target": target, "teacher": Taught(mixture)}
        error = method.errors(roles, batch(mixture, n), t, s, every).square().mean()
        assert (error < 1e-20) == fits
        assert fits or error > 1e-6
    at_rest = method.errors({"net": exact, "teacher": Taught(mixture)}, batch(mixture, n), t, t, ~every)
    assert at_rest.square().mean() < 1e-20


def test_samples_start_on_the_grid_of_their_jump():
    seen = []

    class Watched(Shortcut):
        def errors(self, roles, batch, t, s, double):
            seen.append((t, s, double))
            return super().errors(roles, batch, t, s, double)

    mixture = world()
    roles = {"net": Exact(mixture), "target": Exact(mixture)}
    list(Watched(steps=8, bootstrap=0.5)(roles, batch(mixture, 512)))
    t, s, double = seen[0]
    lengths = (t - s).round(decimals=9)
    assert set(lengths[double].tolist()) == {1.0, 0.5, 0.25} and set(lengths[~double].tolist()) == {0.125}
    assert (t / lengths).frac().abs().max() < 1e-9 and s.min() == 0 and t.max() == 1
    assert 0.45 < double.double().mean() < 0.55


class Labelled:
    """u = the class, 9 for none."""

    path = Flow()

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        y = cond["y"].to(x)[:, None]
        return Prediction(x - t[:, None] * y, x + (1 - t[:, None]) * y)

    def null(self, cond):
        return {"y": torch.full_like(cond["y"], 9)}


def test_guidance_acts_upon_the_shortest_half_jumps_alone():
    t = torch.ones(2, dtype=torch.float64)
    s = 1 - torch.tensor([2 / 8, 4 / 8], dtype=torch.float64)
    got = Shortcut(steps=8, bootstrap_cfg=1.5, clip=None).two_half_jumps(
        Labelled(), torch.zeros(2, 1).double(), t, s, {"y": torch.ones(2)}
    )
    assert torch.allclose(got[:, 0], torch.tensor([9 + 1.5 * (1 - 9), 1.0]).double())


def test_targets_are_clipped():
    t, s = torch.ones(1).double(), torch.zeros(1).double()
    got = Shortcut(steps=8, clip=4.0).two_half_jumps(
        Labelled(), torch.zeros(1, 1).double(), t, s, {"y": torch.full((1,), 7)}
    )
    assert float(got) == 4.0


def test_the_target_follows_the_net_and_gets_no_gradient():
    f = student(Flow(), Velocity(), True, width=8)
    method, mixture = Shortcut(ema_decay=0.75, bootstrap=1.0, steps=8), world()
    nets = method.roles(f.net, None)
    roles = {role: Denoiser(net, Flow(), Velocity()) for role, net in nets.items()}
    before = copy.deepcopy(nets["target"].state_dict())
    with torch.no_grad():
        for weight in nets["net"].parameters():
            weight += 1
    (_, loss, _), *_ = list(method(roles, batch(mixture, 16)))
    loss.backward()
    assert all(p.grad is None for p in nets["target"].parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in nets["net"].parameters())
    method.observe(roles, {})
    for name, weight in nets["target"].named_parameters():
        torch.testing.assert_close(weight, before[name] + 0.25, rtol=0, atol=1e-12)
