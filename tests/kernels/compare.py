"""The law of kernels: outputs and all gradients against the exact op, twice the same, and nothing read unwritten."""

from __future__ import annotations

import importlib
import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch


def error_ratio(ours, eager, exact):
    """Our largest error over that of eager PyTorch in the same precision, both against a float64 reference.

    The rule of kernel tests: at most 2. Where eager is exact, one unit in the last place is its error.
    """
    floor = torch.finfo(eager.dtype).eps * float(exact.abs().max().clamp(min=1e-30))
    theirs = max(float((eager.double() - exact).abs().max()), floor)
    return float((ours.double() - exact).abs().max()) / theirs


@contextmanager
def poisoned_memory():
    """Inside, torch.empty and its kin return NaN (or the largest integer): reading what was never written shows."""

    def poison(make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            if out.is_floating_point() or out.is_complex():
                return out.fill_(math.nan)
            return out.fill_(True if out.dtype == torch.bool else torch.iinfo(out.dtype).max)

        return made

    # PyTorch's compiler and decompositions take down PyTorch's functions when they are first imported, which happens
    # as needed: that must not be while these are others.
    for module in ("torch._refs", "torch._dynamo"):
        importlib.import_module(module)
    poisoned = {name: poison(getattr(torch, name)) for name in ("empty", "empty_like", "empty_strided")}
    with (
        mock.patch.dict(vars(torch), poisoned),
        mock.patch.object(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty)),
    ):
        yield


@dataclass(frozen=True)
class Given:
    """An op with some of its arguments given: tables, say, of which no gradient is asked."""

    op: Any
    fixed: dict

    @property
    def name(self):
        return self.op.name

    def only(self, backend):
        return partial(self.op.only(backend), **self.fixed)


def floating(v):
    return isinstance(v, torch.Tensor) and (v.is_floating_point() or v.is_complex())


def doubled(v):
    return v.to(torch.promote_types(v.dtype, torch.float64)) if floating(v) else v


def real(v):
    return torch.view_as_real(v) if v.is_complex() else v


def results(function, inputs, kind):
    """The outputs of function(*inputs), then the gradients of all floating inputs under fixed random cotangents.

    Cotangents are rounded to `kind` for everyone, so that the exact op answers the same question.
    """
    leaves = [v.detach().clone().requires_grad_() if floating(v) else v for v in inputs]
    outs = function(*leaves)
    outs = [outs] if isinstance(outs, torch.Tensor) else list(outs)
    live, generator = [o for o in outs if o.requires_grad], torch.Generator().manual_seed(1)
    given = [torch.randn(o.shape, generator=generator).to(kind).to(o.device, o.dtype) for o in live]
    grads = torch.autograd.grad(live, [v for v in leaves if floating(v)], given)
    return [o.detach() for o in outs], [real(g) for g in grads]


def holds(op, backend, eager, *draws, bound=2.0, repeats=True):
    """Asserts the law of `backend` for these inputs; `eager` is the plain PyTorch that a user would have written.

    The bound is on the root mean square error, over all draws of the inputs. Twice the bound has what says little: the
    error of fewer than 64 numbers, such as the gradient of a few coefficients, and the largest of many. repeats:
    whether results must be the same bits every time. Returns the largest ratio of the first kind.
    """
    kind = next(v.real.dtype for v in draws[0] if floating(v))
    errors = {}
    for inputs in draws:
        with poisoned_memory():
            ours = results(op.only(backend), inputs, kind)
        again, theirs = results(op.only(backend), inputs, kind), results(eager, inputs, kind)
        truth = results(op.only("reference"), [doubled(v) for v in inputs], kind)
        for part in (0, 1):
            for i, four in enumerate(zip(ours[part], again[part], theirs[part], truth[part], strict=True)):
                what = f"{op.name}.{backend} {('output', 'gradient')[part]} {i}"
                assert not repeats or torch.equal(*four[:2]), f"{what} is not repeated bit for bit"
                found = compared(what, *(v.cpu() for v in (four[0], *four[2:])), bound)
                if found is not None:
                    errors.setdefault(what, []).append((*found, four[0].numel()))
    worst = 0.0
    for what, found in errors.items():
        ratio = (sum(a for a, _, _ in found) / sum(b for _, b, _ in found)) ** 0.5
        few = sum(n for _, _, n in found) < 64
        assert ratio <= (2 * bound if few else bound), f"{what}: error {ratio:.2f} times that of eager PyTorch"
        worst = max(worst, ratio)
    return worst


def compared(what, ours, theirs, exact, bound):
    """Mean squares of our error and of eager PyTorch's, or of rounding where that is exact, relative to the result."""
    assert ours.dtype == theirs.dtype, f"{what} is {ours.dtype}"
    assert ours.shape == exact.shape, f"{what} is {list(ours.shape)}"
    if not ours.is_floating_point():
        assert torch.equal(ours, exact), f"{what} differs"
        return None
    if ours.dtype == torch.float64:  # the exact op has no more digits than that
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-13 * max(1.0, float(exact.abs().max())))
        return None
    largest = error_ratio(ours, theirs, exact)
    assert largest <= 2 * bound or ours.numel() < 64, f"{what}: largest error {largest:.2f} times that of eager PyTorch"
    size = float(exact.square().mean().clamp(min=1e-60))
    mine, plain = (float((v.double() - exact).square().mean()) / size for v in (ours, theirs))
    return mine, max(plain, (0.25 * torch.finfo(ours.dtype).eps) ** 2)
