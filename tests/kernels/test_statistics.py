"""Statistics of logits: the law of kernels, ties, the mask token, extremes, and how little memory they take."""

import math

import pytest
import torch

from gen.kernels.dispatch import Refused, explain
from gen.kernels.statistics import chunked as statistics_chunked
from gen.kernels.statistics import token_statistics
from tests.kernels import eager
from tests.kernels.compare import holds

BACKENDS = pytest.mark.parametrize("backend", ["chunked", "reference"])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(statistics_chunked, "AT_ONCE", 64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_chunks_are_as_exact_as_a_whole_softmax(dtype):
    for mask_token_id in (None, 0, 77, 299):
        logits = (torch.randn(3, 5, 300) * 4 - 20).to(dtype)
        logits[0, 0, 100:] = -torch.inf
        holds(token_statistics, "chunked", eager.token_statistics, (logits, mask_token_id))


@BACKENDS
def test_ties_go_to_the_lowest_index(backend):
    logits = torch.zeros(4, 300)
    logits[1, [290, 70, 150]] = 2.0
    logits[2, [290, 70]], logits[2, 150] = 2.0, 3.0
    logits[3, 299] = 1.0
    found = token_statistics.only(backend)(logits)
    assert found.best.tolist() == [0, 70, 150, 299]
    assert found.second.tolist() == [1, 150, 70, 0]
    found = token_statistics.only(backend)(logits, 70)
    assert found.best.tolist() == [0, 150, 150, 299]
    assert found.second.tolist() == [1, 290, 290, 0]


@BACKENDS
def test_random_ties_are_those_of_a_stable_sort(backend):
    logits = torch.randint(0, 4, (50, 200)).float()
    found = token_statistics.only(backend)(logits, 13)
    index = logits.index_fill(-1, torch.tensor(13), -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    assert torch.equal(torch.stack([found.best, found.second], -1), index[:, :2])


@BACKENDS
def test_uniform_certain_and_extreme_rows(backend):
    logits = torch.zeros(3, 129)
    logits[1, 5] = 1e4
    logits[2] = -1e4
    found = token_statistics.only(backend)(logits, 128)
    torch.testing.assert_close(found.entropy, torch.tensor([math.log(128), 0.0, math.log(128)]))
    torch.testing.assert_close(found.lse, torch.tensor([math.log(128), 1e4, math.log(128) - 1e4]))
    torch.testing.assert_close(found.confidence, torch.tensor([1 / 128, 1.0, 1 / 128]), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.margin, torch.tensor([0.0, 1.0, 0.0]))


@BACKENDS
def test_one_possible_token(backend):
    logits = torch.full((1, 200), -torch.inf)
    logits[0, 190] = 3.0
    found = token_statistics.only(backend)(logits.requires_grad_())
    assert (found.best.item(), found.second.item(), found.second_logit.item(), found.entropy.item()) == (
        190,
        0,
        -torch.inf,
        0.0,
    )
    (grad,) = torch.autograd.grad(found.best_logit.sum() + found.lse.sum() + found.entropy.sum(), logits)
    assert grad.isfinite().all()
    assert grad[0, 190] == 2.0


@BACKENDS
def test_gradients(backend):
    logits = torch.randn(1, 80, dtype=torch.float64, requires_grad=True)  # two chunks
    assert torch.autograd.gradcheck(lambda x: token_statistics.only(backend)(x, 3)[2:], logits)


def test_the_op_is_registered_whole():
    logits = torch.randn(2, 130, requires_grad=True)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")  # the fourth takes no integer outputs
    torch.library.opcheck(statistics_chunked._statistics, (logits, 3), test_utils=tests)


def test_a_compiled_graph_stays_whole():
    logits = torch.randn(2, 130)
    compiled = torch.compile(lambda x: token_statistics(x, 3).confidence, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(logits), token_statistics(logits, 3).confidence)


def test_no_second_tensor_of_the_vocabulary_is_made(monkeypatch):
    monkeypatch.setattr(statistics_chunked, "AT_ONCE", 1 << 12)
    logits = torch.randn(4, 100_000)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        token_statistics(logits, 3)
    allocations = [event.cpu_memory_usage for event in profile.events()]
    assert 0 < max(allocations) < logits.numel() * 4 / 20


def test_explain_and_refusals(capsys):
    explain(token_statistics, torch.zeros(2, 3))
    lines = capsys.readouterr().out.splitlines()
    assert "refuses: tensors lie on cpu" in lines[1]
    assert lines[2].split() == ["chunked", "chosen"]
    with pytest.raises(Refused, match=r"chunked refuses: logits are torch.int64"):
        token_statistics.only("chunked")(torch.zeros(2, 3, dtype=torch.int64))


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"mask_token_id is 3; it must be in 0 \.\.\. 2"):
        token_statistics(torch.zeros(2, 3), 3)
    with pytest.raises(ValueError, match="of 2 logits fewer than two tokens may be drawn"):
        token_statistics(torch.zeros(1, 2), 0)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 40, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(rows, dtype):
    logits = (torch.randn(rows, 50_001) * 4).to(dtype).cuda()
    for mask_token_id in (None, 50_000):
        holds(token_statistics, "triton", eager.token_statistics, (logits, mask_token_id))
