import pytest
import torch

from gen.models.layers.attention import Attention
from gen.models.layers.embed import grid_embedding, waves


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
