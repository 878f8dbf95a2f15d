"""Our kernels of linear attention, interpreted."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.linear_attention import linear_attention, triton_launch
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear_attention(dtype):
    holds(linear_attention, "triton", eager.linear_attention, tokens(1, 2, 37, dtype=dtype))


def test_the_op_is_registered_whole():
    torch.library.opcheck(triton_launch._attention, [x.detach().requires_grad_() for x in tokens(1, 1, 5)])


def test_refusals():
    with pytest.raises(Refused, match="head dims 129 and 9; kernels take up to 128"):
        linear_attention.only("triton")(*tokens(d=129))
