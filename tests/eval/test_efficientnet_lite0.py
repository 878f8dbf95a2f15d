"""EfficientNet-Lite0 from its package: the published file, and the classes of photographs."""

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from gen.config.errors import MissingDependency, UserError
from gen.config.spec import build, spec_of
from gen.eval.evaluate import evaluate
from gen.eval.features.efficientnet_lite0 import FILE, PACKAGE, EfficientNetLite0
from gen.eval.features.lib.weights import required_file


@pytest.fixture(scope="module")
def extractor():
    return EfficientNetLite0(batch=4).load()


def test_names_what_photographs_show(extractor) -> None:
    # PIL's bicubic filter on the middle square: palace, bell cote, monastery; daisy
    china, flower = (torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for p in load_sample_images().images)
    china, flower = (extractor.head(extractor(picture[None])).softmax(1)[0] for picture in (china, flower))
    assert china.topk(3).indices.tolist() == [698, 442, 663] and int(flower.argmax()) == 985
    torch.testing.assert_close(china[[698, 442, 663]], torch.tensor([0.3011, 0.2218, 0.1034]), atol=2e-4, rtol=0)
    assert float(flower[985]) == pytest.approx(0.2275, abs=2e-4)


def test_the_file_is_the_published_one(tmp_path, extractor) -> None:
    content = bytearray(required_file(PACKAGE, FILE, "").read_bytes())
    assert hashlib.sha256(content).hexdigest() == extractor.sha256 and extractor.sha256.startswith("57934424")
    assert extractor.name == "efficientnet_lite0" == spec_of(build("eval.features", "efficientnet_lite0"))["name"]
    content[-5000] ^= 1
    for name, says in (("b.pth", "has sha256 .* expected 579344"), ("a-57934424.pth", "its name says 57934424")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            EfficientNetLite0(path=str(tmp_path / name)).load()
    with pytest.raises(MissingDependency, match=r"pip install 'gen-diffusion\[vision\]'"):
        EfficientNetLite0(path=str(tmp_path / "c.pth")).load()
    with pytest.raises(MissingDependency, match="of the package no_such_package is not there: pip install it"):
        required_file("no_such_package", "a.pth", "pip install it")


def test_refuses_an_empty_batch(extractor) -> None:
    with pytest.raises(UserError, match="no images"):
        extractor(torch.zeros(0, 3, 8, 8, dtype=torch.uint8))


def test_labels_that_are_not_its_classes_are_judged_only_if_asked(extractor, tmp_path) -> None:
    images = torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8).numpy()
    np.savez(tmp_path / "samples.npz", images, np.arange(12) % 3)
    spec = {"name": "efficientnet_lite0", "batch": 4}
    against, how = torch.from_numpy(images).movedim(3, 1).flip(0), {"extractor": spec, "n": 12}
    found = evaluate(tmp_path / "samples.npz", against, **how)
    keys = [measurement.column.key for measurement in found.metrics]
    assert "fid" in keys and "accuracy" not in keys and found.extractor.name == "efficientnet_lite0"
    (asked,) = evaluate(tmp_path / "samples.npz", against, **how, metrics=["accuracy"]).metrics
    assert asked.column.key == "accuracy"
