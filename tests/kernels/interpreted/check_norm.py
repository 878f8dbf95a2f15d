"""Our kernels of modulated norms and gated residual sums, interpreted."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gen.kernels.dispatch import Refused
from gen.kernels.norm import gated_residual, gated_residual_norm, modulated_norm
from gen.kernels.norm.triton_launch import _gated, _norm
from gen.models.layers.block import Block
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.norms import CASES, gated, in_autocast, modulated


@pytest.mark.parametrize(("kind", "gained", "per_token"), CASES)
def test_float32(kind, gained, per_token):
    inputs = gated(kind, gained, per_token, torch.float32, 1)
    holds(modulated_norm, "triton", eager.modulated_norm, (inputs[0], *inputs[3:]))
    holds(gated_residual_norm, "triton", eager.gated_residual_norm, inputs)


@pytest.mark.parametrize(("dtype", "per_token"), [(torch.float16, True), (torch.bfloat16, False)])
def test_half_precision(dtype, per_token):
    inputs = gated("layer", True, per_token, dtype, 1)
    holds(gated_residual_norm, "triton", eager.gated_residual_norm, inputs)
    holds(gated_residual, "triton", eager.gated_residual, inputs[:3])


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(("kind", "gained", "per_token"), [("rms", True, True), ("layer", True, False)])
def test_dtypes_of_autocast(kind, gained, per_token, wide):
    x, y, gate, *rest = inputs = in_autocast(gated(kind, gained, per_token, torch.bfloat16, 1), wide)
    rounded = eager.rounded_to(x.dtype)
    holds(modulated_norm, "triton", rounded(eager.modulated_norm), (x, *rest))
    holds(gated_residual_norm, "triton", rounded(eager.gated_residual_norm), inputs)
    holds(gated_residual, "triton", rounded(eager.gated_residual), (x, y, gate))


class OurOps(TorchDispatchMode):
    """Counts the calls of our operators by name."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16])
def test_a_block_trained_in_autocast_takes_our_kernels(rms, stream):
    block, h, c = Block(32, 2, 64, rms=rms), torch.randn(2, 5, 32).to(stream), torch.randn(2, 32)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with OurOps() as ops:
        with torch.autocast("cpu", torch.bfloat16):
            out = block.fused_forward(h, c)
        out.float().square().sum().backward()
    ours = {name: n for name, n in ops.calls.items() if name.startswith("gen_kernels") and "norm_rope" not in name}
    parts = ("norm", "gated_residual", "norm_backward", "gated_residual_backward")
    wanted = dict(zip((f"gen_kernels.{part}.default" for part in parts), (2, 1, 2, 1), strict=True))
    assert {name: ours.get(name) for name in wanted} == wanted and out.dtype == stream
    with torch.no_grad():
        exact = h.float() + block(h.float(), c, "block")
    assert float((out.detach() - exact).norm() / exact.norm()) < 0.02
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in block.parameters())


@pytest.mark.parametrize("per_token", [False, True])
def test_gated_residual(per_token):
    holds(gated_residual, "triton", eager.gated_residual, gated("layer", False, per_token, torch.float32)[:3])


def test_gated_residual_of_one_token_and_its_second_derivatives():
    x, y, gate = (v.double().float().requires_grad_() for v in gated("layer", False, False, torch.float32, n=1)[:3])
    holds(gated_residual, "triton", eager.gated_residual, (x, y, gate))
    slopes = []
    for backend in ("triton", "torch"):
        out = gated_residual.only(backend)(x, y, gate).square().sum()
        slope = torch.autograd.grad(out, (y, gate), create_graph=True)
        slopes.append(torch.autograd.grad(sum(v.square().sum() for v in slope), (x, y, gate)))
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("kind", "per_token", "constant"), [("layer", False, 6), ("rms", True, 0), ("layer", True, 3)])
def test_second_derivatives(kind, per_token, constant):
    *given, kind, eps = gated(kind, True, per_token, torch.float32, 1, 3, 8)
    for op, inputs in ((gated_residual_norm, given), (modulated_norm, [given[0], *given[3:]])):
        leaves = [v.detach().clone().requires_grad_(i != constant) for i, v in enumerate(inputs)]
        wanted, found = [v for v in leaves if v.requires_grad], []
        for backend in ("triton", "torch"):
            outs = op.only(backend)(*leaves, kind, eps)
            total = sum(v.pow(3).sum() for v in (outs if isinstance(outs, tuple) else (outs,)))
            first = torch.autograd.grad(total, wanted, create_graph=True)
            found.append([*first, *torch.autograd.grad(sum(v.square().sum() for v in first), wanted)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.detach().abs().max()))


def test_any_strides():
    x, y, gate, scale, shift, *_ = gated("layer", False, False, torch.float32)
    x, y = (v.transpose(0, 1).contiguous().transpose(0, 1) for v in (x, y))
    holds(gated_residual, "triton", eager.gated_residual, (x, y, gate))
    inputs = (x, y, gate, scale, shift)
    for ours, exact in zip(*(gated_residual_norm.only(b)(*inputs) for b in ("triton", "reference")), strict=True):
        torch.testing.assert_close(ours, exact)


def test_the_op_is_registered_whole():
    x, y, gate, scale, shift, gain, *_ = gated("layer", True, False, torch.float32, 1, 2, 16)
    for v in (x, y, gate, scale, shift, gain):
        v.requires_grad_()
    torch.library.opcheck(_norm, (x, y, gate, scale, shift, gain, False, 1e-6))
    torch.library.opcheck(_gated, (x, y, gate))
    narrow = [v.detach().bfloat16().requires_grad_() for v in (y, gate, scale, shift)]
    torch.library.opcheck(_norm, (x, *narrow, gain, False, 1e-6))


def test_refusals():
    x, scale, shift, *_ = modulated("layer", False, False, torch.float32)
    op = modulated_norm.only("triton")
    with pytest.raises(Refused, match=r"mixed dtypes torch.bfloat16, torch.float32"):
        op(x, scale.bfloat16(), shift)
    with pytest.raises(Refused, match="not all by sample, or all by token"):
        op(x, scale.expand(-1, 11, -1).contiguous(), shift)
    with pytest.raises(Refused, match="width 4097; kernels take up to 4096"):
        op(*(torch.zeros(1, 1, 4097) for _ in range(3)))
    with pytest.raises(Refused, match="not contiguous"):
        op(x.mT.contiguous().mT, scale, shift)
