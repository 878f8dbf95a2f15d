"""Where one may commit: windows of blocks, of the whole text, and of several blocks at once."""

from __future__ import annotations

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, names
from gen.samplers.block_schedules.multi import Multi
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.samplers.block_schedules.whole import Whole
from gen.samplers.decoding_policies.topk import TopK
from gen.text.decoding import Decoding, TokenSampling
from gen.text.loop import decode, decode_steps
from gen.text.worlds import shuffle_joint
from tests.gen.predictors import Noisy

BLOCKS = names("samplers.block_schedules")


def window(blocks, text, start=0, end=None, block=None):
    """The window of a text such as "..xx_x__": x masked, _ committed, . prompt; what lies behind `end` is padding."""
    masked = torch.tensor([[c == "x" for c in text]])
    ends = torch.tensor([len(text) if end is None else end])
    found = blocks.window(masked & (torch.arange(len(text)) < ends), torch.tensor([start]), ends, block)
    return tuple(int(v) for v in (found.start, found.stop, found.block_start, found.block_stop))


@pytest.mark.parametrize(
    ("text", "start", "block", "expected"),
    [
        ("xxxxxxxx", 0, None, (0, 3, 0, 3)),
        ("___xxxxx", 0, None, (3, 6, 3, 6)),
        ("__x_xxxx", 0, None, (0, 3, 0, 3)),
        ("______xx", 0, None, (6, 8, 6, 8)),  # the last one is shorter
        ("..xxxxxx", 2, None, (2, 5, 2, 5)),
        ("..xxxxxx", 2, 3, (2, 3, 0, 3)),  # the model's own blocks, the prompt in the first
        ("..._xxxx", 3, 3, (3, 6, 3, 6)),
    ],
)
def test_one_block_after_another(text, start, block, expected):
    assert window(SemiAR(3), text, start, block=block) == expected
    assert window(Multi(3, add=1.0), text, start, block=block) == expected
    assert window(Multi(3, add=0.0, most=1), text, start, block=block) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("xxxxxxx", (0, 2, 0, 4)), ("__xxxxx", (2, 4, 0, 4)), ("____xxx", (4, 6, 4, 7))]
)
def test_parts_of_a_block(text, expected):
    assert window(SemiAR(4, sub=2), text) == expected


@pytest.mark.parametrize(
    ("start", "block", "expected"), [(0, None, (0, 8, 0, 8)), (2, None, (2, 8, 2, 8)), (5, 4, (5, 8, 4, 8))]
)
def test_the_whole_text(start, block, expected):
    assert window(Whole(), "." * start + "x" * (8 - start), start, block=block) == expected


@pytest.mark.parametrize(
    ("text", "add", "most", "hi"),
    [
        ("xxxxxxxxxxxx", 0.5, 4, 4),
        ("_xxxxxxxxxxx", 0.5, 4, 4),
        ("__xxxxxxxxxx", 0.5, 4, 8),  # half of the first is committed: the second opens
        ("__xx_xxxxxxx", 0.5, 4, 8),
        ("__xx__xxxxxx", 0.5, 4, 12),
        ("__xx__xxxxxx", 0.5, 2, 8),  # but two are open already
        ("__xx____xxxx", 0.5, 2, 12),  # one that is full is not open
        ("__xx____xxxx", 0.5, 1, 4),
        ("_xxxxxxxxxxx", 0.25, 4, 8),
        ("xxxxxxxxxxxx", 0.0, 3, 12),
        ("xxxxxxxxxxxx", 0.0, 2, 8),
    ],
)
def test_the_next_block_opens_early(text, add, most, hi):
    assert window(Multi(4, add, most), text) == (0, hi, 0, hi)


def test_the_window_moves_on_when_its_first_block_is_full():
    assert window(Multi(4, 0.5, 4), "______xxxxxx") == (4, 12, 4, 12)
    assert window(Multi(4, 0.5, 4), "______xxxx", end=10) == (4, 10, 4, 10)
    assert window(Multi(4, 0.75, 4), "..__xx_xxx", start=2) == (2, 6, 2, 6)
    assert window(Multi(4, 0.5, 4), "..__xx_xxx", start=2) == (2, 10, 2, 10)
    assert window(Multi(4, 0.5, 4), "..__xx__xx", start=2, block=4) == (4, 10, 4, 10)


@pytest.mark.parametrize("block", [None, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_window_holds_a_mask_of_its_row(name, block):
    torch.manual_seed(0)
    for kwargs in ({}, {"length": 5}) if name != "whole" else ({},):
        start, end = torch.randint(0, 9, (300,)), torch.randint(10, 24, (300,))
        places = torch.arange(24)
        inside = (places >= start[:, None]) & (places < end[:, None])
        masked = (torch.rand(300, 24) < torch.rand(300, 1)) & inside
        found = build("samplers.block_schedules", name, **kwargs).window(masked, start, end, block)
        assert (found.start >= start).all()
        assert (found.start < found.stop).all()
        assert (found.stop <= end).all()
        assert (found.block_start <= found.start).all()
        assert (found.stop <= found.block_stop).all()
        in_window = (places >= found.start[:, None]) & (places < found.stop[:, None])
        assert torch.equal((masked & in_window).any(1), masked.any(1))
        assert (~(masked & (places < found.start[:, None]))).all()  # the first mask is in it
        for i in (0, 17):
            one = build("samplers.block_schedules", name, **kwargs).window(
                masked[i : i + 1, : end[i]], start[i : i + 1], end[i : i + 1], block
            )
            assert [int(v) for v in (one.start, one.stop, one.block_start, one.block_stop)] == [
                int(v[i]) for v in (found.start, found.stop, found.block_start, found.block_stop)
            ]


@pytest.mark.parametrize("name", BLOCKS)
def test_an_exact_model_is_recovered_in_any_window(name):
    """One token at a time the order does not matter; more of them err."""
    joint, rows = shuffle_joint(4), 600
    for k, exact in ((1, True), (4, False)):
        how = Decoding(TopK(k), build("samplers.block_schedules", name, **({} if name == "whole" else {"length": 3})),
                       stopping_rules=(), sampling=TokenSampling(1.0))  # fmt: skip
        out = decode(joint, [[]] * rows, 4, how)
        hits = (out.tokens[:, None] == joint.support).all(-1).any(1)
        assert bool(hits.all()) == exact
        if exact:
            counts = (out.tokens[:, None] == joint.support).all(-1).sum(0)
            assert (counts - rows / 24).abs().max() < 5 * (rows / 24) ** 0.5


def test_several_blocks_at_once_take_fewer_steps():
    """Two tokens at a step end a block of three with one; a block that opens early gives the other."""
    steps = {}
    for add in (0.5, 1.0):
        how = Decoding(TopK(2), Multi(3, add, 2), stopping_rules=())
        seen = list(decode_steps(Noisy(), [[1]], 9, how))
        steps[add] = len(seen)
        assert not (seen[-1].tokens == 12).any()
    assert (steps[1.0], steps[0.5]) == (6, 5)


@pytest.mark.parametrize("make", [lambda: Multi(0), lambda: Multi(4, 1.5), lambda: Multi(4, 0.5, 0), lambda: SemiAR(0)])
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(UserError):
        make()
