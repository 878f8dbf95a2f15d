"""HiPPO matrices and the eigenvalues taken from them."""

import math

import pytest
import torch

from gen.models.layers.ssm.hippo import conjugate_pairs, diagonal, legs, legs_diagonal, legt


def test_legs_by_hand():
    A, B, P = legs(3)
    a, b, c = math.sqrt(3), math.sqrt(5), math.sqrt(15)
    expected = torch.tensor([[-1, 0, 0], [-a, -2, 0], [-b, -c, -3]], dtype=torch.float64)
    torch.testing.assert_close(A, expected, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(B, torch.tensor([1, a, b], dtype=torch.float64), rtol=1e-15, atol=1e-15)
    assert P.shape == (3, 1)


def test_legt_by_hand():
    A, B, P = legt(3)
    a, b, c = math.sqrt(3), math.sqrt(5), math.sqrt(15)
    expected = -0.5 * torch.tensor([[1, -a, b], [a, 3, -c], [b, c, 5]], dtype=torch.float64)
    torch.testing.assert_close(A, expected, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(B, torch.tensor([1, a, b], dtype=torch.float64) / 2, rtol=1e-15, atol=1e-15)
    assert P.shape == (3, 2) and P[0, 0] == P[2, 0] == P[1, 1] == 0


@pytest.mark.parametrize(("matrix", "real"), [(legs, -0.5), (legt, 0.0)])
@pytest.mark.parametrize("n", [4, 32, 64])
def test_with_its_low_rank_part_each_is_normal(matrix, real, n):
    A, _, P = matrix(n)
    normal = A + P @ P.T
    assert (normal @ normal.T - normal.T @ normal).abs().max() < 1e-12 * normal.norm() ** 2
    assert (A @ A.T - A.T @ A).abs().max() > 0.1  # which it is not by itself
    symmetric = (normal + normal.T) / 2
    torch.testing.assert_close(symmetric, real * torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-11)
    assert (torch.linalg.eigvals(normal).real - real).abs().max() < 1e-10


def test_legs_eigenvalues():
    lam = legs_diagonal(32)
    assert len(lam) == 16 and (lam.real == lam.real[0]).all() and lam.real[0] == pytest.approx(-0.5, abs=1e-14)
    assert [round(float(v), 1) for v in lam.imag.flip(0)[:3]] == [325.4, 107.1, 62.6]


@pytest.mark.parametrize("matrix", [legs, legt])
def test_pairs_are_the_matrix_in_another_basis(matrix):
    A, B, P = matrix(8)
    lam, V, B_, P_ = conjugate_pairs(A, B, P)
    both, lams = torch.cat([V, V.conj()], 1), torch.cat([lam, lam.conj()])
    torch.testing.assert_close(both.mH @ both, torch.eye(8, dtype=both.dtype), rtol=0, atol=1e-13)
    low = torch.cat([P_, P_.conj()])
    rebuilt = both @ (torch.diag(lams) - low @ low.mH) @ both.mH
    torch.testing.assert_close(rebuilt, A.to(rebuilt.dtype), rtol=0, atol=1e-12)
    torch.testing.assert_close(both @ torch.cat([B_, B_.conj()]), B.to(both.dtype), rtol=0, atol=1e-13)


def test_diagonal_starts():
    assert diagonal("lin", 6).tolist() == pytest.approx([-0.5, -0.5 + 1j * math.pi, -0.5 + 2j * math.pi])
    assert diagonal("quad", 4).tolist() == pytest.approx([-0.5 + 1j / math.pi, -0.5 + 9j / math.pi])
    assert diagonal("real", 6).tolist() == [-1, -2, -3]
    assert diagonal("inv", 4).tolist() == pytest.approx([-0.5 + 12j / math.pi, -0.5 + 4j / (3 * math.pi)])
    assert torch.equal(diagonal("legs", 8), legs_diagonal(8))


def test_inv_is_the_limit_of_legs():
    """The largest frequencies: the relative difference to the law falls as 1 / n."""

    def error(n):
        lam = legs_diagonal(n).imag.flip(0)
        return ((diagonal("inv", n).imag - lam) / lam)[:4].abs()

    assert error(256).max() < 0.03
    assert (error(64) / error(256)).tolist() == pytest.approx([4.0] * 4, rel=0.15)
