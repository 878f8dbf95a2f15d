"""The learned filter: its file, what it sees, and what it commits."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gen.config.errors import UserError
from gen.samplers.decoding_policies.learned import Filter, Learned
from gen.text.decoding import Decoding
from gen.text.loop import decode
from tests.gen.predictors import Noisy
from tests.samplers.decoding_policies.views import chosen, view


def written(path, made):
    save_file(made.state_dict(), str(path))
    return str(path)


def step(threshold, length=4):
    """A filter that accepts a place if its own confidence is above a threshold."""
    made = Filter(length, layers=1)
    with torch.no_grad():
        made.layers[0].weight.copy_(torch.eye(length) * 1000)
        made.layers[0].bias.fill_(-1000 * threshold)
    return made


def test_the_paper_s_filter():
    assert sum(p.numel() for p in Filter().parameters()) == 2112
    x = torch.rand(5, 3, 32, dtype=torch.float64)
    made = Filter()
    a, b = made.layers
    torch.testing.assert_close(made(x), b(torch.relu(a(x.float()))))
    assert Filter(8, 5, 3)(x[..., :8]).shape == (5, 3, 8)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_file_is_read_as_it_was_written(tmp_path, layers):
    made = Filter(8, 5, layers)
    read = Filter.read(written(tmp_path / "f.safetensors", made))
    assert [p.shape for p in read.parameters()] == [p.shape for p in made.parameters()]
    x = torch.rand(3, 8)
    assert torch.equal(read(x), made(x))
    assert not any(p.requires_grad for p in read.parameters())


def test_a_wrong_file_is_refused(tmp_path):
    file = written(tmp_path / "f.safetensors", Filter(4))
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    Filter.read(file, digest)
    with pytest.raises(UserError, match="has sha256"):
        Filter.read(file, "0" * 64)
    with pytest.raises(UserError, match="no file"):
        Filter.read(tmp_path / "none.safetensors")
    save_file({"w": torch.zeros(2)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match="holds no filter"):
        Filter.read(tmp_path / "other.safetensors")
    bad = Filter(4).state_dict() | {"layers.1.weight": torch.zeros(3, 3)}
    save_file(bad, str(tmp_path / "bad.safetensors"))
    with pytest.raises(UserError, match="holds no filter"):
        Filter.read(tmp_path / "bad.safetensors")


def test_what_the_filter_sees(tmp_path):
    """The window's confidences; 1 where a token is committed and where the window is shorter than the filter."""
    policy = Learned(written(tmp_path / "f.safetensors", step(0.5, 6)))
    seen = view([[0.9, 0.2, 0.3, 0.4, 0.5], [0.9, 0.2, 0.3, 0.4, 0.5]], [[0, 1, 0, 1, 1], [1, 1, 1, 1, 0]],
                in_window=[[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]])  # fmt: skip
    expected = torch.tensor([[0.2, 1, 0.4, 1, 1, 1], [0.9, 0.2, 0.3, 0.4, 1, 1]], dtype=torch.float64)
    given = []
    policy.filter.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    policy.select(seen, {})
    torch.testing.assert_close(given, [expected])


def test_it_commits_what_the_filter_accepts_and_the_likeliest(tmp_path):
    policy = Learned(written(tmp_path / "f.safetensors", step(0.6)))
    assert chosen(policy, view([[0.7, 0.2, 0.65, 0.9]])) == [[0, 2, 3]]
    assert chosen(policy, view([[0.1, 0.2, 0.5, 0.3]])) == [[2]]
    assert chosen(policy, view([[0.7, 0.2, 0.65, 0.9]], [[0, 1, 1, 0]])) == [[2]]


def test_a_longer_window_is_refused(tmp_path):
    how = Decoding(Learned(written(tmp_path / "f.safetensors", step(0.6))), {"name": "semi_ar", "length": 5})
    with pytest.raises(UserError, match="windows of 4 tokens"):
        decode(Noisy(), [[]], 8, how)
    decode(Noisy(), [[]], 4, how)
