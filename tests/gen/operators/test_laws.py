"""The laws of measurement operators, over every name of the folder: adjoint, matrix, solves, decomposition, batches."""

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, names
from gen.operators.lib.operator import Operator
from tests.over import over

PICTURE = (3, 8, 6)
MATRIX = [[1.0, 0.5, -2.0, 0.0], [0.0, 1.0, 1.0, 3.0], [1.0, 1.5, -1.0, 3.0]]  # of rank 2
CASES = {  # specs by name, each with a shape
    "bicubic": [({}, PICTURE), ({"factor": 4}, (8,))],
    "blur": [
        ({"width": 0.6}, PICTURE),
        ({"width": 0.7, "edges": "reflect"}, (1, 5, 4)),
        ({"kernel": "motion", "width": 3.3, "angle": 30}, (1, 6, 5)),
        ({"kernel": "motion", "width": 2.5, "angle": -60, "edges": "reflect"}, (2, 5, 4)),
    ],
    "compressed": [({}, PICTURE), ({"kind": "sign", "share": 0.5}, (6,)), ({"kind": "gaussian"}, (1, 4, 4))],
    "fourier": [
        ({}, (2, 4, 6)),
        ({"pattern": "points", "acceleration": 2}, (1, 5, 4)),
        ({"complex": True, "acceleration": 2}, (2, 4, 4)),
        ({"coils": 3, "acceleration": 1.5}, (2, 4, 4)),
        ({"coils": 2, "complex": True}, (2, 4, 4)),
    ],
    "grey": [({}, PICTURE)],
    "inpaint": [
        ({}, (2, 4, 4)),
        ({"box": [1, 4, 0, 3], "outside": True}, PICTURE),
        ({"missing": 0.4}, (7,)),
        ({"mask": "lama"}, (1, 6, 7)),
    ],
    "matrix": [({"rows": MATRIX}, (1, 2, 2)), ({"rows": MATRIX[:2]}, (4,))],
    "radon": [({"views": 5}, (2, 5, 4)), ({"views": 3, "arc": 60, "start": -30, "detectors": 4}, (1, 4, 4))],
    "pool": [({}, PICTURE), ({"factor": 3}, (6,))],
}
EVERY = [(name, spec, shape) for name, cases in CASES.items() for spec, shape in cases]


def operator(case):
    name, spec, shape = case
    return build("operators", {"name": name, **spec}).on(shape)


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def close(got, want, within=1e-10):
    torch.testing.assert_close(got, want, rtol=within, atol=within)


def dense(op):
    """A as a matrix, column by column."""
    n = torch.Size(op.shape).numel()
    return op.A(torch.eye(n, dtype=torch.float64).view(n, *op.shape)).flatten(1).T


def test_every_operator_is_tested():
    """Those of test_nonlinear.py too."""
    assert {*CASES, "clip", "gfpgan", "jpeg", "phase", "physics", "real_esrgan"} == set(names("operators"))


@over(case=EVERY)
def test_the_adjoint_is_exact_and_the_map_is_the_matrix(case):
    op = operator(case)
    x, y = normal(3, *op.shape), normal(3, *op.measured)
    left, right = (op.A(x) * y).sum(), (x * op.At(y)).sum()
    assert abs(left - right) <= 1e-12 * op.A(x).norm() * y.norm()
    close(op.A(x).flatten(1), x.flatten(1) @ dense(op).T)
    close(op.vjp(x, y), op.At(y))
    assert op.A(x.float()).dtype == torch.float32
    for row in range(3):
        close(op.A(x[row : row + 1])[0], op.A(x)[row])


@over(case=EVERY)
def test_the_pseudo_inverse_solve_and_prox_are_those_of_the_matrix(case):
    """And of the defaults that need A and its adjoint only."""
    op = operator(case)
    M, y, z = dense(op), normal(3, *op.measured), normal(3, *op.shape)
    noise, c = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64), torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    for its in (op, Iterated(op)):
        close(its.pinv(y).flatten(1), y.flatten(1) @ torch.linalg.pinv(M, rtol=1e-9).T, 1e-7)
        gram = torch.stack(
            [k * M @ M.T + s**2 * torch.eye(len(M), dtype=M.dtype) for k, s in zip(c, noise, strict=True)]
        )
        exact = torch.linalg.solve(gram, y.flatten(1)[..., None])[..., 0]
        close(its.solve(y, noise, c).flatten(1), exact, 1e-7)
        x = its.prox(z, y, noise)
        close(op.At(op.A(x) - y) + noise.view(3, *[1] * len(op.shape)) * (x - z), torch.zeros_like(x), 1e-7)
        close(its.prox(z, op.A(z + 1), 0.0), z + its.pinv(op.A(torch.ones_like(z))), 1e-6)
    largest = float(torch.linalg.matrix_norm(M, 2)) if M.numel() else 0.0
    assert op.norm() == pytest.approx(largest, rel=1e-3 if op.svd() is None else 1e-9)
    assert Iterated(op).norm() == pytest.approx(largest, rel=1e-3)


class Iterated(Operator):
    """An operator of which A and its adjoint only are known."""

    def __init__(self, op):
        super().__init__(op.shape, op.measured)
        self.A, self.At = op.A, op.At


@over(case=EVERY)
def test_the_decomposition_is_one(case):
    op = operator(case)
    x, y, svd = normal(3, *op.shape), normal(3, *op.measured), op.svd()
    if svd is None:
        return
    c, s = svd.Vt(x), svd.s
    close(svd.V(c), x)
    close(svd.Vt(svd.V(c)), c)
    close(svd.U(s * c), op.A(x))
    close(svd.V(s * svd.Ut(y)), op.At(y))
    close(svd.Ut(svd.U((s > 0) * c)) * (s > 0), (s > 0) * c)
    close((s > 0) * svd.Ut(op.A(x)), s * c)
    assert (s >= 0).all()


@over(
    case=[
        ("pool", {"factor": 4}, PICTURE, "does not divide"),
        ("matrix", {"rows": MATRIX}, (3,), "4"),
        ("inpaint", {"box": [0, 2, 0, 9]}, PICTURE, "8 x 6"),
        ("inpaint", {"box": [0, 2, 0, 2]}, (7,), "of pictures"),
    ]
)
def test_what_cannot_be_measured_is_refused(case):
    with pytest.raises(UserError, match=case[3]):
        operator(case[:3])
