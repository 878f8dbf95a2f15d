"""DFM's network: the published counts and names, stages that are not seen, and every solver, guide and cache on it."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from gen.config.errors import UserError
from gen.config.spec import build, names, spec_of
from gen.diffusion.decomposition import Haar, Laplacian
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow, Staged
from gen.models.dfm import DFM
from gen.models.dit import DiT
from gen.pipeline import Pipeline
from gen.training.run import Sampler
from tests.over import over


def count(spec):
    return sum(p.numel() for p in spec.build().parameters())


def test_it_has_the_published_parameters_and_names():
    """As many as SiT-XL/2, of any depth, and 4,291,204 more, or 4,318,864 for 16 channels."""
    with torch.device("meta"):
        assert count(DFM.preset("XL/2", depth=1)) - count(DiT.preset("XL/2", depth=1)) == 4_291_204  # of 4 channels
        of_16 = {"channels": 16, "depth": 1}
        assert count(DFM.preset("XL/2", **of_16)) - count(DiT.preset("XL/2", **of_16)) == 4_318_864
        ours, dit = DFM.preset("S/2", depth=1).build().state_dict(), DiT.preset("S/2", depth=1).build().state_dict()
    kinds = ("weight", "bias")
    assert set(ours) - set(dit) == {
        f"{name}.{i}.{rest}.{kind}"
        for name, rests in (
            ("x_embedder.embedders", ("proj",)),
            ("t_embedder.embedders", ("mlp.0", "mlp.2")),
            ("final_layer.projections", ("linear", "adaLN_modulation.1")),
        )
        for i in (0, 1)
        for rest in rests
        for kind in kinds
    }
    assert ours["x_embedder.embedders.0.proj.weight"].shape == (384, 4, 1, 1)  # the coarse stage's patch
    assert ours["x_embedder.embedders.1.proj.weight"].shape == (384, 4, 2, 2)


def random_net(seed=1, **changes):
    torch.manual_seed(seed)
    net = DFM.preset("digits", width=16, depth=1, **changes).build().double()
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn_like(p))
    return net


def inputs(net, n=2):
    return torch.randn(n, *net.state_shape).double(), {"y": torch.arange(n)}


def test_it_starts_as_published_and_state_and_image_are_inverse():
    net = DFM.preset("digits").build()
    assert not net(torch.randn(2, 80), torch.rand(2), {"y": torch.arange(2)}).any()
    image = torch.randn(2, 1, 8, 8).double()
    assert torch.equal(net.state(image)[:, :16].reshape(2, 1, 4, 4), avg_pool2d(image, 2))
    torch.testing.assert_close(net.image(net.state(image)), image, rtol=0, atol=1e-15)


@over(decomposition=[Laplacian(), Haar(), Laplacian(3)])
def test_a_stage_that_has_not_begun_is_not_seen_and_does_not_move(decomposition):
    net = random_net(decomposition=decomposition, patch=2 ** (decomposition.stages - 1))
    x, cond = inputs(net)
    stages = decomposition.stages
    times = torch.full((2, stages, 2), 0.5).double()
    times[:, 1:] = torch.tensor([1.0, 0.0]).double()
    out = net(x, times, cond)
    coarse = math.prod(net.spec.shapes[0])
    moved = x.clone()
    moved[:, coarse:] += 1
    assert torch.equal(net(moved, times, cond), out) and not out[:, coarse:].any() and out[:, :coarse].std() > 0
    times[:, :, 1] = 1.0
    seen = net(x, times, cond)
    assert (net(moved, times, cond) - seen)[:, :coarse].abs().max() > 1e-6  # now coarse hears fine
    times[:, :, 1] = torch.arange(1, stages + 1)
    for i, (part, faster) in enumerate(zip(net.parts(seen), net.parts(net(x, times, cond)), strict=True)):
        torch.testing.assert_close(faster, part * (i + 1))  # the speed of its time
    shared = torch.full((2,), 0.5).double()
    times = torch.stack([torch.full((2, stages), 0.5), torch.ones(2, stages)], -1).double()
    assert torch.equal(net(x, shared, cond), net(x, times, cond))


def test_each_stage_hears_its_own_time():
    net = random_net()
    x, cond = inputs(net)
    times = torch.tensor([[0.2, 1], [0.8, 1]]).double().expand(2, -1, -1)
    assert (net(x, times.flip(1), cond) - net(x, times, cond)).abs().max() > 1e-6


def test_one_stage_is_dit():
    """With its weights under its names; the path of no threshold is the flow path."""
    torch.manual_seed(0)
    net = random_net(decomposition=Laplacian(1))
    dit = DiT.preset("digits", width=16, depth=1).build().double()
    own = {k.replace("embedders.0.", "").replace("projections.0.", ""): v for k, v in net.state_dict().items()}
    dit.load_state_dict(own)
    x, cond = inputs(net)
    t = torch.tensor(0.3, dtype=torch.float64)
    ours = Denoiser(net, Staged(()), Velocity())(x, t, cond)
    theirs = Denoiser(dit, Flow(), Velocity())(x.reshape(2, 1, 8, 8), t, cond)
    torch.testing.assert_close(ours.x0.reshape(2, 1, 8, 8), theirs.x0, rtol=0, atol=1e-13)


def test_wrong_states_times_and_fields_are_one_line():
    net = random_net()
    x, cond = inputs(net)
    with pytest.raises(UserError, match=r"this DFM takes \[B, 80\]: 1 x 4 x 4 and 1 x 8 x 8"):
        net(x[:, 1:], torch.zeros(2), cond)
    with pytest.raises(UserError, match=r"this DFM has 2 stages, which need a path staged of 1 thresholds, one less"):
        Denoiser(net, Staged((0.5, 0.2)), Velocity())(x, torch.tensor(0.4, dtype=torch.float64), cond)
    for field, value in (("learn_sigma", True), ("cond_channels", 1), ("mup_base", 16)):
        with pytest.raises(UserError, match=f"DFM.{field} is {value}; this family has none"):
            DFM.preset("digits", **{field: value})
    with pytest.raises(
        UserError, match=r"DFM.patch 2 must be divisible by 2\^\(stages - 1\) of Laplacian\(stages=3\), 4"
    ):
        DFM.preset("digits", decomposition=Laplacian(3))
    spec = DFM.preset("digits", decomposition=Haar())
    assert build("models", spec_of(spec)) == spec


def pipeline():
    net = random_net().float().eval()
    return Pipeline(Denoiser(net, Staged((0.2,)), Velocity()), (1, 8, 8), 10, Sampler("euler", steps=6, grid="phases"))


def test_guides_and_caches_apply():
    """Each over the whole loop, through the threshold; a cache that is off changes no bit."""
    pipe = pipeline()
    plain = pipe.sample(3)
    assert plain.x.shape == (3, 1, 8, 8) and plain.nfe == 6
    for guide in names("samplers.guides"):
        if guide not in ("auto", "skip_layers"):  # they need a weaker model, and named blocks
            guided = pipe.sample(3, guide=guide)
            assert guided.x.isfinite().all() and guided.nfe >= 6, guide
    assert torch.equal(pipe.sample(3, cache={"name": "fora", "interval": 1}).x, plain.x)
    for cache in ("fora", "taylorseer", "teacache"):
        cached = pipe.sample(3, cache=cache)
        assert cached.x.isfinite().all() and cached.cache, cache
    torch.testing.assert_close(pipe.sample(1, start=1).x[0], plain.x[1], rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="x of this model are 80 numbers, no picture; it begins with noise"):
        pipe.sample(3, image=plain.x, strength=0.5)


@over(engine=["fused", "packed", {"name": "auto", "seconds": 0.0}])
def test_engines_prepare_it(engine):
    pipe = pipeline()
    prepared = pipe.prepared(engine)
    torch.testing.assert_close(prepared.sample(2).x, pipe.sample(2).x, rtol=0, atol=0.1)  # bfloat16 where that is fast


class Joint(nn.Module):
    """The exact flow of stages that are jointly Gaussian, as a network."""

    def __init__(self, world, up):
        super().__init__()
        self.world, self.up, self.state_shape = world, up, (len(world.covariance),)

    def forward(self, x, t, cond, *, s=None, tap=None):
        gain = self.world.velocity(torch.eye(len(self.up.mT)).double(), t[:1].double())  # of the one time of all rows
        return x @ gain.to(x.dtype)

    def null(self, cond):
        return cond

    def image(self, x):
        return (x @ self.up.mT.to(x)).reshape(len(x), 1, 4, 4)


def test_a_gaussian_pyramid_is_sampled_exactly():
    from tests.gen.diffusion.test_decomposition import smooth, world

    net = Joint(*world((0.3,)))
    how = Sampler("heun", steps=40, grid="phases")
    images = Pipeline(Denoiser(net, Staged((0.3,)), Velocity()), (1, 4, 4), sampler=how).sample(4000, batch_size=4000).x
    error = images.flatten(1).mT.double().cov() - smooth(4)
    assert error.abs().max() < 0.1 and images.mean().abs() < 0.04  # 4.5 standard errors
