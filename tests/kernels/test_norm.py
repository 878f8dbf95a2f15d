"""Modulated norms and gated residual sums in PyTorch: the law of kernels, dtypes, derivatives and wrong shapes."""

import pytest
import torch

from gen.kernels.dispatch import explain
from gen.kernels.norm import gated_residual, gated_residual_norm, modulated_norm
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.norms import CASES, gated, in_autocast, modulated

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
KINDS = pytest.mark.parametrize(("kind", "gained", "per_token"), CASES)


@DTYPES
@KINDS
def test_against_the_formulas(kind, gained, per_token, dtype):
    x, y, gate, *rest = inputs = gated(kind, gained, per_token, dtype)
    holds(gated_residual_norm, "torch", eager.gated_residual_norm, inputs)
    holds(modulated_norm, "torch", eager.modulated_norm, (x, *rest))
    holds(gated_residual, "torch", eager.gated_residual, (x, y, gate))


@pytest.mark.parametrize("wide", [True, False])
@KINDS
def test_dtypes_of_autocast(kind, gained, per_token, wide):
    x, y, gate, *rest = inputs = in_autocast(gated(kind, gained, per_token, torch.bfloat16), wide)
    rounded = eager.rounded_to(x.dtype)
    holds(gated_residual_norm, "torch", rounded(eager.gated_residual_norm), inputs)
    holds(modulated_norm, "torch", rounded(eager.modulated_norm), (x, *rest))
    holds(gated_residual, "torch", rounded(eager.gated_residual), (x, y, gate))


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_all_derivatives(kind):
    inputs = [v.requires_grad_() if isinstance(v, torch.Tensor) else v
              for v in gated(kind, True, False, torch.float64, 1, 2, 3)]  # fmt: skip
    for backend in ("torch", "reference"):
        op = gated_residual_norm.only(backend)
        assert torch.autograd.gradcheck(op, inputs)
        assert torch.autograd.gradgradcheck(op, inputs)


def test_a_compiled_graph_stays_whole():
    inputs = gated("layer", False, False, torch.float32)
    compiled = torch.compile(gated_residual_norm, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(compiled(*inputs), gated_residual_norm(*inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_explain(capsys):
    explain(modulated_norm, *modulated("rms", True, False, torch.float32))
    lines = capsys.readouterr().out.splitlines()
    assert "refuses: tensors lie on cpu" in lines[1]
    assert lines[2].split() == ["torch", "chosen"]


def test_wrong_arguments():
    x, scale, shift, gain, *_ = modulated("rms", True, False, torch.float32)
    with pytest.raises(ValueError, match=r"modulated_norm: x is \[2, 40\]; it must be \[B, N, D\]"):
        modulated_norm(x[:, 0], scale, shift)
    with pytest.raises(ValueError, match=r"scale is \[2, 40\]; it must be \[2, 1, 40\] or \[2, 11, 40\]"):
        modulated_norm(x, scale[:, 0], shift)
    with pytest.raises(ValueError, match=r"gain is \[39\]; it must be \[40\]"):
        modulated_norm(x, scale, shift, gain[1:])
    with pytest.raises(ValueError, match="kind is 'batch'; it must be 'layer' or 'rms'"):
        modulated_norm(x, scale, shift, kind="batch")
    with pytest.raises(ValueError, match=r"gated_residual: y is \[2, 10, 40\]; it must be x's \[2, 11, 40\]"):
        gated_residual(x, x[:, 1:], scale)
    with pytest.raises(ValueError, match=r"gated_residual_norm: gate is \[1, 1, 40\]"):
        gated_residual_norm(x, x, scale[:1], scale, shift)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@KINDS
def test_on_a_gpu(kind, gained, per_token, dtype):
    for op, plain, make in (
        (modulated_norm, eager.modulated_norm, modulated),
        (gated_residual_norm, eager.gated_residual_norm, gated),
    ):
        inputs = make(kind, gained, per_token, dtype, 3, 37, 1152)
        holds(op, "triton", plain, [v.cuda() if isinstance(v, torch.Tensor) else v for v in inputs])
    if dtype == torch.bfloat16:
        inputs = [v.cuda() if isinstance(v, torch.Tensor) else v for v in in_autocast(inputs)]
        holds(gated_residual_norm, "triton", eager.gated_residual_norm, inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_token", [True, False])
def test_gated_residual_on_a_gpu(per_token, dtype):
    x, y, gate = (v.cuda() for v in gated("layer", False, per_token, dtype, 3, 37, 1152)[:3])
    holds(gated_residual, "triton", eager.gated_residual, (x, y, gate))
