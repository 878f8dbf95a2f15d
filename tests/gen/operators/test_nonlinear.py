"""Operators that are not linear, and those of another library."""

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.operators.physics import Physics
from gen.operators.pool import Pool

BENT = [
    ("jpeg", (3, 8, 8)),
    ("phase", (2, 4, 5)),
    ("clip", (1, 4, 4)),
    ("real_esrgan", (3, 16, 8)),
    ("gfpgan", (1, 9, 8)),
]
WITHOUT_INVERSE = ("phase", "real_esrgan", "gfpgan")


@pytest.mark.parametrize(("name", "shape"), BENT)
def test_one_that_is_not_linear_has_a_derivative_or_says_that_it_has_none(name, shape):
    op = build("operators", name).on(shape)
    x = torch.rand(2, *shape, dtype=torch.float64) * 2 - 1
    y, v = op.A(x), torch.randn(2, *op.measured, dtype=torch.float64)
    assert tuple(y.shape[1:]) == op.measured
    torch.testing.assert_close(op.A(x[1:]), y[1:])
    for refused in (lambda: op.At(v), lambda: op.solve(v, 0.1), lambda: op.prox(x, y, 1.0), op.norm):
        with pytest.raises(UserError, match="not linear"):
            refused()
    if name in WITHOUT_INVERSE:
        with pytest.raises(UserError, match="not linear"):
            op.pinv(y)
    else:
        torch.testing.assert_close(op.A(op.pinv(y)), y, rtol=0, atol=0.1 if name == "jpeg" else 1e-12)
    if not op.differentiable:
        with pytest.raises(UserError, match="derivative"):
            op.vjp(x, v)
        return
    d = 1e-6 * torch.randn(x.shape, dtype=torch.float64)
    change = ((op.A(x + d) - op.A(x - d)) / 2 * v).sum()
    torch.testing.assert_close((op.vjp(x, v) * d).sum(), change, rtol=1e-4, atol=1e-10)


def test_less_quality_loses_more():
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    lost = [
        float((build("operators", "jpeg", quality=q).on((3, 16, 16)).A(x) - x).square().mean()) for q in (5, 50, 100)
    ]
    assert lost[0] > lost[1] > lost[2]
    flat = torch.full((1, 1, 8, 8), 51 / 127.5 - 1)
    torch.testing.assert_close(build("operators", "jpeg", quality=100).on((1, 8, 8)).A(flat), flat)


class Theirs:
    """What deepinv's classes have, and no more."""

    def __init__(self):
        self.op = Pool().on((1, 4, 4))

    def A(self, x, **kwargs):
        return self.op.A(x)

    def A_adjoint(self, y, **kwargs):
        return self.op.At(y)


def test_an_object_of_another_library_is_an_operator():
    theirs = Theirs()
    op, x = Physics(theirs).on((1, 4, 4)), torch.rand(2, 1, 4, 4, dtype=torch.float64)
    y = op.A(2 * x - 1)
    assert op.measured == (1, 2, 2)
    torch.testing.assert_close(op.from_unit(theirs.A(x)), y)
    torch.testing.assert_close(op.pinv(y), theirs.op.pinv(y))
    torch.testing.assert_close(op.prox(x, y, 0.3), theirs.op.prox(x, y, 0.3))
    theirs.A_dagger = lambda y: y.new_zeros(len(y), 1, 4, 4)
    assert not op.pinv(y).any()
    with pytest.raises(UserError, match="lacks A and A_adjoint"):
        Physics(torch.nn.Identity())
