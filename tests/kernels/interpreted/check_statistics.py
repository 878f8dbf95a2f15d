"""Our kernels of statistics of logits, interpreted: three splits of a row, joined."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.statistics import token_statistics
from gen.kernels.statistics.triton_launch import _statistics
from tests.kernels import eager
from tests.kernels.compare import holds


@pytest.mark.parametrize(
    ("dtype", "mask_token_id"), [(torch.float32, None), (torch.float32, 77), (torch.float16, 0), (torch.bfloat16, 95)]
)
def test_as_exact_as_a_whole_softmax(dtype, mask_token_id):
    logits = (torch.randn(2, 3, 96) * 4 - 20).to(dtype)
    logits[0, 0, 20:] = -torch.inf
    holds(token_statistics, "triton", eager.token_statistics, (logits, mask_token_id))


def test_ties_go_to_the_lowest_index():
    logits = torch.randint(0, 4, (8, 150)).float()
    found = token_statistics.only("triton")(logits, 13)
    index = logits.index_fill(-1, torch.tensor(13), -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(torch.stack([found.best, found.second], -1), index[:, :2])


def test_one_possible_token():
    logits = torch.full((2, 200), -torch.inf)
    logits[0, 190], logits[1, 1] = 3.0, -2.0
    found = token_statistics.only("triton")(logits.requires_grad_())
    assert found.best.tolist() == [190, 1]
    assert found.second.tolist() == [0, 0]
    assert found.entropy.tolist() == [0.0, 0.0]
    (grad,) = torch.autograd.grad(found.best_logit.sum() + found.lse.sum() + found.entropy.sum(), logits)
    assert grad.isfinite().all()
    assert grad[0, 190] == 2.0


def test_the_op_is_registered_whole():
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")  # the fourth takes no integer outputs
    torch.library.opcheck(_statistics, (torch.randn(1, 70, requires_grad=True), 3), test_utils=tests)


def test_refusals():
    with pytest.raises(Refused, match="logits are not contiguous"):
        token_statistics.only("triton")(torch.zeros(3, 4).mT)
