"""KID against its definition, its population value, and repeated draws."""

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.metrics.kid import KID


def draw(n: int, d: int, mean: float, var: float, generator: torch.Generator) -> torch.Tensor:
    return mean + var**0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64)


def by_definition(x: torch.Tensor, y: torch.Tensor) -> float:
    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    within = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    real = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within + real - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def expected_kernel(m1: float, v1: float, m2: float, v2: float, d: int) -> float:
    """E (x.y / d + 1)^3 for x ~ N(m1, v1 I), y ~ N(m2, v2 I)."""
    a = m1 * m2
    s = (v1 * m2**2 + v2 * m1**2 + v1 * v2) / d
    c = 6 * v1 * v2 * m1 * m2 / d**2
    return (a + 1) ** 3 + 3 * (a + 1) * s + c


def test_is_its_definition_whatever_the_block(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = draw(17, 5, 0.3, 1.0, generator), draw(23, 5, 0.0, 1.5, generator)
    exact = by_definition(x, y)
    for side in (1, 4, 1024):
        monkeypatch.setattr("gen.eval.metrics.lib.kernels.SIDE", side)
        assert KID()(x, y).value == pytest.approx(exact, rel=1e-12)


def test_jackknife_is_leaving_one_out() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = draw(12, 4, 0.3, 1.0, generator), draw(9, 4, 0.0, 1.0, generator)
    without = torch.tensor([by_definition(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(12)], dtype=torch.float64)
    exact = float((11 / 12 * ((without - without.mean()) ** 2).sum()).sqrt())
    assert KID()(x, y).se == pytest.approx(exact, rel=1e-10)


def test_is_unbiased_and_its_error_is_the_spread_of_repeated_draws() -> None:
    d, n, draws = 16, 200, 200
    generator = torch.Generator().manual_seed(1)
    reference = draw(4000, d, 0.0, 1.0, generator)
    exact = (
        expected_kernel(0.3, 1.2, 0.3, 1.2, d) + expected_kernel(0, 1, 0, 1, d) - 2 * expected_kernel(0.3, 1.2, 0, 1, d)
    )
    real = reference[:500]
    found = [KID()(draw(n, d, 0.3, 1.2, generator), real) for _ in range(draws)]
    values = torch.tensor([e.value for e in found], dtype=torch.float64)
    assert sum(e.se for e in found) / draws == pytest.approx(float(values.std()), rel=0.2)
    fresh = [KID()(draw(n, d, 0.3, 1.2, generator), draw(n, d, 0.0, 1.0, generator)).value for _ in range(draws)]
    mean = torch.tensor(fresh, dtype=torch.float64)
    assert float(mean.mean()) == pytest.approx(exact, abs=4 * float(mean.std()) / draws**0.5)


def test_refuses_what_it_cannot_compare() -> None:
    x = torch.zeros(5, 3)
    for samples, says in (
        (x[:2], "2 samples; it needs at least 3"),
        (x[:, :2], "[5, 2] against [5, 3]"),
        (x / 0, "finite"),
    ):
        with pytest.raises(UserError) as error:
            KID()(samples, x)
        assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="degree = 0"):
        KID(degree=0)
