"""Models of signals [C, L] and films [C, T, H, W]: the contract of a network, and every sampler's piece on them."""

import json
from dataclasses import dataclass

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.config.images import plot_signals
from gen.config.spec import build, spec_of
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.net import members
from gen.diffusion.noise import Noise
from gen.diffusion.parameterisation import V
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Chain, FeatureRecorder, Skip
from gen.models.unet1d import UNet1D
from gen.models.video import VideoDiT
from gen.samplers.guides.cfg import CFG
from gen.samplers.solvers.euler import Euler
from gen.training.run import Run
from gen.training.state import enable
from tests.models.test_families import gradients, random_net, rows_of
from tests.over import naming, over
from tests.samplers.caches.toy import Toy
from tests.test_every import every, ready, turned_off

SPECS = [
    UNet1D.preset("signals", length=8, classes=3, vector_width=5, width=8),
    VideoDiT.preset("digits", frames=2, size=8, classes=3, width=8, depth=1, heads=2),
]


def batch(net, n=3):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, *members(net).state_shape, generator=g, dtype=torch.float64)
    cond = {"y": torch.randint(0, 3, (n,), generator=g)}
    if width := getattr(net.spec, "vector_width", 0):
        cond["vector"] = torch.randn(n, width, generator=g, dtype=torch.float64)
    return x, torch.linspace(0.1, 0.9, n, dtype=torch.float64), cond


@over(spec=SPECS)
def test_they_keep_the_contract_of_a_network(spec):
    assert build("models", json.loads(json.dumps(spec_of(spec)))) == spec
    fresh, net = spec.build(), random_net(spec)
    x, t, cond = batch(net)
    assert not fresh(x.float(), t.float(), {k: v.float() if k == "vector" else v for k, v in cond.items()}).any()
    record, out = FeatureRecorder(), net(x, t, cond)
    assert out.shape == x.shape and out.std() > 0
    for i in range(len(x)):
        alone = net(x[i : i + 1], t[i : i + 1], rows_of(cond, slice(i, i + 1)))
        torch.testing.assert_close(alone[0], out[i], rtol=1e-10, atol=1e-10)
    assert torch.equal(net(x, t, cond, tap=Chain((record, Skip(())))), out)
    assert not torch.equal(net(x, t, cond, tap=Skip(("blocks.*",))), out)
    null = net.null(cond)
    assert all(torch.equal(net.null(null)[key], null[key]) for key in cond) and null["y"].tolist() == [3] * 3
    for key in cond:  # each is read, and its null is another value
        assert not torch.equal(net(x, t, {**cond, key: null[key]}), out), key
    for wrong in ((x[..., :-1], t, cond), (x, t[:2], cond), (x, t, {})):
        with pytest.raises(UserError) as caught:
            net(*wrong)
        assert "\n" not in str(caught.value)
    net.zero_grad()
    (net(x, t, cond).square().mean() + net(x, t, net.null(cond)).square().mean()).backward()
    assert not [n for n, p in net.named_parameters() if p.requires_grad and not p.grad.abs().max() > 0]
    (whole, kept), _ = gradients(net, (x, t, cond)), enable(net, "gradient_checkpointing")
    again, kept_now = gradients(net, (x, t, cond))
    assert kept_now < 0.8 * kept and all(torch.equal(whole[key], again[key]) for key in whole)


@over(spec=SPECS)
@torch.no_grad()
def test_every_cache_works_on_them_or_names_the_sites_that_there_are(spec):
    net, times = random_net(spec, dtype=torch.float32), torch.linspace(1, 0, 13).double()
    noise, guided = Noise((5,)), CFG(scale=2.0)(Denoiser(net, Flow(), V()), times)
    x, cond = noise.normal("start", spec.shape), {"y": noise.integers("y", 3)}
    cond |= {"vector": noise.normal("vector", (spec.vector_width,))} if "vector" in net.conditions else {}

    def sample(tap):
        return integrate(guided, x, times, Euler(), cond=cond, tap=tap)

    plain = sample(None)
    for (cache,) in (param.values for param in every("samplers.caches", ddt_shared={"sites": ("trunk",)})):
        with naming(repr(cache)):
            run = ready(cache, Toy()).start(12)
            try:
                assert sample(run).isfinite().all() and run.report().hits > 0
            except UserError as refused:
                assert "no site of this network matches" in str(refused) and isinstance(spec, UNet1D)
            else:
                assert torch.equal(sample(ready(turned_off(cache), Toy()).start(12)), plain)


@dataclass(frozen=True)
class Waves:
    """Sines of three frequencies, begun at a phase that is the condition."""

    n: int = 16
    shape, classes, vector_width, pictures = (2, 8), 3, 1, False

    def open(self, split):
        return WaveItems(self.n, split)


@dataclass(frozen=True)
class WaveItems:
    n: int
    split: str
    fingerprint = "waves"

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        phase, y = torch.tensor([2 * i / self.n - 1]), torch.tensor(i % 3)
        angle = torch.arange(8) * (1 + y) / 2 + phase
        return {"x": torch.stack([angle.sin(), angle.cos()]), "y": y, "vector": phase}


def test_a_run_follows_the_shape_of_its_data_and_is_trained_drawn_and_sampled(tmp_path):
    here = f"{__name__}:Waves"
    run = Run(model={"name": "unet1d", "preset": "signals"}, data=here, objective="denoise", steps=2, batch_size=4,
              sampler={"solver": "euler", "steps": 2}, sample_every=2, validate_every=0, save_every=0)  # fmt: skip
    assert run.model == UNet1D.preset("signals", length=8, classes=3, vector_width=1)
    gen.train(run, tmp_path / "run", quiet=True)
    assert [file.name for file in (tmp_path / "run" / "samples").iterdir()]
    cond = {"y": torch.tensor([0, 1]), "vector": torch.tensor([[0.5], [-0.5]])}
    samples = gen.load(tmp_path / "run", allow=["tests"]).sample(cond=cond)
    assert samples.x.shape == (2, 2, 8) and samples.sheet().size == (2 * 128 + 1, 64) and samples._repr_png_()
    with pytest.raises(UserError, match="no pictures"):
        samples.uint8()
    with pytest.raises(UserError, match=r"needs cond\['vector'\], floats \[1, 1\]; given: y"):
        gen.load(tmp_path / "run", allow=["tests"]).sample(1)
    for wrong, why in {"length": "model.length", "vector_width": "model.vector_width"}.items():
        with pytest.raises(UserError, match=f"set .*{why}"):
            gen.train(Run(model={"name": "unet1d", "preset": "signals", wrong: 16}, data=here, objective="denoise"),
                      tmp_path / wrong, quiet=True)  # fmt: skip


def test_a_plot_shows_where_a_signal_is():
    """Rows of a curve's pixels against its values: at the top for 1, at the bottom for -1."""
    line = torch.linspace(1, -1, 128)
    (plot,) = plot_signals(torch.stack([line, -line])[None], 65, 128).float()
    blue = (plot[2] - plot[0] > 50).float()
    rows = (blue * torch.arange(65.0)[:, None]).sum(0) / blue.sum(0).clamp(min=1)
    assert blue.any(0).float().mean() > 0.9 and (rows - (1 - line) * 31 - 1)[blue.any(0)].abs().max() < 3
    wide = plot_signals(torch.tensor([[[0.0, 4.0]], [[0.0, 1.0]]]))  # one scale for all
    assert int((wide[1] != wide[0]).any(0).sum()) > 0 and wide.shape == (2, 3, 64, 128)
