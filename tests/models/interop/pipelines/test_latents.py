"""Latents and pictures by the pipeline's own autoencoder, both ways."""

from __future__ import annotations

import functools

import pytest
import torch

from gen.config.errors import UserError
from gen.models.interop.pipelines.latents import decode_latents, encode_images
from gen.models.interop.pipelines.listening import listen
from tests.pipelines.tiny import FAMILIES, call, relative, tiny

# of Euler's scheduler in diffusers, by numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@functools.cache
def heard_of(name):
    pipe = tiny(name)
    return pipe, listen(pipe, **call(name))


@pytest.mark.parametrize("name", FAMILIES)
def test_pictures_are_the_pipelines(name):
    pipe, heard = heard_of(name)
    expected = next(iter(pipe(**{**call(name), "output_type": "pt"}).values()))
    if name == "dit":
        return
    latents = next(iter(pipe(**call(name)).values()))
    assert relative((decode_latents(heard, latents) + 1) / 2, expected) < 1e-5
    assert relative((decode_latents(heard, latents[:1]) + 1) / 2, expected[:1]) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_encoding_inverts_what_stands_before_the_decoder(name, monkeypatch):
    """A decoder that returns its input, and an encoder that finds it again."""
    pipe, heard = heard_of(name)
    seen = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z, *a, **k: (seen.append(z), decode(z, *a, **k))[1])
    decode_latents(heard, heard.latents)
    shape = (2, 3, heard.call.get("height", 16), heard.call.get("width", 16))

    class Found:
        latent_dist = type("Gaussian", (), {"mode": staticmethod(lambda: seen[0])})

    monkeypatch.setattr(pipe.vae, "encode", lambda pixels: Found)
    assert relative(encode_images(heard, torch.zeros(shape)), heard.latents) < 1e-5


@pytest.mark.parametrize("name", ["sd15", "wan"])
def test_real_pictures_are_encoded(name):
    pipe, given = tiny(name), call(name)
    heard = listen(pipe, **(given | ({"num_frames": 5} if name == "wan" else {})))
    pictures = torch.rand(3, *([5] if name == "wan" else []), 3, *((16, 32) if name == "wan" else (16, 8))) * 2 - 1
    latents = encode_images(heard, pictures)
    assert latents.shape == (3, *heard.latents.shape[1:])
    assert decode_latents(heard, latents).shape == pictures.shape
    with pytest.raises(UserError, match="give them in its size"):
        encode_images(heard, pictures.repeat_interleave(2, -1))
