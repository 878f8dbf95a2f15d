"""Every method on Gaussian data, where the posterior is known: its mean and covariance by `affine_moments`, no sample.

A method that is not exact is held to its own bias, which more steps do not take away.
"""

import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, find, names
from gen.diffusion.noise import Noise
from gen.diffusion.path import EDM, VP, Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import Correlated
from gen.operators.clip import Clip
from gen.samplers.restore.repaint import trajectory
from gen.samplers.solvers.ancestral import Ancestral
from tests.samplers.restore.worlds import MEAN, PAIRS, PROBLEMS, D, compared, moments, operator, world

GEOMETRIC = {"name": "exponential", "sigma_min": 0.002, "sigma_max": 80.0}


def built(spec):
    return build("samplers.restore", spec)


def test_the_posterior_is_that_of_the_world():
    truth = world().posterior(*PROBLEMS["pairs"])
    expected = torch.tensor([0.91234, -0.14703, -0.08979, -0.24816, -0.12300, 0.67800], dtype=torch.float64)
    torch.testing.assert_close(truth.mean, expected, rtol=0, atol=1e-5)
    assert float(truth.covariance.trace()) == pytest.approx(0.352030, abs=1e-6)
    assert float(world().posterior(*PROBLEMS["known"]).covariance.trace()) == pytest.approx(0.894756, abs=1e-6)


EXACT = {"name": "exact", "iterations": 6, "noise": 0.1}
FIGURES = [  # problem, method -> error of the mean, ratio of traces, range of variances
    ("pairs", EXACT | {"steps": 10}, 2.1e-5, 0.33910, (0.322, 0.351)),
    ("pairs", EXACT | {"steps": 100}, 2.1e-5, 0.87855, (0.866, 0.883)),
    ("pairs", EXACT | {"steps": 10, "solver": "euler"}, 4.3e-3, 0.50489, (0.473, 0.519)),
    ("pairs", EXACT | {"steps": 100, "solver": "euler"}, 5.8e-3, 0.93960, (0.933, 0.942)),
    ("pairs", {"name": "pigdm", "noise": 0.1, "steps": 100, "grid": GEOMETRIC}, 0.168, 0.92355, (0.900, 1.069)),
    ("pairs", {"name": "diffpir", "noise": 0.1, "solver": "euler"}, 0.210, 0.996, (0.71, 1.22)),
    ("pairs", {"name": "diffpir", "noise": 0.1}, 0.168, 0.957, (0.78, 1.09)),
    ("pairs", {"name": "diffpir", "noise": 0.1, "solver": "renoise"}, 0.035, 0.469, (0.45, 0.48)),
    ("pairs", {"name": "diffpir", "noise": 0.1, "weight": 7.0}, 0.437, 1.559, (0.92, 5.05)),
    ("pairs", {"name": "ddrm", "noise": 0.1}, 0.170, 0.569, (0.42, 0.63)),
    ("pairs", {"name": "ddrm", "noise": 0.1, "steps": 100}, 0.096, 0.625, (0.13, 0.74)),
    ("pairs", {"name": "ddrm", "noise": 0.1, "steps": 100, "eta": 1.0}, 0.555, 0.922, (0.458, 3.465)),
    ("pairs", {"name": "ddrm", "noise": 0.1, "steps": 100, "eta": 0.0}, 0.259, 0.830, (0.0, 1.07)),
    ("known", {"name": "ddnm", "solver": "euler"}, 0.0229, 0.97815, (0.941, 1.029)),
    ("known", {"name": "ddnm", "solver": "ancestral"}, 0.0291, 0.92263, (0.881, 0.969)),
    ("known", {"name": "ddnm"}, 0.0342, 0.74429, (0.715, 0.785)),
    ("known", {"name": "ddnm", "solver": "renoise"}, 0.0355, 0.48643, (0.467, 0.513)),
    pytest.param(
        "pairs", {"name": "dps", "noise": 0.1, "spread": "noise", "steps": 1000, "grid": GEOMETRIC},
        0.220, 0.88807, (0.502, 0.989), marks=pytest.mark.slow,
    ),
    pytest.param(
        "known", {"name": "exact", "iterations": 6, "steps": 1000}, 1e-5, 0.98835, (0.986, 0.989),
        marks=pytest.mark.slow,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("problem", "spec", "error", "trace", "within"), FIGURES)
def test_mean_and_covariance_are_the_methods_own(problem, spec, error, trace, within):
    e, ratio, least, most = compared(built(spec), problem)
    assert e == pytest.approx(error, rel=0.02, abs=1e-5) and ratio == pytest.approx(trace, rel=2e-3)
    assert least == pytest.approx(within[0], abs=0.006) and most == pytest.approx(within[1], abs=0.006)


def test_pigdm_is_exact_for_data_of_one_variance():
    """And DPS is not: it goes 1 - exp(-c) of the way, c the variance of the data over that of the noise."""
    prior = world(covariance=torch.eye(D, dtype=torch.float64))
    pigdm = built({"name": "pigdm", "noise": 0.1, "steps": 400, "grid": GEOMETRIC})
    e, ratio, *_ = compared(pigdm, "pairs", prior)
    assert e < 1e-4 and ratio == pytest.approx(1, abs=0.03)
    one = Correlated(EDM(80.0), MEAN[:1], torch.ones(1, 1, dtype=torch.float64))
    dps = built({"name": "dps", "noise": 1.0, "spread": "noise", "steps": 400, "grid": GEOMETRIC})
    number = torch.ones(1, 1, dtype=torch.float64)
    mean, covariance = moments(dps, (number, number[0], 1.0), one)
    assert float((mean - 0.5) / 0.5) == pytest.approx(1 - math.exp(-1), abs=0.01)
    assert float(covariance) == pytest.approx((1 - math.exp(-2)) / 2, abs=0.02)


@pytest.mark.parametrize("repeats", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_repaint_comes_nearer_to_the_posterior_with_every_repeat(repeats):
    error, trace, least, most = {1: (0.0863, 1.0326, 0.951, 1.202), 3: (0.0445, 0.9903, 0.947, 1.053)}[repeats]
    visits = range(len(list(trajectory(250, 1, repeats))) - 1)
    draws = ["start", *visits, *(f"known {i}" for i in visits)]
    found = compared(built({"name": "repaint", "jump": 1, "repeats": repeats}), "known", draws=draws)
    assert found == pytest.approx([error, trace, least, most], abs=6e-4)
    assert list(trajectory(6, 2, 2)) == [
        0,
        1,
        2,
        3,
        1,
        2,
        3,
        4,
        5,
        3,
        4,
        5,
        6,
    ]  # of public code, but that 5 times its 1
    assert list(trajectory(3, 1, 2)) == [0, 1, 0, 1, 2, 1, 2, 3]


def test_sdedit_keeps_what_its_level_lets_through():
    """N(m + T (x - m), level^2 T T') with T = (S (S + level^2)^-1)^(1/2), begun with x; and through A with A+ A x."""
    prior, eye, first = world(), torch.eye(D, dtype=torch.float64), torch.tensor([1.0, 1, 1, -1, -1, -1]).double()
    values, vectors = torch.linalg.eigh(prior.covariance)
    for level in (0.3, 3.0):
        grid = {"name": "karras", "sigma_max": level}
        method = built({"name": "sdedit", "solver": "heun", "steps": 60, "grid": grid})
        T = vectors @ torch.diag((values / (values + level**2)).sqrt()) @ vectors.mT
        for A, start in ((eye, first), (PAIRS, PAIRS.pinverse() @ PAIRS @ first)):
            mean, covariance = moments(method, (A, A @ first, 0.0), prior)
            torch.testing.assert_close(mean, MEAN + T @ (start - MEAN), rtol=0, atol=1e-3)
            torch.testing.assert_close(covariance, level**2 * T @ T.mT, rtol=0, atol=1e-3)


@pytest.mark.parametrize("path", [Flow(), VP()], ids=repr)
def test_any_path_has_the_same_posterior(path):
    """Of the same levels of sigma / alpha; and a flow begins below t1, where nothing of the data is seen."""
    method = built(EXACT | {"steps": 8, "grid": {"name": "karras", "sigma_max": 60.0}})
    ours, theirs = (moments(method, "pairs", world(p)) for p in (path, EDM(80.0)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2 if path.t1 == 1 else 1e-6, atol=2e-2)


METHODS = {"exact": {"noise": 0.1}, "pigdm": {"noise": 0.1}, "ddnm": {}, "diffpir": {"noise": 0.1}}
METHODS |= {"dps": {}, "ddrm": {"noise": 0.1}, "sdedit": {}, "repaint": {"repeats": 1}}
ESTIMATES = {"flow_dps": {}, "pnp_flow": {}, "red_diff": {}, "d_flow": {"iterations": 4}}  # laws: test_estimates.py
METHODS |= ESTIMATES


def restored(name, seeds, y=None, A=PAIRS, **changes):
    method = built({"name": name, "steps": 6, **METHODS[name], **changes})
    y = torch.tensor([[0.4, -0.2, 0.3]], dtype=torch.float64).expand(len(seeds), -1) if y is None else y
    return method.restore(world(), y, operator(A), (len(seeds), D), Noise(tuple(seeds)))


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_alone_is_that_of_a_batch_and_knows_its_measurement(name):
    whole = restored(name, (3, 4, 5))
    torch.testing.assert_close(restored(name, (4,)), whole[1:2], rtol=1e-12, atol=1e-12)
    assert torch.equal(restored(name, (3, 4, 5)), whole) and whole.isfinite().all()
    free = restored(name, (3, 4, 5), torch.zeros(3, 1).double(), torch.zeros(1, D, dtype=torch.float64))
    assert (free - whole).abs().max() > 0.05  # an operator that measures nothing leaves the prior
    if name not in {"ddrm", *ESTIMATES}:
        method = built({"name": name, "steps": 6, **METHODS[name]})
        times, noise = method.grid.times(EDM(80.0), 6), Noise((3, 4, 5))
        start = EDM(80.0).start(noise.normal("start", (D,)).double(), times[0])
        plain = integrate(world(), start, times, getattr(method, "solver", Ancestral()), noise=noise)
        torch.testing.assert_close(free, plain, rtol=1e-9, atol=1e-9)
    if name == "repaint":
        assert (restored(name, (3, 4, 5), repeats=2, jump=2) - whole).abs().max() > 0.05
    if "noise" in METHODS[name] and name != "ddrm":  # and so does one whose noise is too large to say anything
        loud = restored(name, (3, 4, 5), noise=1e6)
        torch.testing.assert_close(loud, free, rtol=0, atol=2e-3 if name != "diffpir" else 1e-5)


def test_what_ddnm_restores_has_the_measurement():
    y = torch.tensor([[0.4, -0.2, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(operator(PAIRS).A(restored("ddnm", (1,))), y, rtol=0, atol=1e-14)


def test_what_cannot_be_is_one_line():
    with pytest.raises(UserError, match=r"DDNM: noise = 0.1; it takes measurements without noise"):
        build("samplers.restore", {"name": "ddnm", "noise": 0.1})
    with pytest.raises(UserError, match=r"RePaint: noise = 0.1; it takes measurements without noise"):
        build("samplers.restore", {"name": "repaint", "noise": 0.1})
    with pytest.raises(UserError, match="is not linear: take dps"):
        built({"name": "repaint"}).restore(world(), MEAN[None], Clip().on((D,)), (1, D), Noise((1,)))
    with pytest.raises(UserError, match="spread = 'noise' divides by it"):
        restored("dps", (1,), spread="noise")


def test_every_method_keeps_these_laws_or_ties_its_rows():
    """A volume and a film are one sample; their own laws are in test_volume.py and test_red_psm.py."""
    tied = {name for name in names("samplers.restore") if find(name, "samplers.restore").ties_rows}
    assert tied == {"volume", "red_psm"} and set(names("samplers.restore")) == tied | set(METHODS)
