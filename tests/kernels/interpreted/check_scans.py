"""Our kernels of linear attention and the selective scan, interpreted."""

import pytest
import torch

from gen.kernels.backends import linear_attention_triton, selective_scan_triton
from gen.kernels.dispatch import Refused
from gen.kernels.linear_attention import linear_attention
from gen.kernels.state_space import selective_scan
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import scan, tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear_attention(dtype):
    holds(linear_attention, "triton", eager.linear_attention, tokens(1, 2, 37, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_selective_scan(dtype):
    holds(selective_scan, "triton", eager.selective_scan, scan(1, 10, 10, 3, dtype))


def test_the_ops_are_registered_whole():
    q, k, v = (x.detach().requires_grad_() for x in tokens(1, 1, 5))
    torch.library.opcheck(linear_attention_triton._attention, (q, k, v))
    torch.library.opcheck(selective_scan_triton._scan, [v.requires_grad_() for v in scan(1, 3, 4, 2)])


def test_refusals():
    u, delta, A, B, C = scan()
    with pytest.raises(Refused, match="A must be float32, and the others of one dtype"):
        selective_scan.only("triton")(u, delta.half(), A, B, C)
    with pytest.raises(Refused, match="65 numbers of state per channel; kernels keep up to 64"):
        selective_scan.only("triton")(*scan(n=65))
    with pytest.raises(Refused, match="head dims 129 and 9; kernels take up to 128"):
        linear_attention.only("triton")(*tokens(d=129))
