"""Paths: derivatives, inverses, published tables."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.path import DDPM, EDM, VP, Bridge, Flow, Prediction, Shift, Table, Trig, ZeroSNR, expand

SMOOTH = [Flow(), Trig(), EDM(), VP(), EDM(sigma_max=3.0), VP(beta_min=0.5, beta_max=7.0), Bridge()]
STABLE = DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012)
ANGULAR = [ZeroSNR(), ZeroSNR(STABLE, snr_shift=3.0), Table((0.99, 0.8, 0.5, 0.1)), Table((0.9, 0.4, 0.0))]
TABLES = [DDPM(schedule) for schedule in ("linear", "cosine", "scaled_linear")] + [DDPM(steps=10), *ANGULAR]
PATHS = [*SMOOTH, *TABLES, Shift(), Shift(steps=4, low=0.2)]


def inside(path, n=61):
    """Times away from the ends and from the knots of tables."""
    return torch.linspace(0.013, 0.987, n, dtype=torch.float64) * path.t1 + (0.0037 if path in TABLES else 0)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_derivatives_are_those_of_autograd(path):
    t = inside(path).requires_grad_()
    for value, slope in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
        y = value(t)
        expected = torch.autograd.grad(y.sum(), t)[0] if y.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(slope(t).detach(), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_t_of_lam_inverts_lam(path):
    t = inside(path)
    torch.testing.assert_close(path.t_from_lambda(path.lam(t)), t, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(path.lam(t), path.alpha(t).log() - path.sigma(t).log(), rtol=1e-10, atol=1e-12)
    assert (path.lam(t).diff() < 0).all()


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_it_starts_at_data(path):
    zero = torch.zeros((), dtype=torch.float64)
    assert float(path.alpha(zero)) == 1
    assert float(path.sigma(zero)) == 0
    assert float(path.lam(zero)) == math.inf
    x0, eps = torch.randn(2, 5, 3, dtype=torch.float64)
    assert torch.equal(path.mix(x0, eps, zero), x0)


@pytest.mark.parametrize(
    ("path", "ratio"),
    [
        (Flow(), 0.0),
        (Trig(), 0.0),
        (EDM(), 1 / 80),
        (VP(), 0.00657),
        (DDPM(), 0.00635),
        (DDPM("cosine"), 4.93e-5),
        (STABLE, 0.0683),  # the well-known leak of Stable Diffusion
        (ZeroSNR(STABLE), 0.0),
        (Table((0.9, 0.5)), 1.0),
    ],
    ids=repr,
)
def test_what_is_left_of_the_data_at_the_end(path, ratio):
    t1 = torch.tensor(path.t1, dtype=torch.float64)
    assert float(path.alpha(t1) / path.sigma(t1)) == pytest.approx(ratio, rel=2e-3, abs=1e-15)


@pytest.mark.parametrize("path", [VP(), *TABLES], ids=repr)
def test_variance_is_preserved(path):
    t = inside(path)
    torch.testing.assert_close(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize("path", [Trig(), VP(), DDPM(), ZeroSNR()], ids=repr)
def test_sigma_keeps_its_digits_near_data(path):
    """1 - alpha^2 loses them all; sigma^2 = -expm1(2 log alpha) does not."""
    t = torch.tensor([1e-9, 1e-7], dtype=torch.float64) * path.t1
    ratio = path.sigma(t[1]) / path.sigma(t[0])
    assert float(ratio) == pytest.approx(100 if isinstance(path, (Trig, ZeroSNR)) else 10, rel=1e-5)


@pytest.mark.parametrize("path", SMOOTH, ids=repr)
def test_velocity_and_advance_agree_on_a_straight_line(path):
    """x(t) = alpha x0 + sigma eps with x0 and eps fixed: advance is exact, velocity is its derivative."""
    x0, eps = torch.randn(2, 4, 3, dtype=torch.float64)
    pred = Prediction(x0, eps)
    t, s = (torch.tensor(c * path.t1, dtype=torch.float64) for c in (0.7, 0.3))
    torch.testing.assert_close(path.advance(path.mix(x0, eps, t), pred, t, s), path.mix(x0, eps, s), rtol=0, atol=1e-12)
    h = 1e-6 * path.t1
    numeric = (path.mix(x0, eps, t + h) - path.mix(x0, eps, t - h)) / (2 * h)
    torch.testing.assert_close(path.velocity(pred, t), numeric, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2"), ("scaled_linear", "scaled_linear")]
)
def test_tables_are_those_of_diffusers(ours, theirs):
    scheduler = importlib.import_module("diffusers.schedulers.scheduling_ddim").DDIMScheduler
    ends = {"beta_start": 0.00085, "beta_end": 0.012} if ours == "scaled_linear" else {}
    path = DDPM(ours, **ends)
    bar = scheduler(num_train_timesteps=1000, beta_schedule=theirs, **ends).alphas_cumprod.double()
    t = torch.arange(1, 1001, dtype=torch.float64)
    torch.testing.assert_close(path.alpha(t) ** 2, bar, rtol=2e-4, atol=1e-9)  # theirs is a float32 product
    assert torch.equal(path.t_to_network(t), t - 1)


@pytest.mark.parametrize(
    ("path", "published"),
    [
        (DDPM(), [0.9999, 0.99978, 0.524085, 0.0785872, 0.00335055, 4.03583e-05]),
        (DDPM("cosine"), [0.999959, 0.999913, 0.847012, 0.493843, 0.144272, 2.42873e-09]),
        (
            DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012),
            [0.99915, 0.998296, 0.675432, 0.277669, 0.0566234, 0.0046601],
        ),
    ],
    ids=repr,
)
def test_tables_are_the_published_ones(path, published):
    """alpha^2 at timesteps 0, 1, 249, 499, 749, 999, as diffusers 0.42 has them: for machines without it."""
    t = torch.tensor([0, 1, 249, 499, 749, 999], dtype=torch.float64) + 1
    assert (path.alpha(t) ** 2).tolist() == pytest.approx(published, rel=2e-4)


def theirs(module, name, **config):
    """alphas_cumprod of a scheduler of diffusers, float64."""
    scheduler = getattr(importlib.import_module(f"diffusers.schedulers.scheduling_{module}"), name)
    return scheduler(**config).alphas_cumprod.double()


def entries(path):
    """alpha^2 of a path's table."""
    return path.alpha(torch.arange(1, path.t1 + 1, dtype=torch.float64)) ** 2


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
def test_tables_that_end_in_noise_are_those_of_diffusers(snr_shift):
    bar = theirs(
        "ddim_cogvideox", "CogVideoXDDIMScheduler", **SD, snr_shift_scale=snr_shift, rescale_betas_zero_snr=True
    )
    ours = entries(ZeroSNR(STABLE, snr_shift))
    torch.testing.assert_close(ours, bar, rtol=1e-5, atol=1e-6)  # theirs subtracts in float32
    assert ours[-1] == bar[-1] == 0
    if snr_shift == 1:
        bar = theirs("ddim", "DDIMScheduler", **SD, rescale_betas_zero_snr=True)
        torch.testing.assert_close(ours, bar, rtol=1e-4, atol=1e-5)


def test_a_table_has_its_entries_exactly():
    trained = [0.01 + 0.3 * (i % 7) / 10 for i in range(20)]
    bars = [
        theirs("ddim", "DDIMScheduler", num_train_timesteps=20, trained_betas=trained),
        theirs("ddim_cogvideox", "CogVideoXDDIMScheduler", **SD, rescale_betas_zero_snr=True),
        theirs("ddim", "DDIMScheduler", beta_schedule="squaredcos_cap_v2"),
    ]
    for bar in bars:
        path, t = Table(tuple(bar.tolist())), torch.arange(1, len(bar) + 1, dtype=torch.float64)
        torch.testing.assert_close(path.alpha(t), bar.sqrt(), rtol=1e-14, atol=0)
        torch.testing.assert_close(path.sigma(t), (1 - bar).sqrt(), rtol=1e-14, atol=0)
        assert torch.equal(path.t_to_network(t), t - 1)


def test_pure_noise_at_the_end_of_a_table_is_a_time_like_others():
    """Where log alpha is not a number, and a lerp in it would be NaN in the last cell."""
    for path in (ZeroSNR(), Table((0.9, 0.4, 0.0))):
        t1 = torch.tensor(path.t1, dtype=torch.float64)
        assert (float(path.alpha(t1)), float(path.sigma(t1)), float(path.lam(t1))) == (0, 1, -math.inf)
        assert float(path.t_from_lambda(path.lam(t1))) == path.t1
        assert float(path.t_from_lambda(torch.tensor(math.inf).double())) == 0
        assert all(math.isfinite(float(f(t))) for f in (path.dalpha, path.dsigma) for t in (t1, t1 - 0.3, 0 * t1))


def test_a_table_in_other_angles_is_the_same_path():
    """From entry to entry: Table with the values of ZeroSNR, to rounding, between entries too."""
    path = ZeroSNR(STABLE, 3.0)
    same = Table(tuple(path.entries.tolist()))
    t = torch.linspace(0, path.t1, 777, dtype=torch.float64)
    torch.testing.assert_close(same.alpha(t), path.alpha(t), rtol=1e-13, atol=1e-15)
    assert repr(same) == "Table(1000 entries, alphas_cumprod 0.997454 to 0)"


def test_ddpm_is_linear_in_log_alpha_between_entries():
    path = DDPM()
    middle = path.log_alpha(torch.tensor(41.5, dtype=torch.float64))
    assert float(middle) == pytest.approx(float(path.table[41] + path.table[42]) / 2, rel=1e-14)
    assert path.log_alpha(torch.tensor([3.0])).dtype == torch.float32


def test_vp_at_one_is_the_published_integral():
    """log alpha(1) = -(19.9 / 4 + 0.05) for beta from 0.1 to 20."""
    one = torch.ones((), dtype=torch.float64)
    assert float(VP().alpha(one)) == pytest.approx(math.exp(-5.025), rel=1e-14)


def test_edm_tells_its_network_a_quarter_of_log_sigma():
    assert float(EDM().t_to_network(torch.tensor(80.0, dtype=torch.float64))) == pytest.approx(
        math.log(80) / 4, rel=1e-14
    )


def test_expand_keeps_the_dtype_of_x():
    x = torch.zeros(4, 3, 2, 2)
    assert expand(torch.rand(4, dtype=torch.float64), x).shape == (4, 1, 1, 1)
    assert expand(torch.rand((), dtype=torch.float64), x).dtype == torch.float32
    assert expand(torch.rand(4, dtype=torch.float64), x).dtype == torch.float32


def test_start_is_noise_of_the_right_size():
    noise = torch.ones(2, 3)
    assert torch.equal(EDM().start(noise, torch.tensor(80.0, dtype=torch.float64)), 80 * noise)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: EDM(sigma_max=0),
        lambda: VP(beta_min=0),
        lambda: VP(beta_min=3, beta_max=2),
        lambda: DDPM("quadratic"),
        lambda: DDPM(steps=1),
        lambda: DDPM(beta_end=1.0),
        lambda: Table((0.5,)),
        lambda: Table((0.5, 0.5)),
        lambda: Table((1.0, 0.5)),
        lambda: Table((0.5, -0.1)),
        lambda: Table((0.5, math.nan)),
        lambda: ZeroSNR(snr_shift=0.0),
        lambda: ZeroSNR(Flow()),
        lambda: Shift(low=0.5, high=0.4),
        lambda: Bridge(beta_max=0.1),
    ],
)
def test_wrong_numbers_are_refused_in_one_line(bad):
    with pytest.raises(UserError) as error:
        bad()
    assert "\n" not in str(error.value)
