"""DFM's loss: its parts, the times of its stages, the least it can be, and plain flow matching as its special case."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from gen.config.errors import UserError
from gen.diffusion.decomposition import Laplacian, pack, unpack
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import Eps, Velocity
from gen.diffusion.path import Flow, Staged
from gen.diffusion.times import LogitNormal, Point
from gen.models.dfm import DFM as DFMSpec
from gen.models.dit import DiT
from gen.training.objectives import Batch
from gen.training.objectives.denoise import Denoising
from gen.training.objectives.dfm import DFM
from tests.gen.diffusion.test_decomposition import smooth, world

SMALL = {"width": 16, "depth": 1}


def batch_of(x):
    return Batch(x, {"y": torch.arange(len(x)) % 10}, training_noise(0, 0, range(len(x))))


def random_net(seed=0, **changes):
    torch.manual_seed(seed)
    net = DFMSpec.preset("digits", **SMALL, **changes).build().double()
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn_like(p))
    return net


def loss_of(objective, net, path, batch):
    f = Denoiser(net, path, Velocity())
    ((role, loss, logs),) = objective({"net": f}, batch)
    assert role == "net"
    return loss, logs


def test_the_loss_is_its_parts():
    net, x = random_net(), torch.randn(16, 1, 8, 8).double()
    objective, batch = DFM((0.5, 0.5), class_dropout=0.0), batch_of(x)
    loss, logs = loss_of(objective, net, Staged((0.1,)), batch)
    times = objective.draw(batch)
    eps = batch.noise.normal("eps", (80,)).double()
    t = torch.cat([times[:, :1, 0].expand(-1, 16), times[:, 1:, 0].expand(-1, 64)], 1)
    x0 = torch.cat([avg_pool2d(x, 2).flatten(1), net.state(x)[:, 16:]], 1)
    error = (net((1 - t) * x0 + t * eps, times, batch.cond) - (eps - x0)) ** 2
    fine = times[:, 1, 1] == 1
    coarse_loss, fine_loss = error[:, :16].mean(1), error[:, 16:].mean(1) * fine
    assert 0 < int(fine.sum()) < 16
    torch.testing.assert_close(loss.double(), (coarse_loss + fine_loss).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logs["stage_0"].double(), coarse_loss.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logs["stage_1"].double(), fine_loss.sum() / fine.sum(), rtol=1e-5, atol=1e-6)


def test_stages_are_drawn_as_published():
    """.9 and .1; the newest logit-normal(0, 1), mean .5; coarser ones cleaner, mean .221, or .156 in the code."""
    for earlier, mean in ((-1.5, 0.221), (-2.0, 0.156)):
        objective = DFM(earlier=LogitNormal(earlier))
        times = objective.draw(Batch(torch.zeros(20_000, 1), {}, training_noise(0, 0, range(20_000))))
        both = times[:, 1, 1] == 1
        assert bool((times[:, 0, 1] == 1).all()) and bool((times[~both, 1, 0] == 1).all())
        assert float(both.double().mean()) == pytest.approx(0.1, abs=0.01)
        assert float(times[~both, 0, 0].mean()) == pytest.approx(0.5, abs=0.01)
        assert float(times[both, 1, 0].mean()) == pytest.approx(0.5, abs=0.02)
        assert float(times[both, 0, 0].mean()) == pytest.approx(mean, abs=0.015)
    three = DFM((1, 0, 1)).draw(batch_of(torch.zeros(64, 1)))
    assert set(three[:, :, 1].sum(1).tolist()) == {1, 3}  # never two
    with pytest.raises(UserError, match=r"DFM: shares = \(0.0, 0.0\); at least one must be above 0"):
        DFM((0.0, 0.0))


def test_one_stage_is_flow_matching_to_the_bit():
    """Also its noise, its times and the rows whose label is dropped."""
    net, x = random_net(decomposition=Laplacian(1)).float(), torch.randn(16, 1, 8, 8)
    dit = DiT.preset("digits", **SMALL).build()
    own = {k.replace("embedders.0.", "").replace("projections.0.", ""): v for k, v in net.state_dict().items()}
    dit.load_state_dict(own)
    ours, _ = loss_of(DFM((1.0,)), net, Staged(()), batch_of(x))
    theirs, _ = loss_of(Denoising(times=LogitNormal()), dit, Flow(), batch_of(x))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_the_coarsest_stage_alone_is_flow_matching_of_pooled_images():
    net, x = random_net().float(), torch.randn(16, 1, 8, 8)
    objective = DFM((1.0, 0.0), class_dropout=0.0)
    loss, logs = loss_of(objective, net, Staged((0.1,)), batch_of(x))

    class Pooled(nn.Module):
        """The same network on pooled images, whatever the fine stage is."""

        def forward(self, small, t, cond, *, s=None, tap=None):
            times = torch.stack(
                [torch.stack([t, torch.ones_like(t)], -1), torch.tensor([1.0, 0]).expand(len(t), -1)], 1
            )
            junk = torch.full((len(t), 64), 7.0)
            return net(torch.cat([small.flatten(1), junk], 1), times, cond)[:, :16].reshape(small.shape)

    # noise named alike begins with the same numbers, so the coarse stage's are those of an image of its size
    plain, _ = loss_of(Denoising(times=LogitNormal(), class_dropout=0.0), Pooled(), Flow(), batch_of(avg_pool2d(x, 2)))
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(logs["stage_0"], plain, rtol=1e-5, atol=0)
    assert not logs["stage_1"]


class Exact(nn.Module):
    """The best network for a Gaussian of 4 x 4 pixels."""

    def __init__(self):
        super().__init__()
        self.world, _ = world((0.3,))
        self.spec = SimpleNamespace(decomposition=Laplacian())

    def state(self, image):
        return pack(self.spec.decomposition.decompose(image))

    def parts(self, x):
        return unpack(x, [(1, 2, 2), (1, 4, 4)])

    def forward(self, x, t, cond, *, s=None, tap=None):
        return self.world.velocity(x.double(), t.double())


def test_the_exact_network_has_the_least_loss():
    """1.38640 for coarse at .5 alone; 1.19191 + .82570 for coarse at .1 and fine at .5."""
    images = torch.randn(4000, 16).double() @ torch.linalg.cholesky(smooth(4)).mT
    batch = Batch(images.reshape(-1, 1, 4, 4), {}, training_noise(0, 0, range(4000)))
    given = {"times": Point(0.5), "earlier": Point(0.1), "class_dropout": 0.0}
    for shares, best in (((1, 0), 1.38640), ((0, 1), 1.19191 + 0.82570)):
        loss, _ = loss_of(DFM(shares, **given), Exact(), Staged((0.3,)), batch)
        assert float(loss) == pytest.approx(best, rel=0.02)


def test_validation_is_the_expected_loss_and_repeats():
    net, x = random_net().float(), torch.randn(8, 1, 8, 8)
    f = {"net": Denoiser(net, Staged((0.1,)), Velocity())}
    whole, batch = DFM(class_dropout=0.0), batch_of(x)
    parts = [DFM(shares, class_dropout=0.0).validate(f, batch) for shares in ((1, 0), (0, 1))]
    torch.testing.assert_close(whole.validate(f, batch), 0.9 * parts[0] + 0.1 * parts[1])
    assert torch.equal(whole.validate(f, batch), whole.validate(f, batch))


def test_what_does_not_fit_is_one_line():
    net, x = random_net(), torch.randn(2, 1, 8, 8).double()
    with pytest.raises(UserError, match="DFM trains the model dfm, whose x is a pyramid of stages; this is a DiT"):
        DFM().roles(DiT.preset("digits").build(), None)
    with pytest.raises(UserError, match=r"DFM: shares = \(1.0, 1.0, 1.0\); the model has 2 stages"):
        DFM((1, 1, 1)).roles(net, None)
    for path, parameterisation in ((Flow(), Velocity()), (Staged((0.1,)), Eps())):
        with pytest.raises(UserError, match="DFM trains velocities on a path staged of 1 thresholds, such as"):
            next(DFM()({"net": Denoiser(net, path, parameterisation)}, batch_of(x)))
    with pytest.raises(UserError, match=r"trains on images alone"):
        Denoising().roles(net, None)
