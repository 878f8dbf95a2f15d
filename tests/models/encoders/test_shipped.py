"""The encoders that need nothing beside this library."""

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.data.digits import Digits


def images(n=20):
    data = Digits().open("test")
    return torch.stack([data[i]["x"] for i in range(n)])


def test_the_digits_encoder_pools_to_the_features_of_the_fid():
    encoder, x = build("models.encoders", "digits_cnn"), images()
    features = encoder.load()(x)
    assert features.tokens.shape == (20, encoder.grid**2, encoder.dim) and features.cls.shape == (20, encoder.dim)
    assert not features.tokens.requires_grad
    torch.testing.assert_close(features.tokens.mean(1), features.cls)
    pooled = build("eval.features", "digits_cnn").load().net(x.double()).float()
    torch.testing.assert_close(features.cls, pooled, rtol=1e-5, atol=1e-5)


def test_the_tokens_are_positions_row_by_row():
    encoder, x = build("models.encoders", "digits_cnn").load(), torch.zeros(1, 1, 8, 8)
    moved = x.clone()
    moved[..., 0, 7] = 1.0  # top right
    change = (encoder(moved).tokens - encoder(x).tokens).abs().sum(-1).reshape(4, 4)
    assert change[0, 3] > 0 and change[3, 0] == 0 and change[:, 0].sum() == 0


def test_the_digits_encoder_is_frozen_and_loads_anew():
    encoder = build("models.encoders", "digits_cnn")
    one, other = encoder.load(), encoder.load()
    assert one is not other and not one.training
    assert all(not p.requires_grad for p in one.parameters())
    with pytest.raises(UserError, match=r"\[B, 1, 8, 8\], this is \[2, 4, 8, 8\]"):
        one(torch.zeros(2, 4, 8, 8))


def test_stored_features_are_taken_apart():
    h = torch.randn(3, 5, 7)
    plain = build("models.encoders", {"name": "stored", "dim": 7, "grid": 2, "cls": True})
    features = plain.load()(h)
    assert torch.equal(features.cls, h[:, 0]) and torch.equal(features.tokens, h[:, 1:])
    without = build("models.encoders", {"name": "stored", "dim": 7, "grid": 2}).load()
    assert without(h[:, 1:]).cls is None
    with pytest.raises(UserError, match=r"shape \[3, 5, 7\]; encoder\.dim, \.grid and \.cls say \['B', 4, 7\]"):
        without(h)
    with pytest.raises(UserError, match="dim = 0"):
        build("models.encoders", {"name": "stored", "dim": 0})
