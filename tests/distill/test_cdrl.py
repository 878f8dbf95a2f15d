"""CDRL: the recovery posterior and its Langevin steps on a Gaussian, the energy's gradient, inpainting, novelty."""

from functools import partial

import pytest
import torch
from torch import nn

import gen
from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import Noise, sample_seeds, training_noise
from gen.diffusion.parameterisation import X0, EDMPrecond, Eps, V, Velocity
from gen.diffusion.path import EDM, VP, Flow, Trig
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Gaussian, Mixture
from gen.distillers.cdrl import CDRL, inpaint, log_density, negative_log_density
from gen.models.energy import Energy, EnergyNet
from gen.samplers.solvers.recovery import Recovery
from gen.training.objectives import Batch
from gen.training.run import Sampler
from tests.gen.tiny import tiny


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


PATHS = [Flow(), VP(), EDM(8.0), Trig()]


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_langevin_steps_settle_at_the_recovery_posterior(path):
    """Precision L = l + r^2 / v, mean (l a + r x_t / v) / L; variance (1 / L) / (1 - d^2 L / 4) for noise d."""
    world, t, s = Gaussian(path, f64(0.7), f64(0.5)), f64(0.7)[0] * path.t1, f64(0.5)[0] * path.t1
    solver, x_t = Recovery(step_size=0.4), f64([1.3])
    once = partial(solver.langevin, world, path, x_t, t=t, s=s)
    base, noise = once(x=f64([0.0]), units=[f64([0.0])]), once(x=f64([0.0]), units=[f64([1.0])])
    slope = once(x=f64([1.0]), units=[f64([0.0])]) - base  # a step is affine: x -> slope x + base + d unit
    d = noise - base
    r = path.alpha(t) / path.alpha(s)
    v = path.sigma(t) ** 2 - (r * path.sigma(s)) ** 2
    l = world.spread(s) ** -2  # noqa: E741
    big = l + r**2 / v
    assert float(d**2) == pytest.approx(0.4 * float(path.sigma(s) ** 2 * v / path.sigma(t) ** 2), rel=1e-10)
    mean = (l * path.alpha(s) * world.mean + r * x_t[0] / v) / big
    assert torch.allclose((base / (1 - slope))[0], mean, rtol=1e-10)
    assert torch.allclose((d**2 / (1 - slope**2))[0], (1 / big) / (1 - d[0] ** 2 * big / 4), rtol=1e-10)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_first_guess_is_the_posterior_of_known_data(path):
    """x_s given x_t and x0: the product of N(alpha_s x0, sigma_s^2) and the tether."""
    world, t, s = Gaussian(path, f64(0.7), f64(0.0)), f64(0.7)[0] * path.t1, f64(0.4)[0] * path.t1
    x_t = f64([1.1])
    mean, variance = Recovery().ancestral_step(path, world(x_t, t), t, s)
    r = path.alpha(t) / path.alpha(s)
    v = path.sigma(t) ** 2 - (r * path.sigma(s)) ** 2
    precision = path.sigma(s) ** -2 + r**2 / v
    assert float(variance) == pytest.approx(float(1 / precision), rel=1e-10)
    exact = (path.alpha(s) * 0.7 / path.sigma(s) ** 2 + r * x_t / v) / precision
    assert torch.allclose(mean, exact, rtol=1e-10)


def test_climbing_is_the_path_s_own_noise():
    path, t, s = VP(), f64(0.6)[0], f64(0.3)[0]
    one = path.diffuse(path.mix(f64([1.0]), f64([0.0]), s), f64([0.0]), t, s)
    assert torch.allclose(one, path.alpha(t).expand(1, 1))
    noises = (1.0, 0.0), (0.0, 1.0)
    a, b = (path.diffuse(path.mix(f64([0.0]), f64([p]), s), f64([q]), t, s) for p, q in noises)
    assert float(a**2 + b**2) == pytest.approx(float(path.sigma(t) ** 2))


def test_the_sampler_draws_the_data():
    world, noise = Gaussian(Flow(), f64(1.0, -2.0), f64(0.6, 0.3)), Noise(tuple(sample_seeds(0, 1500)))
    times = torch.linspace(1, 0, 7, dtype=torch.float64)
    x = integrate(world, noise.normal("start", (2,)).double(), times, Recovery(refine=20, step_size=0.3), noise=noise)
    assert torch.allclose(x.mean(0), world.mean, atol=0.06)
    # The last level's prediction of x0 is narrower than the data by a known factor.
    s = times[-2]
    narrow = world.std**2 * Flow().alpha(s) / world.spread(s)
    assert torch.allclose(x.std(0), narrow, rtol=0.08)


# The energy


class Scaled(nn.Module):
    """theta times what predicts the noise of N(0, .5^2) on flow exactly."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(f64(theta))
        self.spec = None

    def forward(self, x, t, cond, *, s=None, tap=None):
        t = t[:, None]
        return self.theta * t / ((1 - t) ** 2 * 0.25 + t**2) * x


class Pair(EnergyNet):
    """The energy of Scaled; told s, its initialiser is the exact denoiser."""

    def __init__(self, theta):
        nn.Module.__init__(self)
        self.inner, self.initialiser = Scaled(theta), Scaled(1.0).requires_grad_(False)

    def forward(self, x, t, cond, *, s=None, tap=None):
        return super().forward(x, t, cond) if s is None else self.initialiser(x, t, cond)


@pytest.mark.parametrize("theta", [1.0, 0.6, 1.5])
def test_the_energy_s_gradient_vanishes_at_the_true_energy(theta):
    """Too weak an energy (theta < 1) makes samples too wide: the gradient points to more of it, and back."""
    n = 100_000
    solver = Recovery(refine=80, step_size=0.1, initialiser="target")
    f, g = Denoiser(Pair(theta), Flow(), Eps()), torch.Generator().manual_seed(0)

    class Drawn:
        x = 0.5 * torch.randn(n, 1, generator=g, dtype=torch.float64)

        def normal(self, name):
            return torch.randn(n, 1, generator=g, dtype=torch.float64)

    t, s = f64(0.8).expand(n), f64(0.5).expand(n)
    energy, _, logs = CDRL(sampler=Sampler(solver, steps=5)).losses(f, Drawn(), {}, t, s)
    (slope,) = torch.autograd.grad(energy.mean(), f.net.inner.theta)
    if theta == 1:
        # sigma_s E[x^2 - made^2] / (2 S^2): what is left is the variance that steps of finite size add
        spread, r, v = 0.3125, 0.4, 0.6
        precision, square = 1 / spread + r**2 / v, 0.1 * 0.25 * v / 0.64
        added = (1 / precision) * (1 / (1 - square * precision / 4) - 1)
        assert float(slope) == pytest.approx(-0.5 * added / (2 * spread), abs=0.005)
    else:
        assert float(slope) * (theta - 1) > 0.01
    assert float(logs["moved"]) > 0


@pytest.mark.parametrize(
    ("path", "param"),
    [(Flow(), Velocity()), (VP(), Eps()), (Flow(), X0()), (Trig(), V()), (EDM(), EDMPrecond())],
    ids=lambda v: repr(v),
)
def test_the_score_is_the_slope_of_the_density(path, param):
    torch.manual_seed(0)
    net = Energy(gen.build("models", {"name": "mlp", "preset": "points", "width": 8, "depth": 1})).build().double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    f, t = Denoiser(net, path, param), f64(0.6)[0] * path.t1
    x = torch.randn(3, 2, 1, 1).double().requires_grad_()
    (slope,) = torch.autograd.grad(log_density(f, x, t, {}).sum(), x)
    with torch.no_grad():
        score = -f(x, t, {}).eps / path.sigma(t)
    assert torch.allclose(slope, score, rtol=1e-9, atol=1e-12)


def test_the_density_of_a_gaussian_is_its_own():
    f, x = Denoiser(Pair(1.0), Flow(), Eps()), f64([0.1], [0.9], [-2.0])
    t = f64(0.3)[0]
    exact = torch.distributions.Normal(0.0, float((0.7**2 * 0.25 + 0.09) ** 0.5)).log_prob(x)[:, 0].double()
    found = log_density(f, x, t)
    assert torch.allclose((found - found[0]).detach(), exact - exact[0], atol=1e-6)
    strange = negative_log_density(f, x, 0.3)
    assert strange.argsort().tolist() == [0, 1, 2] and not strange.requires_grad
    with pytest.raises(UserError, match="has no density"):
        log_density(Denoiser(Scaled(1.0), Flow(), Eps()), x, t)


def test_inpainting_keeps_what_is_known_and_draws_the_rest_accordingly():
    """Two modes, (2, 1) and (-2, -1): the first number says which, and so what the second is."""
    world = Mixture(Flow(), f64([2, 1], [-2, -1]), f64(0.3, 0.3), f64(0.5, 0.5), torch.tensor([0, 0]))
    n = 64
    known = torch.where(torch.arange(n)[:, None] % 2 == 0, f64([2.0, 9.0]), f64([-2.0, 9.0]))
    missing = torch.tensor([[False, True]]).expand(n, 2)
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    x = inpaint(world, known, missing, times, Recovery(refine=30, step_size=0.3), Noise(tuple(sample_seeds(0, n))))
    assert torch.equal(x[:, 0], known[:, 0])
    right = torch.where(known[:, 0] > 0, 1.0, -1.0).double()
    assert ((x[:, 1] - right).abs() < 1.0).double().mean() > 0.95
    assert 0.1 < float((x[:, 1] - right).std()) < 0.5


# As a method


def test_losses_reach_energy_and_initialiser_each_by_its_own():
    model = gen.build("models", {"name": "cooperative", "inner": tiny().model})
    net = model.build()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.randn_like(weight))
    f, batch = (
        Denoiser(net, Flow(), Velocity()),
        Batch(torch.randn(4, 1, 8, 8), {"y": torch.tensor([1, 2, 3, 4])}, training_noise(0, 0, range(4))),
    )
    cdrl = CDRL(sampler=Sampler(Recovery(refine=2, initialiser="target"), steps=3))
    energy, first, _ = cdrl.losses(f, batch, batch.cond, f64(1.0).expand(4), f64(0.6).expand(4))
    parts = {"energy": list(net.energy.parameters()), "initialiser": list(net.initialiser.parameters())}
    for loss, role in ((energy, "energy"), (first, "initialiser")):
        for name, weights in parts.items():
            weights = [w for w in weights if w.requires_grad]
            slopes = torch.autograd.grad(loss.mean(), weights, allow_unused=True, retain_graph=True)
            assert any(g is not None and g.abs().max() > 0 for g in slopes) == (name == role)
    scales = net.lr_scales()
    assert set(scales.values()) == {0.1} and all(name.startswith("initialiser.") for name in scales)


def test_wrong_settings_are_one_line():
    with pytest.raises(UserError, match="must be recovery"):
        CDRL(sampler=Sampler("euler", steps=4))
    with pytest.raises(UserError, match="step_size = 5"):
        Recovery(step_size=5.0)
    with pytest.raises(UserError, match="trains the model cooperative"):
        CDRL().roles(tiny().model.build(), None)
