"""The shipped extractor: pinned, accurate, independent of the batch, and made by a deterministic command."""

import pytest
import torch

from gen.config.errors import MissingDependency, UserError
from gen.config.images import to_uint8
from gen.config.spec import build, spec_of
from gen.data.digits import Digits
from gen.eval.features.digits_cnn import WEIGHTS, DigitsCNN, train
from gen.eval.reference import stack


@pytest.fixture(scope="module")
def test_digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = stack(Digits().open("test"))
    assert labels is not None
    return images, labels


def test_reads_held_out_digits(test_digits) -> None:
    images, labels = test_digits
    extractor = DigitsCNN().load()
    features, logits = extractor(images), extractor.logits(images)
    assert features.shape == (360, extractor.dim) and features.dtype == torch.float32
    assert float((logits.argmax(1) == labels).double().mean()) >= 0.98
    assert torch.equal(extractor.head(features), logits)
    assert float(features.std(0).min()) > 0.01  # no dead feature


def test_reads_what_is_a_little_off() -> None:
    # generated images are: the mean of a class, as one Euler step makes it, and digits with a little noise
    images, labels = stack(Digits().open("train"))
    assert labels is not None
    extractor, x = DigitsCNN().load(), images.double() / 127.5 - 1
    means = torch.stack([x[labels == k].mean(0) for k in range(10)])
    assert torch.equal(extractor.logits(to_uint8(means)).argmax(1), torch.arange(10))
    noisy = to_uint8(x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    assert float((extractor.logits(noisy).argmax(1) == labels).double().mean()) > 0.98


def test_features_do_not_depend_on_the_batch(test_digits) -> None:
    images, _ = test_digits
    extractor = DigitsCNN().load()
    whole = extractor(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert torch.equal(extractor(images[order]), whole[order])
    assert torch.equal(torch.cat([extractor(part) for part in images.split(7)]), whole)
    assert torch.equal(DigitsCNN(batch=64).load()(images), whole)


def test_refuses_a_missing_or_altered_file(tmp_path) -> None:
    copy = tmp_path / "weights.safetensors"
    with pytest.raises(MissingDependency, match="is not there; to make it again: python -m"):
        DigitsCNN().load(copy)
    content = bytearray(WEIGHTS.read_bytes())
    content[-5] ^= 1
    copy.write_bytes(content)
    with pytest.raises(UserError, match=r"has sha256 .* expected") as error:
        DigitsCNN().load(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8)])
def test_refuses_other_images(images: torch.Tensor) -> None:
    with pytest.raises(UserError, match="digits_cnn takes uint8 images"):
        DigitsCNN().load()(images)


def test_training_is_deterministic(test_digits) -> None:
    images, labels = test_digits
    first, second = (train(images, labels, steps=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train(images, labels, steps=3, seed=1).state_dict()
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


@pytest.mark.slow
def test_the_command_makes_the_file_again() -> None:
    images, labels = stack(Digits().open("train"))
    assert labels is not None
    made, shipped = train(images, labels), DigitsCNN().load()
    for name, tensor in shipped.net.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name].double(), tensor, rtol=1e-3, atol=1e-3)


def test_registry_names() -> None:
    assert spec_of(build("eval.features", "digits_cnn"))["name"] == "digits_cnn"
    pixels = build("eval.features", "pixels").load()
    assert torch.equal(pixels(torch.full((1, 1, 2, 2), 51, dtype=torch.uint8)), torch.full((1, 4), 0.2))
