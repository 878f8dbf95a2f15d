"""The Frechet distance against closed forms, two other implementations, and repeated draws."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from gen.config.errors import UserError
from gen.eval.estimate import Estimate
from gen.eval.metrics.fid import FID
from gen.eval.metrics.lib.moments import Moments, distance

D = 12


def rows(n: int, d: int = D, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + torch.linspace(0, 1, d).double()


def between(mean1, cov1, mean2, cov2) -> float:
    as_tensor = [torch.as_tensor(a, dtype=torch.float64) for a in (mean1, cov1, mean2, cov2)]
    return distance(Moments.of_covariance(*as_tensor[:2]), Moments.of_covariance(*as_tensor[2:]))


def reference_value(x: torch.Tensor, y: torch.Tensor) -> float:
    root = scipy.linalg.sqrtm(np.cov(x.T.numpy()) @ np.cov(y.T.numpy()))
    traces = np.trace(np.cov(x.T.numpy())) + np.trace(np.cov(y.T.numpy())) - 2 * np.trace(root).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum()) + traces


def test_equal_covariances_leave_the_distance_of_the_means() -> None:
    cov = torch.cov(rows(50).T)
    shift = torch.arange(D).double() / 10
    assert between(torch.zeros(D), cov, shift, cov) == pytest.approx(float((shift**2).sum()), rel=1e-12)


def test_commuting_covariances() -> None:
    q, _ = torch.linalg.qr(rows(D))
    a, b = torch.linspace(1e-6, 3, D, dtype=torch.float64), torch.linspace(5, 0.1, D, dtype=torch.float64)
    exact = float(((a.sqrt() - b.sqrt()) ** 2).sum())
    assert between(torch.zeros(D), q * a @ q.T, torch.zeros(D), q * b @ q.T) == pytest.approx(exact, rel=1e-12)


def test_scales_with_the_square_and_ignores_rotation() -> None:
    x, y = rows(80, seed=1), rows(60, seed=2)
    value = FID()(x, y).value
    q, _ = torch.linalg.qr(rows(D, seed=3))
    assert FID()(3 * x, 3 * y).value == pytest.approx(9 * value, rel=1e-12)
    assert FID()(x @ q, y @ q).value == pytest.approx(value, rel=1e-12)
    assert FID()(y, x).value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("n", [200, 13, 12, 5])
def test_agrees_with_the_matrix_square_root(n: int) -> None:
    x, y = rows(n, seed=4), rows(100, seed=5)
    assert FID()(x, y).value == pytest.approx(reference_value(x, y), rel=1e-9 if n > D else 1e-5)


def test_fewer_samples_than_dimensions_is_exact() -> None:
    # two sets in one plane of 12 dimensions are the same sets in 2 dimensions, where the covariances are invertible
    q, _ = torch.linalg.qr(rows(D, seed=6))
    a, b = rows(7, 2, seed=7), rows(9, 2, seed=8)
    lifted = FID()(a @ q[:2], b @ q[:2])
    flat = FID()(a, b)
    assert lifted.value == pytest.approx(flat.value, rel=1e-12)
    assert lifted.se == pytest.approx(flat.se, rel=1e-12)


@pytest.mark.parametrize("n", [100, 5])
def test_a_set_is_at_no_distance_from_itself_and_never_below(n: int) -> None:
    x = rows(n)
    assert 0 <= FID()(x, x).value < 1e-12


def test_agrees_with_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(nn.Module):
        num_features = 16

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1).double() / 255

    fid = FrechetInceptionDistance(feature=Flat(), input_img_size=(1, 4, 4)).set_dtype(torch.float64)
    real = torch.randint(0, 256, (90, 1, 4, 4), dtype=torch.uint8)
    fake = torch.randint(0, 200, (70, 1, 4, 4), dtype=torch.uint8)
    fid.update(real, real=True)
    fid.update(fake, real=False)
    ours = FID()(Flat()(fake), Flat()(real)).value
    assert ours == pytest.approx(float(fid.compute()), rel=1e-6)


def test_standard_error_is_the_spread_of_repeated_draws() -> None:
    d, n, draws = 8, 400, 200
    reference = Moments.of_covariance(torch.zeros(d), torch.eye(d))
    mean, scale = torch.full((d,), 0.2, dtype=torch.float64), torch.linspace(0.7, 1.4, d).double()
    exact = float((mean**2).sum() + ((scale - 1) ** 2).sum())
    generator = torch.Generator().manual_seed(0)
    found = [
        FID()(mean + scale * torch.randn(n, d, generator=generator, dtype=torch.float64), reference)
        for _ in range(draws)
    ]
    values = torch.tensor([e.value for e in found], dtype=torch.float64)
    claimed = sum(e.se for e in found) / draws
    assert claimed == pytest.approx(float(values.std()), rel=0.2)  # the spread itself is known to 1/sqrt(400) = 5 %
    bias = float(values.mean()) - exact
    assert 0 < bias < claimed  # upward, O(1/N), smaller than the error itself here
    assert bias == pytest.approx(0, abs=6 * claimed / math.sqrt(draws) + 3 * d * (d + 3) / 4 / n)


def test_influence_is_the_derivative() -> None:
    # weighting one sample a little more moves the value by its influence: against a numerical derivative
    x, y = rows(40, 3, seed=1), rows(50, 3, seed=2)
    reference = Moments.of_rows(y)
    n = len(x)
    copies = [torch.cat([x.repeat(50, 1), x[i : i + 1]]) for i in range(n)]
    base = FID()(x.repeat(50, 1), reference).value
    slopes = torch.tensor([(FID()(c, reference).value - base) * (50 * n + 1) for c in copies])
    assert FID()(x, reference).se == pytest.approx(float(slopes.std()) / n**0.5, rel=0.05)


def test_standard_error_of_many_samples_is_that_of_some(monkeypatch) -> None:
    x, y = rows(9000, seed=1), rows(500, seed=2)
    whole = FID()(x, y)
    monkeypatch.setattr("gen.eval.metrics.fid.INFLUENCES", 4000)
    some = FID()(x, y)
    assert some.value == whole.value and some.se == pytest.approx(whole.se, rel=0.03) and some.se != whole.se
    assert FID()(x, y) == some


def test_singular_covariance_takes_the_eigenvalues() -> None:
    x = torch.cat([rows(50, 3), torch.zeros(50, 2, dtype=torch.float64)], 1)
    cov = torch.cov(x.T)
    exact = Moments.of_rows(x)
    assert distance(Moments.of_covariance(x.mean(0), cov), exact) < 1e-12


@pytest.mark.parametrize(
    ("mean", "cov", "says"),
    [
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "not symmetric"),
        (torch.zeros(2), torch.diag(torch.tensor([1.0, -0.5])), "below zero"),
        (torch.zeros(2), torch.full((2, 2), math.nan), "not finite"),
        (torch.zeros(3), torch.eye(2), "covariance [2, 2]"),
    ],
)
def test_refuses_poisoned_moments(mean: torch.Tensor, cov: torch.Tensor, says: str) -> None:
    with pytest.raises(UserError) as error:
        Moments.of_covariance(mean, cov)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_refuses_what_it_cannot_compare() -> None:
    x = rows(10)
    bad = x.clone()
    bad[3, 2] = math.inf
    for samples, reference, says in (
        (x, x[:, :5], "[10, 12] against [10, 5]"),
        (bad, x, "1 of 10 samples have features that are not finite"),
        (x, bad, "1 of 10 reference"),
        (x[:1], x, "1 samples; it needs at least 2"),
    ):
        with pytest.raises(UserError) as error:
            FID()(samples, reference)
        assert says in str(error.value) and "\n" not in str(error.value)


def test_estimates_differ_at_two_combined_standard_errors() -> None:
    assert Estimate(1.0, 0.3, 10).differs(Estimate(2.0, 0.4, 10))
    assert not Estimate(1.01, 0.3, 10).differs(Estimate(2.0, 0.4, 10))
