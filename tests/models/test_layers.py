import pytest
import torch

from gen.kernels.rope import norm_rope
from gen.models.layers.attention import Attention
from gen.models.layers.block import Block, FinalLayer, SplitSwiGLU, SwiGLU
from gen.models.layers.embed import GaussianTimeEmbedding, grid_embedding, waves
from gen.models.layers.rope import Rope, axial_angles, interleaved_angles


def test_waves_are_cosines_then_sines_of_both_conventions():
    t = torch.tensor([0.0, 3.0, 999.0], dtype=torch.float64)
    ours, ported = waves(t, 256), waves(t, 256, freq_shift=1)
    assert torch.equal(ours[0], torch.cat([torch.ones(128), torch.zeros(128)]).double())
    for i in (0, 1, 64, 127):
        angle = t * 10_000.0 ** (-i / 128)
        torch.testing.assert_close(ours[:, i], angle.cos(), rtol=0, atol=1e-11)
        torch.testing.assert_close(ours[:, 128 + i], angle.sin(), rtol=0, atol=1e-11)
    torch.testing.assert_close(ported[:, 127], (t / 10_000).cos(), rtol=0, atol=1e-11)
    assert (ours[2] - ported[2]).abs().max().item() == pytest.approx(1.94, abs=0.01)


def test_grid_embedding_tells_the_column_first():
    table = grid_embedding(16, 4).reshape(4, 4, 16)  # [row, column, channels]
    assert torch.equal(table[0, :, :8], table[3, :, :8])  # the first half does not know the row
    assert torch.equal(table[:, 0, 8:], table[:, 3, 8:])  # the second half does not know the column
    frequency = 10_000.0 ** (-torch.arange(4).double() / 4)
    torch.testing.assert_close(table[1, 3, :4], (3 * frequency).sin().float())
    torch.testing.assert_close(table[1, 3, 12:], frequency.cos().float())


def test_attention_against_its_definition():
    torch.manual_seed(0)
    layer = Attention(12, 3, qk_norm=True).double()
    torch.nn.init.normal_(layer.q_norm.weight)
    h = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = layer.qkv(h).split(12, dim=2)
    heads = []
    for i in range(3):
        one = slice(4 * i, 4 * i + 4)
        qi, ki = (z[..., one] / (z[..., one].square().mean(2, keepdim=True) + 1e-6).sqrt() for z in (q, k))
        weight = ((qi * layer.q_norm.weight) @ ki.mT / 2).softmax(2)
        heads.append(weight @ v[..., one])
    torch.testing.assert_close(layer(h), layer.proj(torch.cat(heads, 2)), rtol=0, atol=1e-13)


def turn(h, rope):
    """h [B, heads, T, d], as attention turns its q and k."""
    return norm_rope(h.transpose(1, 2), cos=rope.freqs_cos, sin=rope.freqs_sin).transpose(1, 2)


@pytest.mark.parametrize("angles", [axial_angles, interleaved_angles])
def test_a_rotation_keeps_lengths_and_products_know_the_distance_only(angles):
    torch.manual_seed(0)
    side, dim = 5, 12
    rope = Rope(angles(dim, side)).double()
    rope.freqs_cos, rope.freqs_sin = (  # the table itself is kept in float32
        part.repeat_interleave(2, -1) for part in (angles(dim, side).cos(), angles(dim, side).sin())
    )
    q, k = torch.randn(2, 1, 1, 1, dim, dtype=torch.float64).expand(-1, -1, -1, side * side, -1)
    turned = turn(q, rope), turn(k, rope)
    for before, after in zip((q, k), turned, strict=True):
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))
    product = (turned[0] @ turned[1].mT).reshape(side, side, side, side)  # [row, column] of q, then of k
    for down, right in ((0, 1), (1, 0), (2, 3), (3, 1)):
        same = [product[i, j, i + down, j + right] for i in range(side - down) for j in range(side - right)]
        torch.testing.assert_close(torch.stack(same), same[0].expand(len(same)), rtol=0, atol=1e-12)
    assert (product[0, 0, 0, 1] - product[0, 0, 1, 0]).abs() > 1e-3  # and which way it is
    assert (product[0, 0, 0, 1] - product[0, 0, 0, 2]).abs() > 1e-3


def test_the_two_orders_of_angles():
    by_halves, by_pairs = axial_angles(8, 3).reshape(3, 3, 4), interleaved_angles(8, 3, span=2.0).reshape(3, 3, 4)
    w = 10_000.0 ** -torch.tensor([0.0, 0.5]).double()
    torch.testing.assert_close(by_halves[2, 1], torch.cat([2 * w, 1 * w]))  # the row, then the column
    torch.testing.assert_close(by_pairs[2, 1], torch.stack([1 * w, 2 * w], 1).flatten())  # column and row in turn
    torch.testing.assert_close(by_pairs[..., ::2], by_halves[..., 2:])
    torch.testing.assert_close(interleaved_angles(8, 3).reshape(3, 3, 4)[0, 2, 0], torch.tensor(16.0).double())
    assert interleaved_angles(8, 1).abs().max() == 0


def test_a_rotation_goes_from_the_first_channel_of_a_pair_towards_the_second():
    rope = Rope(torch.tensor([[torch.pi / 2, 0.0]]))
    h = torch.tensor([[[[1.0, 0.0, 3.0, 4.0]]]])
    torch.testing.assert_close(turn(h, rope), torch.tensor([[[[0.0, 1.0, 3.0, 4.0]]]]))
    assert set(rope.state_dict()) == {"freqs_cos", "freqs_sin"}
    assert not Rope(torch.zeros(1, 2), saved=False).state_dict()
    assert turn(h.bfloat16(), rope).dtype == torch.bfloat16


def test_swiglu_against_its_definition():
    torch.manual_seed(0)
    joint, split, h = SwiGLU(6, 5).double(), SplitSwiGLU(6, 5).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    a, b = (h @ joint.w12.weight.T + joint.w12.bias).split(5, -1)
    expected = (a * a.sigmoid() * b) @ joint.w3.weight.T + joint.w3.bias
    torch.testing.assert_close(joint(h), expected, rtol=0, atol=1e-13)
    torch.nn.init.zeros_(joint.w12.bias)
    torch.nn.init.zeros_(joint.w3.bias)
    first, second = joint.w12.weight.chunk(2)
    split.load_state_dict({"w1.weight": first, "w3.weight": second, "w2.weight": joint.w3.weight})
    torch.testing.assert_close(split(h), joint(h), rtol=0, atol=1e-13)


def test_a_condition_for_all_tokens_is_that_condition_for_each():
    torch.manual_seed(0)
    h, c = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    for options in ({}, {"rms": True, "silu": False, "bias": False, "mlp": SwiGLU}):
        block = Block(8, 2, 12, **options).double()
        final = FinalLayer(8, 3, rms=bool(options)).double()
        each = c[:, None].expand(-1, 5, -1)
        torch.testing.assert_close(block(h, c, "blocks.0"), block(h, each, "blocks.0"), rtol=0, atol=1e-13)
        torch.testing.assert_close(final(h, c), final(h, each), rtol=0, atol=1e-13)
        other = each.clone()
        other[:, 2] += 1
        changed = (final(h, each) - final(h, other)).abs().amax((0, 2)) > 1e-9
        assert changed.tolist() == [False, False, True, False, False]


def test_random_waves_tell_sines_then_cosines():
    layer = GaussianTimeEmbedding(4, 3, scale=2.0, convention="data").double()
    seen = []
    layer.mlp.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    t = torch.tensor([0.0, 0.3], dtype=torch.float64)
    layer(t)
    angle = 2 * torch.pi * 2 * (1 - t)[:, None] * layer.W
    torch.testing.assert_close(seen[0], torch.cat([angle.sin(), angle.cos()], 1), rtol=0, atol=1e-12)
    assert layer.bfloat16()(t.float()).dtype == torch.bfloat16
