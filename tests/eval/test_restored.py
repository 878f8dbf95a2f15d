"""Restorations judged: posterior samples by closed forms, measurements, and models that see the degraded picture."""

import base64
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, interpolate

from gen.cli import main
from gen.config.errors import UserError
from gen.config.images import to_uint8
from gen.data.degraded import Degraded
from gen.data.digits import Digits
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import X0
from gen.diffusion.path import Shift
from gen.eval.evaluate import evaluate
from gen.eval.leaderboard import leaderboard
from gen.eval.measuring import choose
from gen.eval.metrics.consistency import Consistency
from gen.eval.metrics.posterior import Posterior
from gen.eval.metrics.psnr import PSNR
from gen.models.beside import Beside
from gen.models.unet import UNet
from gen.operators.bicubic import Bicubic
from gen.operators.pool import Pool
from gen.pipeline import Pipeline
from gen.training.objectives.restore import Restoration
from gen.training.run import Run, Sampler, run_spec

UNET = UNet(size=8, channels=1, classes=0, width=8, multipliers=(1, 1), blocks=1, attention=(), head_width=8, groups=4)
K, WIDTH = 5, 20.0


def gaussians(share, n=40):
    """Truths of N(m, WIDTH^2), m another one for each pixel, and K samples of N(m, (share WIDTH)^2)."""
    draw = torch.Generator().manual_seed(0)
    m = 100 + 50 * torch.rand(n, 1, 3, 16, 16, generator=draw)
    x = m + torch.randn(n, K + 1, 3, 16, 16, generator=draw) * torch.tensor([WIDTH] + [share * WIDTH] * K).view(
        -1, 1, 1, 1
    )
    x = x.round().clamp(0, 255).byte()
    return x[:, 1:].flatten(0, 1), x[:, :1].expand(-1, K, -1, -1, -1).flatten(0, 1), torch.arange(n * K) // K


def test_samples_of_the_posterior_are_told_from_narrow_ones() -> None:
    x, truth, inputs = gaussians(1.0)
    psnr, deviation, ratio, covered, calibration = Posterior()(x, truth, inputs)
    mse = WIDTH**2 + 1 / 6  # of integers
    assert psnr.value == pytest.approx(10 * math.log10(255**2 / (mse * (1 + 1 / K))), abs=0.06)
    assert psnr.value - PSNR()(x, truth).value == pytest.approx(10 * math.log10(2 * K / (K + 1)), abs=0.06)
    assert deviation.value == pytest.approx(WIDTH / 255, rel=0.01)
    assert ratio.value == pytest.approx(1, abs=4 * ratio.se) and ratio.se < 0.01
    assert covered.value == pytest.approx((K - 1) / (K + 1), abs=4 * covered.se) and covered.se < 0.005
    assert calibration.value < 0.01 and (psnr.n, covered.n) == (40, 40)
    _, deviation, ratio, covered, calibration = Posterior()(*gaussians(0.5))
    assert deviation.value == pytest.approx(0.5 * WIDTH / 255, rel=0.01)
    assert ratio.value == pytest.approx(math.sqrt(0.25 * (1 + 1 / K) / (1 + 0.25 / K)), abs=0.01)
    assert covered.value < 0.5 and calibration.value > 0.1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))  # the rows of a picture may be apart
    again = Posterior()(x[order], truth[order], inputs[order])
    assert again[2].value == pytest.approx(Posterior()(x, truth, inputs)[2].value, rel=1e-12)


def test_ranks_by_hand() -> None:
    x = torch.tensor([[0, 10, 20, 20], [10, 10, 30, 20]], dtype=torch.uint8).view(2, 1, 1, 4)
    truth = torch.tensor([5, 10, 10, 20], dtype=torch.uint8).view(1, 1, 1, 4).expand(2, -1, -1, -1)
    *_, covered, calibration = Posterior()(x, truth, torch.tensor([3, 3]))
    ranks = (torch.tensor([0.0, 1, 0]) + torch.tensor([1, 1, 1]) / 3 + torch.tensor([1.0, 0, 0]) + 1 / 3) / 4
    assert covered.value == pytest.approx(float(ranks[1]))
    assert calibration.value == pytest.approx(float((ranks - 1 / 3).abs().sum() / 2)) and calibration.se is None
    truths = torch.cat([truth[:1], truth[:1] + 1])
    for arguments, why in (
        ((x, truths, torch.tensor([3, 3])), "several truths"),
        ((x, truth, torch.tensor([1, 2])), "1 samples of a picture"),
        ((x, truth, torch.tensor([1])), r"numbers of pictures \[1\] for 2"),
    ):
        with pytest.raises(UserError, match=why):
            Posterior()(*arguments)


def test_consistency_is_the_distance_to_the_measurement() -> None:
    x = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = avg_pool2d(x.double() / 127.5 - 1, 2)
    assert Consistency(Pool(2))(x, y).value < 1e-12
    assert Consistency(Pool(2))(x, y + 0.2).value == pytest.approx(0.2)
    assert Consistency(Pool(2), noise=0.1)(x, y + 0.2).value == pytest.approx(2)
    with pytest.raises(UserError, match=r"measurements \[3, 1, 8, 8\]; pool has \[3, 1, 4, 4\]"):
        Consistency()(x, x.double())


def enlarging(data, objective=None):
    """A model that adds nothing to the enlarged picture, as if it were of a run."""
    run = Run(model=Beside(inner=UNET), data=data, objective=objective or Restoration(), path=Shift())
    denoiser = Denoiser(Beside(inner=UNET).build().eval(), Shift(), X0())
    return Pipeline(denoiser, (1, 8, 8), 0, Sampler("euler", steps=2), info={"run": run_spec(run)})


def test_a_model_that_restores_is_given_held_out_pictures(tmp_path) -> None:
    data = Degraded(Digits(), Bicubic(), noise=0.1)
    metrics = ["psnr", "posterior", {"name": "consistency", "operator": "bicubic", "noise": 0.1}]
    record = evaluate(enlarging(data), metrics=metrics, n=24, each=2, seconds=0.01)
    held_out = data.open("test")
    items = [held_out[i] for i in range(12)]
    x, low = (torch.stack([item[key] for item in items]) for key in ("x", "low"))
    made = to_uint8(interpolate(low, (8, 8), mode="bicubic", align_corners=False))
    assert record.estimate("psnr").value == pytest.approx(PSNR()(made, to_uint8(x)).value)
    assert record.estimate("mean_psnr").value == pytest.approx(record.estimate("psnr").value)
    assert record.estimate("deviation").value == 0 and record.estimate("calibration").value > 0.2
    assert record.estimate("consistency").value == pytest.approx(Consistency(Bicubic(), 0.1)(made, low).value)
    assert (
        record.reference.data["name"] == "digits" and record.labels == "held-out degraded pictures, 2 samples of each"
    )
    assert "each=2" in record.command
    assert record.restored.rows == (
        "degraded", "sample 1", "sample 2", "deviation, 0.25 of the range being white", "truth",
    )  # fmt: skip
    page = leaderboard([record], tmp_path).read_text()
    assert record.restored.strip in page and "From the top: degraded, sample 1, sample 2" in page
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(record.restored.strip))))
    assert np.array_equal(strip[128::4, 0:32:4, 0], to_uint8(x)[0, 0].numpy())  # four pixels for one
    assert strip[96:128, :32, 0].max() == 0  # samples that are all alike
    measured = enlarging(Digits(), Restoration(operator=Pool(2), noise=0.1))  # degraded by its objective
    found = evaluate(measured, metrics=[{"name": "consistency", "operator": "pool"}], n=30, seconds=0.01)
    assert found.estimate("consistency").value > 0.01 and found.restored is None
    for given, why in (
        ({"n": 1000}, "1000 samples, and there are 360 held-out pictures"),
        ({"n": 5, "each": 2}, "n must be a multiple"),
    ):
        with pytest.raises(UserError, match=why):
            evaluate(enlarging(data), metrics=["psnr"], seconds=0.01, **given)
    with pytest.raises(UserError, match="held-out data have no degraded pictures"):
        evaluate(enlarging(Digits()), metrics=["psnr"])


def test_samples_of_another_tool_are_judged_in_the_same_way(tmp_path) -> None:
    x, truth, _ = gaussians(1.0, n=4)
    y = avg_pool2d(truth[::K].double() / 127.5 - 1, 2)
    np.save(tmp_path / "y.npy", y.numpy())
    np.savez(tmp_path / "truth.npz", arr_0=truth[::K].movedim(1, -1).numpy())
    words = {
        "metrics": ["posterior", "consistency"],
        "paired": tmp_path / "truth.npz",
        "measured": tmp_path / "y.npy",
        "each": K,
    }
    record = evaluate(x, truth, extractor="pixels", **words)
    distance = avg_pool2d(x.double() / 127.5 - 1, 2) - y.repeat_interleave(K, 0)
    expected = float(distance.square().flatten(1).mean(1).sqrt().mean())
    assert record.estimate("consistency").value == pytest.approx(expected, rel=1e-5)
    assert record.estimate("covered").n == 4 and record.restored.rows[0] == "degraded"
    usual = {metric.columns[0].key for metric in choose(None, ("pairs", "posterior"))}
    assert {"psnr", "mean_psnr"} <= usual and not {"psnr_y", "consistency"} & usual
    for given, why in (
        ({"paired": None}, "each = 5: it is of models that restore"),
        ({"each": 2}, "holds 4 pictures for 20 samples: one for 2"),
        ({"measured": y[:3].float()}, "3 measurements for 20 samples, 5 of each"),
        ({"n": 10}, "take all"),
        ({"measured": None}, "have no measured, what they are restored from"),
    ):
        with pytest.raises(UserError, match=why):
            evaluate(x, truth, extractor="pixels", **{**words, **given})


def test_gen_sample_restores_held_out_pictures(tmp_path, monkeypatch, capsys) -> None:
    data = Degraded(Digits(), Bicubic())
    monkeypatch.setattr("gen.pipeline.load_images", lambda *args, **how: enlarging(data))
    words = ["sample", "run", "-n", "4", "--images-per-label", "2", "--out", str(tmp_path / "s.npz"), "--quiet"]
    assert main(words) == 0
    held_out = data.open("test")
    low = torch.stack([held_out[i]["low"] for i in (0, 0, 1, 1)])
    made = to_uint8(interpolate(low, (8, 8), mode="bicubic", align_corners=False))
    assert np.array_equal(np.load(tmp_path / "s.npz")["arr_0"], made.movedim(1, -1).numpy())
    assert main(["sample", "run", "-n", "400", "--out", str(tmp_path / "t.npz")]) == 2
    assert "400 samples, and there are 360 held-out pictures" in capsys.readouterr().err
