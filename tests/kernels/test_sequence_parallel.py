"""Attention over tokens that processes share: the numbers of one process, and the predicted bytes."""

import pytest
import torch

from gen.kernels.attention import packed_attention
from gen.kernels.linear_attention import linear_attention
from tests.kernels.sequences import DTYPES, RULES, numbers, packed, rotation, separate
from tests.ranks import spread

pytestmark = pytest.mark.slow  # three processes are started

TIGHT = {"float32": 1e-6, "float64": 1e-12, "bfloat16": 2**-7}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Three, over which four heads do not divide, so that Ulysses refuses; and two of them that form a group."""
    return spread("tests.kernels.sequences:everything", 3, tmp_path_factory.mktemp("three"))


def of(processes, count):
    """The results of each process of the group of that many."""
    prefix = f"{count} "
    return [{name.removeprefix(prefix): v for name, v in rank.items() if name.startswith(prefix)}
            for rank in processes[-count:]]  # fmt: skip


@pytest.fixture
def two(processes):
    return of(processes, 2)


@pytest.fixture(params=[2, 3])
def ranks(request, processes):
    return of(processes, request.param)


def whole(ranks, name):
    """All tokens of a result, process by process."""
    return torch.cat([rank[name] for rank in ranks], 1)


def alone(kind, rule):
    """Output and gradient of one process, by the op and the backend that it chooses."""
    qkv, weights = packed(DTYPES[kind])
    qkv.requires_grad_()
    out = packed_attention(qkv, rule)
    (out * weights).sum().backward()
    return out.detach(), qkv.grad


def far(ours, theirs):
    """The largest difference, as a share of the largest number."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_ulysses_is_one_process_to_the_bit(two, rule, kind):
    out, grad = alone(kind, RULES[rule])
    assert torch.equal(whole(two, f"ulysses {rule} {kind} out"), out)
    assert torch.equal(whole(two, f"ulysses {rule} {kind} dqkv"), grad)


@pytest.mark.parametrize("kind", DTYPES)
def test_the_ring_is_one_process_within_rounding(ranks, kind):
    out, grad = alone(kind, RULES["everyone"])
    assert far(whole(ranks, f"ring {kind} out"), out) <= TIGHT[kind]
    assert far(whole(ranks, f"ring {kind} dqkv"), grad) <= TIGHT[kind]


def test_angles_and_gains_are_of_all_positions(ranks):
    qkv, weights = packed(torch.float64)
    gain, angles = 1 + numbers(8, dtype=torch.float64, seed=6), numbers(12, 4, dtype=torch.float64, seed=7)
    out = packed_attention(qkv.requires_grad_(), **rotation(gain, angles))
    (out * weights).sum().backward()
    for op in ("ulysses", "ring") if len(ranks) == 2 else ("ring",):
        assert far(whole(ranks, f"rotated {op} out"), out.detach()) <= TIGHT["float64"]
        assert far(whole(ranks, f"rotated {op} dqkv"), qkv.grad) <= TIGHT["float64"]


def test_a_grid_of_four_is_one_process_within_rounding(tmp_path):
    ranks = spread("tests.kernels.sequences:grids", 4, tmp_path)
    qkv, weights = packed(torch.float64)
    gain, angles = 1 + numbers(8, dtype=torch.float64, seed=6), numbers(12, 4, dtype=torch.float64, seed=7)
    out = packed_attention(qkv.requires_grad_(), **rotation(gain, angles))
    (out * weights).sum().backward()
    for ulysses in (1, 2, 4):
        assert far(whole(ranks, f"{ulysses} out"), out.detach()) <= TIGHT["float64"]
        assert far(whole(ranks, f"{ulysses} dqkv"), qkv.grad) <= TIGHT["float64"]
        assert all(torch.equal(rank[f"{ulysses} sent"], rank[f"{ulysses} predicted"]) for rank in ranks)


def test_the_ring_by_our_kernels_is_the_ring(tmp_path):
    pytest.importorskip("triton")
    ranks = spread("tests.kernels.sequences:interpreted", 3, tmp_path, fresh=True, TRITON_INTERPRET="1")
    qkv = numbers(1, 12, 3, 2, 16, dtype=torch.float32).requires_grad_()
    out = packed_attention(qkv)
    (out * numbers(1, 12, 2, 16, dtype=torch.float32)).sum().backward()
    assert far(whole(ranks, "out"), out.detach()) <= 2e-6
    assert far(whole(ranks, "dqkv"), qkv.grad) <= 2e-6


@pytest.mark.parametrize("kind", DTYPES)
def test_linear_attention_is_one_process_within_rounding(ranks, kind):
    *inputs, weights = (x.transpose(1, 2) for x in separate(DTYPES[kind]))
    inputs = [x.requires_grad_() for x in inputs]
    out = linear_attention(*inputs)
    (out * weights).sum().backward()
    for name, theirs in zip(("out", "dq", "dk", "dv"), (out, *(x.grad for x in inputs)), strict=True):
        assert far(whole(ranks, f"linear {kind} {name}"), theirs.detach().transpose(1, 2)) <= TIGHT[kind], name


def test_bytes_are_those_predicted(ranks):
    for rank in ranks:
        counted = {name.removesuffix(" sent"): sent for name, sent in rank.items() if name.endswith(" sent")}
        for name, sent in counted.items():
            if name != "gather":
                assert torch.equal(sent, rank[f"{name} predicted"]), name
                assert 0 < sent[0] < sent[1]
        assert counted["gather"][0] == counted["gather"][1]


def test_gathered_tokens_are_all_and_their_gradient_is_everyones(ranks):
    h = numbers(2, 12, 3, dtype=torch.float64)
    total = sum(range(1, len(ranks) + 1))
    assert all(torch.equal(rank["gather out"], h) for rank in ranks)
    assert torch.allclose(whole(ranks, "gather grad"), 2 * total * h, rtol=1e-14)
