"""What has gone wrong in evaluations elsewhere, one function each."""

import io
import itertools
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gen.config.errors import UserError
from gen.config.images import to_uint8
from gen.config.spec import build
from gen.eval.evaluate import evaluate
from gen.eval.extraction import Extraction, Rows
from gen.eval.features.dinov2 import DINOv2Net
from gen.eval.features.inception import InceptionClassifier
from gen.eval.features.lib.inception_net import InceptionNet, seeded_weights
from gen.eval.features.pixels import Pixels
from gen.eval.image_sets import TensorImages, chosen, open_images
from gen.eval.metrics.cmmd import CMMD
from gen.eval.metrics.fid import FID
from gen.eval.metrics.inception_score import InceptionScore
from gen.eval.metrics.kid_subsets import KIDSubsets
from gen.eval.metrics.lib.moments import Moments, distance
from gen.eval.metrics.recall import Recall


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_3_pictures_resized_by_another_rule() -> None:
    picture = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    net = SimpleNamespace(to=lambda device: lambda x, wanted: {"2048": x.mean((2, 3))}, fc=None)
    names = "tf1", "clean", "torchmetrics", "pytorch-fid"
    rules = [InceptionClassifier(net, "digest", name, "2048", 1) for name in names]
    assert len({rule.name for rule in rules}) == 4  # names decide what may share a table
    rows = [rule(picture) for rule in rules]
    assert min(float((a - b).abs().max()) for a, b in itertools.combinations(rows, 2)) > 1e-5


def test_4_the_inception_score_of_logits_with_the_bias() -> None:
    net = SimpleNamespace(fc=torch.nn.Linear(2048, 12))
    features = draw(40, 2048, 0).float().relu()
    with torch.no_grad():
        scores = InceptionClassifier(net, "", "tf1", "2048", 1).head(features)
        torch.testing.assert_close(scores, features @ net.fc.weight.T, rtol=1e-4, atol=1e-4)
        net.fc.bias += torch.linspace(-1, 1, 12)
        assert torch.equal(InceptionClassifier(net, "", "tf1", "2048", 1).head(features), scores)
        assert abs(InceptionScore()(scores).value - InceptionScore()(scores + net.fc.bias).value) > 1e-3


def test_5_spatial_features_of_another_layer() -> None:
    net, x = InceptionNet(seeded_weights()), torch.randn(1, 3, 299, 299)
    inputs = {}
    for name, block in net.blocks.items():
        block.register_forward_hook(lambda block, args, out, name=name: inputs.update({name: args[0]}))
    spatial = net(x, ("spatial", "2048"))["spatial"]
    layers = {name: net.blocks[name].convs["branch1x1"](inputs[name])[:, :7] for name in ("Mixed_6d", "Mixed_6e")}
    right, wrong = (layer.permute(0, 2, 3, 1).flatten(1) for layer in layers.values())
    assert torch.equal(spatial, right) and spatial.shape == (1, 17 * 17 * 7) and float((right - wrong).norm()) > 1
    assert float(spatial[0, 7 * (3 * 17 + 5) + 2]) == float(layers["Mixed_6d"][0, 2, 3, 5])  # positions first


def test_6_blocks_of_a_file_that_is_sorted_by_class() -> None:
    scores = 8 * torch.eye(10).repeat_interleave(60, 0) + draw(600, 10, 0)
    with pytest.warns(UserWarning, match="they hold different classes"):
        wrong = InceptionScore(block=100)(scores).value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = InceptionScore(block=100, shuffle=2020)(scores).value
        mixed = InceptionScore(block=100)(scores[torch.arange(600).view(10, 60).T.flatten()]).value
    assert wrong < 3 < 7 < right and right == pytest.approx(mixed, rel=0.1)


def test_7_cmmd_in_float32() -> None:
    rows = [torch.nn.functional.normalize(3 + draw(400, 64, seed)) for seed in (0, 1)]
    x, y = (part.float().numpy() for part in rows)

    def kernel(a, b):
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        return np.exp(-squares / 200).mean()

    single = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    x, y = (part.numpy() for part in rows)
    exact = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert abs(single - exact) > 1e-3 * exact  # what published code loses
    assert CMMD()(*rows).value == pytest.approx(exact, rel=1e-9)
    assert CMMD()(*(part.float() for part in rows)).value == pytest.approx(exact, rel=1e-5)


def test_8_positions_of_dinov2_resampled_to_a_size() -> None:
    net = DINOv2Net(64, 1).requires_grad_(False)
    table = draw(37 * 37, 64, 0).float()
    net.pos_embed.copy_(torch.cat([torch.zeros(1, 64), table])[None])
    image = table.T.reshape(1, 64, 37, 37)
    by_factor, by_size = (
        torch.nn.functional.interpolate(image, **how, mode="bicubic").flatten(2).mT
        for how in ({"scale_factor": (16.1 / 37, 16.1 / 37)}, {"size": (16, 16)})
    )
    ours = net.positions(16)[:, 1:]
    torch.testing.assert_close(ours, by_factor)
    assert float((ours - by_size).norm() / ours.norm()) > 0.01


def test_9_average_pools_that_count_their_padding() -> None:
    net, x = InceptionNet(seeded_weights()), {"Mixed_5b": (192, 32), "Mixed_6b": (768, 192), "Mixed_7b": (1280, 192)}
    for name, (width, pooled) in x.items():
        out = net.blocks[name](torch.ones(1, width, 6, 6))[:, -pooled:]
        torch.testing.assert_close(out, out[:, :, :1, :1].expand_as(out))  # the border is as the middle
    rising = torch.arange(6.0).expand(1, 2048, 6, 6)
    last = net.blocks["Mixed_7c"](rising)[:, -192:]
    by_maximum = net.blocks["Mixed_7c"].convs["branch_pool"](torch.nn.functional.max_pool2d(rising, 3, 1, 1))
    torch.testing.assert_close(last, by_maximum)


DRAWING = {  # metrics that draw, with options for few rows
    "class_fid": {},
    "coverage": {"reduced_n": 30},
    "fd_infinity": {},
    "fld": {"epochs": 3},
    "kid_subsets": {"size": 30},
    "recall": {},
    "sliced_wasserstein": {},
}


@pytest.mark.parametrize("name", DRAWING)
def test_10_the_global_random_state(name) -> None:
    metric = build("eval.metrics", {"name": name, **DRAWING[name]})
    x, y = draw(60, 5, 0), draw(50, 5, 1)
    arguments = {"labelled_features": (x, torch.arange(60) % 2, y, torch.arange(50) % 2), "split_features": (x, y, y)}
    given = arguments.get(metric.needs, (x, y))
    torch.manual_seed(1)
    np.random.seed(1)
    first = metric(*given)
    torch.manual_seed(2)
    np.random.seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert metric(*given) == first
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


def test_12_truncation_for_rounding() -> None:
    x = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 2 - 1
    levels = (x + 1) / 2 * 255
    rounded = to_uint8(x[None, None, None])[0, 0, 0].float()
    assert abs(float((rounded - levels).mean())) < 0.01
    assert float((levels.byte().float() - levels).mean()) == pytest.approx(-0.5, abs=0.01)  # what truncation does


def test_13_recall_of_few_samples_beside_that_of_many() -> None:
    real = torch.linspace(0, 1.25, 26, dtype=torch.float64)[:, None]
    few, many = (torch.linspace(0, 1, n, dtype=torch.float64)[:, None] for n in (11, 51))  # of one distribution
    a, b = Recall(groups=5)(few, real), Recall(groups=5)(many, real)  # the last ball reaches to 1.3, or to 1.06
    assert (a.value, b.value) == (1, 22 / 26) and (a.n, b.n) == (11, 51)  # n belongs to the number


def test_14_fewer_rows_than_dimensions() -> None:
    x, y = draw(20, 64, 0), 1.2 * draw(25, 64, 1)
    gram = np.linalg.svd((x - x.mean(0)).numpy() @ (y - y.mean(0)).numpy().T / (19 * 24) ** 0.5, compute_uv=False)
    traces = [float(torch.cov(rows.T).trace()) for rows in (x, y)]
    exact = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + sum(traces) - 2 * float(gram.sum())
    assert FID()(x, y).value == pytest.approx(exact, rel=1e-12)
    assert distance(Moments.of_rows(x), Moments.of_rows(x)) < 1e-12
    covariances = [Moments.of_covariance(rows.mean(0), torch.cov(rows.T)) for rows in (x, y)]
    assert distance(*covariances) == pytest.approx(exact, rel=1e-6)  # nothing is added to the diagonal
    assert distance(covariances[0], covariances[0]) < 1e-9
    assert KIDSubsets(subsets=3, size=20)(x, y)[0].n == 20


def test_1_a_tenth_of_the_reference(tmp_path) -> None:
    images = (draw(64, 64, 1).abs() * 90).clamp(0, 255).to(torch.uint8).reshape(64, 8, 8, 1)
    np.savez(tmp_path / "ref.npz", images.numpy())
    for given in (str(tmp_path / "ref.npz"), {"name": "npz", "path": str(tmp_path / "ref.npz")}):
        assert evaluate(images.movedim(-1, 1), given, extractor="pixels", metrics=["fid"]).reference.n == 64


def test_2_mu_and_sigma_ignored_where_arr_0_is_there(tmp_path) -> None:
    images = (draw(40, 64, 2).abs() * 90).clamp(0, 255).to(torch.uint8).reshape(40, 1, 8, 8)
    moments = Moments.of_rows(Pixels()(images) + 1)  # of other pictures than arr_0, as ADM's are
    pair = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()}
    np.savez(tmp_path / "ref.npz", **pair, arr_0=images[:20].movedim(1, -1).numpy())
    record = evaluate(images, tmp_path / "ref.npz", extractor="pixels", metrics=["fid", "recall"])
    assert record.estimate("fid").value == pytest.approx(64, rel=1e-4)  # of mu and sigma: shifted by 1 in 64 pixels
    assert record.estimate("recall").value == 1.0  # of arr_0, which samples hold


def test_11_a_subset_of_a_zip_in_hash_order(tmp_path) -> None:
    for name, order in (("a.zip", range(30)), ("b.zip", reversed(range(30)))):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for i in order:
                file = io.BytesIO()
                Image.new("L", (4, 4), i).save(file, "PNG")
                archive.writestr(f"{i}.png", file.getvalue())
    a, b = (chosen(open_images(tmp_path / name), 7, seed=3) for name in ("a.zip", "b.zip"))
    assert torch.equal(a.read(range(7))["images"], b.read(range(7))["images"]) and a.fingerprint == b.fingerprint
    whole = open_images(tmp_path / "a.zip").read(range(30))["images"][:, 0, 0, 0].tolist()
    assert whole == sorted(range(30), key=str)


def test_15_a_stale_cache_by_name(tmp_path) -> None:
    file, kept = tmp_path / "ref.npz", tmp_path / "kept"
    pictures = [torch.full((12, 1, 8, 8), level, dtype=torch.uint8) for level in (10, 200)]
    found = []
    for images in pictures:
        np.savez(file, images.movedim(1, -1).numpy())
        how = {"extractor": "pixels", "metrics": ["fid"], "features": kept}
        found.append(evaluate(pictures[0], file, **how).estimate("fid").value)
    assert found[0] == 0 < found[1]
    for rows in kept.rglob("features.rows"):
        rows.write_bytes(bytes(rows.stat().st_size))  # damaged since: computed again, not read
    assert evaluate(pictures[0], file, **how).estimate("fid").value == found[1]


def test_16_formats_and_sizes_mixed_in_a_folder(tmp_path) -> None:
    grey = Image.new("L", (8, 8), 7)
    grey.save(tmp_path / "a.png")
    grey.save(tmp_path / "b.jpg")
    with pytest.raises(UserError, match=r"b.jpg is jpeg, whose loss changes every distance"):
        evaluate(tmp_path, "digits")
    assert open_images(tmp_path).format == "jpeg (lossy): 1, png: 1"
    Image.new("L", (9, 8), 7).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"a.png is 8 x 8 and c.png is 9 x 8, pictures of one size are needed"):
        evaluate(tmp_path, "digits", allow_lossy=True)


@pytest.mark.parametrize(
    ("mode", "name", "says"),
    [
        ("RGBA", "a.png", "has an alpha channel"),
        ("LA", "a.png", "has an alpha channel"),
        ("I;16", "a.png", "has more than 8 bits a channel"),
        ("CMYK", "a.jpg", "is CMYK; allowed: grey and RGB"),
    ],
)
def test_17_alpha_depth_and_colour_spaces(mode, name, says, tmp_path) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / name)
    with pytest.raises(UserError, match=says):
        open_images(tmp_path)
    palette = Image.new("RGB", (8, 8), (9, 120, 33)).quantize(4)
    palette.save(tmp_path / "palette.png")
    (tmp_path / name).unlink()
    assert open_images(tmp_path).read([0])["images"][0, :, 0, 0].tolist() == [9, 120, 33]  # as it shows
    palette.convert("RGB").save(tmp_path / "palette.png", icc_profile=b"x" * 200)
    with pytest.warns(UserWarning, match="colour profiles in the files are not applied"):
        open_images(tmp_path)


def test_18_two_processes_doing_the_same_work(tmp_path) -> None:
    images, seen = TensorImages(torch.zeros(100, 1, 4, 4, dtype=torch.uint8)), list[int]()

    class Counting(Pixels):
        def __call__(self, x):
            seen.append(len(x))
            return super().__call__(x)

    for k in (1, 2, 3):
        Rows(images, Counting(), Pixels(), Extraction(tmp_path, part=(k, 3))).fill()
    assert len(seen) == 7 and Rows(images, Counting(), Pixels(), Extraction(tmp_path)).features.shape == (100, 16)
    assert len(seen) == 7  # chunks of 16: each was computed once
