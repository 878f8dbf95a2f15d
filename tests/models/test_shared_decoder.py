"""Decoding of which each process computes some rows: the pictures of one process, and the bytes foretold."""

import pytest
import torch
from torch import nn

from gen.config.errors import UserError
from gen.kernels.sequence_parallel.rows import PictureRows
from gen.models.engines.lib.shared_decoder import SharedDecoder, share_decoding
from tests.models.decoder_shares import Autoencoder
from tests.ranks import spread


def check(ranks, prefix=""):
    for rank in ranks:
        assert rank[f"{prefix}far"] <= 1e-12, prefix
        sent, foretold = rank[f"{prefix}sent"].tolist()
        assert sent == foretold > 0


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_decode_the_pictures_of_one(tmp_path, count):
    check(spread("tests.models.decoder_shares:plain", count, tmp_path))


@pytest.mark.slow
def test_published_decoders_are_shared_exactly(tmp_path):
    ranks = spread("tests.models.decoder_shares:published", 2, tmp_path)
    for name in ("kl", "kl without attention", "tiny"):
        check(ranks, f"{name} ")


def test_other_decoders_are_refused():
    with pytest.raises(UserError, match=r"^share_decoding needs processes"):
        share_decoding(Autoencoder())
    others = {
        r"has a ConvTranspose2d; allowed: convolutions": nn.ConvTranspose2d(3, 3, 2, 2),
        r"has a Upsample; allowed": nn.Upsample(scale_factor=2, mode="bilinear"),
        r"stride=\(2, 2\).*of stride 1 that keep the size": nn.Conv2d(3, 3, 3, stride=2, padding=1),
        r"padding_mode=reflect.* that keep the size": nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"),
        r"Conv2d\(3, 3, kernel_size=\(3, 3\).* that keep the size": nn.Conv2d(3, 3, 3),
    }
    for said, module in others.items():
        with pytest.raises(UserError, match=said):
            SharedDecoder(nn.Sequential(module), PictureRows())


def test_weights_are_shared():
    whole = Autoencoder().decoder
    shared = SharedDecoder(whole, PictureRows())
    assert {p.data_ptr() for p in shared.parameters()} == {p.data_ptr() for p in whole.parameters()}
    assert shared.whole is whole and torch.is_tensor(whole(torch.ones(1, 3, 4, 4)))
