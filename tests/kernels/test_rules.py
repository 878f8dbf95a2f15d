"""Rules of who sees whom: their codes say what they allow, and the lists of tiles forget nobody."""

import pytest
import torch

from gen.kernels.attention.rules import Bidirectional, BlockCausal, BlockDiffusion, Causal, ScaleCausal, decode, encode
from gen.kernels.attention.triton_launch import split, tile_lists

CASES = [
    (Bidirectional(), 23),
    (Causal(), 23),
    (BlockCausal(4), 23),
    (BlockCausal(64), 23),
    (BlockDiffusion(12, 4), 24),
    (BlockDiffusion(13, 4), 26),
    (BlockDiffusion(40, 40), 80),
    (BlockDiffusion(40, 1), 80),
    (ScaleCausal((1, 4, 9, 16)), 30),
    (ScaleCausal((7,)), 7),
]
EACH = pytest.mark.parametrize(("rule", "n"), CASES, ids=str)


def dense(rule, n):
    place = torch.arange(n)
    return rule.allowed(place[:, None], place)


@EACH
def test_codes_say_what_the_rule_allows(rule, n):
    level, reach, own = rule.codes(n)
    seen = (level <= reach[:, None]) | ((own == own[:, None]) & (own >= 0))
    assert torch.equal(seen, dense(rule, n))
    assert {v.dtype for v in (level, reach, own)} == {torch.int32}


@EACH
def test_a_rule_survives_its_integers(rule, n):
    assert decode(encode(rule)) == rule
    assert rule.incompatible_reason(n) is None


@EACH
@pytest.mark.parametrize(("bm", "bn"), [(8, 8), (16, 4), (4, 16), (128, 64)])
def test_every_pair_that_is_allowed_is_visited_and_whole_tiles_need_no_mask(rule, n, bm, bn):
    allowed = dense(rule, n)
    level, reach, own = rule.codes(n)
    by_query, by_key = tile_lists((level, reach, own, own), bm, bn)
    for (tiles, whole, some), table, rows, columns in ((by_query, allowed, bm, bn), (by_key, allowed.mT, bn, bm)):
        for i, listed in enumerate(tiles):
            seen = torch.zeros(n, dtype=torch.bool)
            for j, tile in enumerate(listed[: whole[i] + some[i]].tolist()):
                part = slice(tile * columns, (tile + 1) * columns)
                seen[part] = True
                if j < whole[i]:
                    assert table[i * rows : (i + 1) * rows, part].all()
                    assert (tile + 1) * columns <= n
                    assert (i + 1) * rows <= n
            assert not table[i * rows : (i + 1) * rows, ~seen].any()
            assert len(set(listed.tolist())) == tiles.shape[1]


def test_block_diffusion_visits_a_good_quarter_of_all_tiles():
    level, reach, own = BlockDiffusion(1024, 16).codes(2048)
    (_, whole, some), _ = tile_lists((level, reach, own, own), 64, 64)
    assert int((whole + some).sum()) == 16 + 2 * (16 * 17 // 2)  # its own noisy tile, and clean ones up to its own
    assert int(whole.sum()) == 2 * (16 * 15 // 2)


def test_block_diffusion_as_published():
    """One block is a masked model beside nothing; blocks of one token are an autoregressive one."""
    one = dense(BlockDiffusion(4, 4), 8)
    assert one[:4, :4].all()
    assert not one[:4, 4:].any()
    single = dense(BlockDiffusion(4, 1), 8)
    assert torch.equal(single[:4, :4], torch.eye(4, dtype=torch.bool))
    assert torch.equal(single[:4, 4:], torch.ones(4, 4).tril(-1).bool())
    assert torch.equal(single[4:, 4:], torch.ones(4, 4).tril().bool())
    assert not single[4:, :4].any()


def test_wrong_rules_say_so():
    for wrong in (lambda: BlockCausal(0), lambda: BlockDiffusion(8, 0), lambda: ScaleCausal((1, 0))):
        with pytest.raises(ValueError, match="it must be at least 1"):
            wrong()
    assert "24 positions" in BlockDiffusion(12, 4).incompatible_reason(23)
    assert "30 positions" in ScaleCausal().incompatible_reason(31)


@pytest.mark.parametrize(
    ("dim", "pieces"), [(16, (16, 0)), (24, (32, 0)), (32, (32, 0)), (40, (32, 16)), (64, (64, 0)), (72, (64, 16)),
                        (80, (64, 16)), (96, (64, 32)), (120, (128, 0)), (128, (128, 0))]
)  # fmt: skip
def test_head_dims_are_cut_into_two_powers_of_two(dim, pieces):
    assert split(dim) == pieces
