"""Metrics in worlds whose answer is known, and their standard errors beside the spread of repeated draws."""

import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.eval.metrics import pieces
from gen.eval.metrics.class_fid import ClassFID
from gen.eval.metrics.cmmd import CMMD
from gen.eval.metrics.fd_infinity import FDInfinity
from gen.eval.metrics.fid import FID
from gen.eval.metrics.fld import FLD, Mixture, Standardised
from gen.eval.metrics.inception_score import InceptionScore
from gen.eval.metrics.kid import KID
from gen.eval.metrics.lib.as_torchmetric import AsTorchMetric
from gen.eval.metrics.lib.moments import Moments
from gen.eval.metrics.lib.rows import subset
from gen.eval.metrics.lpips_diversity import LPIPSDiversity
from gen.eval.metrics.sliced_wasserstein import SlicedWasserstein
from gen.eval.metrics.vendi import Vendi


def draw(n: int, d: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread_and_error(metric, sets) -> tuple[float, float]:
    """The spread of values over repeated draws, and the mean of their standard errors."""
    found = [metric(*arguments) for arguments in sets]
    values = torch.tensor([e.value for e in found], dtype=torch.float64)
    return float(values.std()), sum(e.se for e in found) / len(found)


def test_shifts_and_scales_of_one_set() -> None:
    x, c = draw(300, 8), torch.linspace(-1, 2, 8, dtype=torch.float64)
    x -= x.mean(0)
    trace = float(torch.cov(x.T).trace())
    assert FID()(x + c, x).value == pytest.approx(float(c @ c), rel=1e-12)
    assert FID()(3 * x, x).value == pytest.approx(4 * trace, rel=1e-12)
    # W2^2 of a direction t is (t.c)^2, or 4 t^T S t, a control variate
    assert SlicedWasserstein()(x + c, x).value == pytest.approx(float(c @ c) / 8, rel=1e-9)
    assert SlicedWasserstein()(3 * x, x).value == pytest.approx(4 * trace * 299 / 300 / 8, rel=1e-9)
    for control, moved in (("lower", x + c), ("upper", 3 * x)):
        published = SlicedWasserstein(control=control)(moved, x)  # its slope is off by 1 / directions
        assert published.value == pytest.approx(SlicedWasserstein()(moved, x).value, rel=1e-4)


def test_moments_of_a_singular_covariance_have_an_error_too() -> None:
    x, y = draw(200, 3, 1, 1.3), draw(150, 3, 2)
    lift = torch.linalg.qr(draw(7, 3, 3))[0].T  # 3 dimensions in 7
    flat, lifted = FID()(x, y), FID()(x @ lift, y @ lift)
    assert (lifted.value, lifted.se) == (pytest.approx(flat.value, rel=1e-7), pytest.approx(flat.se, rel=1e-7))
    given = Moments.of_covariance((y @ lift).mean(0), torch.cov((y @ lift).T))
    assert FID()(x @ lift, given).value == pytest.approx(flat.value, rel=1e-7)
    with pytest.raises(UserError, match=r"features \[200, 3\] against moments of 7"):
        FID()(x, given)


def test_rows_that_are_chosen_are_read_block_by_block(monkeypatch) -> None:
    x, y, chosen = draw(300, 5, 1, 1.3).float(), draw(200, 5, 2).float(), subset(300, 110, 0)
    picked, copied = Moments.of_rows(x, chosen), Moments.of_rows(x[chosen])
    assert torch.equal(picked.mean, copied.mean) and torch.equal(picked.factor, copied.factor)
    metrics = FID(), SlicedWasserstein(directions=20), FDInfinity(smallest=40)
    whole = [metric(x, y) for metric in metrics]
    monkeypatch.setattr("gen.eval.metrics.BLOCK", 64)
    assert all(torch.equal(*pair) for pair in zip(pieces(x, chosen), x[chosen].split(64), strict=True))
    for metric, before in zip(metrics, whole, strict=True):
        assert metric(x, y).value == pytest.approx(before.value, rel=1e-12)
    monkeypatch.setattr("gen.eval.metrics.fid.INFLUENCES", 200)
    assert FID()(x, y).se == pytest.approx(whole[0].se, rel=0.1)


def test_infinitely_many_samples_have_no_bias() -> None:
    d, reference = 16, Moments.of_covariance(torch.zeros(16), torch.eye(16))
    sets = [draw(400, d, seed) for seed in range(40)]
    found = [(FDInfinity()(x, reference).value, FID()(x, reference).value) for x in sets]
    infinite, plain = torch.tensor(found, dtype=torch.float64).T
    assert float(plain.mean()) > 0.15 and abs(float(infinite.mean())) < 0.15 * float(plain.mean())


def test_balanced_certain_classes_are_as_many_as_they_are() -> None:
    certain = 1000.0 * torch.eye(7).repeat(30, 1)
    for metric in (InceptionScore(), InceptionScore(splits=3), InceptionScore(block=70)):
        assert metric(certain).value == pytest.approx(7, rel=1e-12)
    assert InceptionScore(splits=3, shuffle=0)(certain).value == pytest.approx(7, rel=0.1)
    assert InceptionScore()(torch.ones(50, 7)).value == pytest.approx(1, rel=1e-12)
    assert InceptionScore()(certain).se < 1e-12
    found = spread_and_error(InceptionScore(), [(2 * draw(400, 5, seed),) for seed in range(100)])
    assert found[1] == pytest.approx(found[0], rel=0.2)
    with pytest.raises(UserError, match="not finite"):
        InceptionScore()(certain / 0)


def test_points_at_one_distance() -> None:
    x = torch.eye(4)[:1].repeat(9, 1)
    y = torch.tensor([[math.cos(0.3), math.sin(0.3), 0, 0]]).repeat(5, 1)
    r2 = 2 - 2 * math.cos(0.3)
    assert CMMD()(x, y).value == pytest.approx(1000 * (2 - 2 * math.exp(-r2 / 200)), rel=1e-6)
    assert CMMD()(3 * x, 8 * y).value == pytest.approx(CMMD()(x, y).value, rel=1e-6) and CMMD()(x, x).value == 0
    with pytest.raises(UserError, match="1 of 3 rows are 0"):
        CMMD()(torch.diag(torch.tensor([1.0, 1.0, 0.0])), x[:, :3])
    found = spread_and_error(CMMD(), [(draw(200, 6, seed, shift=0.5), draw(300, 6, 99)) for seed in range(100)])
    assert found[1] == pytest.approx(found[0], rel=0.2)


@pytest.mark.parametrize("metric", [KID(), CMMD()], ids=["kid", "cmmd"])
def test_many_rows_and_dimensions_are_a_sum_over_blocks(metric, monkeypatch) -> None:
    x, y = draw(130, 300, 0).float(), draw(90, 300, 1, shift=0.2).float()
    whole = metric(x.double(), y.double())
    for side in (7, 64):
        monkeypatch.setattr("gen.eval.metrics.lib.kernels.SIDE", side)
        assert metric(x, y).value == pytest.approx(whole.value, rel=1e-5)  # products in float32
        assert metric(x.double(), y.double()).value == pytest.approx(whole.value, rel=1e-12)


def test_orthogonal_samples_are_all_different() -> None:
    assert Vendi()(torch.eye(9), torch.eye(9)).value == pytest.approx(9, rel=1e-12)
    assert Vendi()(torch.eye(9).repeat(3, 1), torch.eye(9)).value == pytest.approx(9, rel=1e-12)
    assert Vendi()(torch.ones(6, 9), torch.eye(9)).value == pytest.approx(1, rel=1e-12)
    found = spread_and_error(Vendi(), [(draw(400, 4, seed, shift=0.7), torch.eye(4)) for seed in range(100)])
    assert found[1] == pytest.approx(found[0], rel=0.2)


def test_error_of_sliced_wasserstein_is_the_spread_of_draws() -> None:
    real = draw(300, 4, 1000)
    sets = [(draw(300, 4, seed, 1.2, 0.3), real) for seed in range(100)]
    spread, error = spread_and_error(SlicedWasserstein(directions=100), sets)
    assert error == pytest.approx(spread, rel=0.25)


def test_each_class_has_its_own_distance() -> None:
    x, labels = draw(90, 3), torch.arange(90) % 3
    y = x + labels[:, None]  # at 0, 3 and 12
    found, each = ClassFID()(x, labels, y, labels), ClassFID().by_class(x, labels, y, labels)
    errors = torch.tensor([e.se for e in each.values()])
    assert found[0].value == pytest.approx(5, rel=1e-9) and found[0].se == pytest.approx(float(errors.norm()) / 3)
    assert [*each] == [0, 1, 2] and [e.value for e in each.values()] == pytest.approx([0, 3, 12], abs=1e-9)
    assert 0 < found[1].value < found[0].value
    many = ClassFID()(x, labels, torch.cat([y, y]), torch.cat([labels, labels]))  # half of each label is drawn
    assert many[0].value != found[0].value and many[0].value == pytest.approx(5, abs=1)
    with pytest.raises(UserError, match="no label has 31 samples"):
        ClassFID(least=31)(x, labels, y, labels)
    with pytest.raises(UserError, match="labels"):
        ClassFID()(x, labels[:5], y, labels)


def test_errors_of_class_distances_are_the_spread_of_samples_and_of_their_own_draw() -> None:
    generator, d = torch.Generator().manual_seed(0), 6

    def normal(n: int, shift: float, scale: float = 1.0) -> torch.Tensor:
        return shift + scale * torch.randn(n, d, generator=generator, dtype=torch.float64)

    labels, real = torch.arange(80) % 2, torch.arange(400) % 2  # of 200 real images of a label 40 are drawn
    for shift, low, high in ((1.5, 0.85, 1.15), (0.0, 1.0, 1.45)):  # far above the floor, and at it
        reference = normal(400, 0.0) + 3 * real[:, None]
        sets = [(normal(80, shift) + 3 * labels[:, None], labels, reference, real) for _ in range(100)]
        found = [ClassFID(seed=seed)(*arguments) for seed, arguments in enumerate(sets)]
        for column, (least, most) in enumerate([(low, high), (0.8, 1.2)]):
            spread = float(torch.tensor([e[column].value for e in found]).std())
            error = sum(e[column].se for e in found) / 100
            assert least * spread < error < most * spread, (shift, column, spread, error)
    alone = ClassFID()(normal(40, 1.5), torch.zeros(40).long(), normal(40, 0.0), torch.zeros(40).long())
    assert alone[0].se > 0  # one label has an error, too


def test_likelihood_is_that_of_the_mixture_and_copies_are_noticed() -> None:
    mixture = Mixture(draw(5, 3).float())
    mixture.log_variance.data = torch.linspace(-1, 1, 5)
    x = draw(20, 3, 1).float()
    normal = torch.distributions.MultivariateNormal
    components = zip(mixture.centres, mixture.log_variance.exp(), strict=True)
    parts = [normal(mean, variance * torch.eye(3)).log_prob(x) for mean, variance in components]
    exact = -float((torch.stack(parts).detach().exp().mean(0)).log().mean()) / 3
    assert mixture.nll(Standardised(x, torch.zeros(3), torch.ones(3))) == pytest.approx(exact, rel=1e-5)
    train, test = draw(200, 8, 2), draw(200, 8, 3)
    fresh, poor, copied = (FLD()(rows, test, train) for rows in (draw(200, 8, 4), draw(200, 8, 5, 2.0), train))
    assert abs(fresh[0].value) < 20 < poor[0].value and fresh[0].value < copied[0].value
    assert copied[1].value < 4 * min(fresh[1].value, -1)


def test_pairs_are_of_one_label_and_of_two_samples() -> None:
    labels = torch.tensor([3, 1, 3, 3, 1, 7])
    first, second = LPIPSDiversity().choose(labels)
    assert bool((labels[first] == labels[second]).all()) and bool((first != second).all())
    counts = torch.bincount(first * 6 + second, minlength=36)
    assert int((counts > 0).sum()) == 8 and int(counts[counts > 0].min()) > 60  # 3 x 2 and 2 x 1 ordered pairs
    with pytest.raises(UserError, match="no two of one label"):
        LPIPSDiversity().choose(torch.arange(4))


def test_restored_images_by_hand_and_as_torchmetrics_has_them() -> None:
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (3, 3, 24, 30), dtype=torch.uint8, generator=generator)
    b = (a.long() + torch.randint(-20, 21, a.shape, generator=generator)).clamp(0, 255).byte()
    psnr, ssim = build("eval.metrics", "psnr"), build("eval.metrics", "ssim")
    flat = torch.full((4, 1, 12, 12), 100, dtype=torch.uint8)
    assert psnr(flat, flat + 5).value == pytest.approx(20 * math.log10(51)) and psnr(flat, flat).value == 100
    pairs = [(a[i : i + 1].double(), b[i : i + 1].double()) for i in range(3)]
    theirs = torch.stack([peak_signal_noise_ratio(x, y, data_range=255.0) for x, y in pairs])
    assert psnr(a, b).value == pytest.approx(float(theirs.mean()), rel=1e-6)
    assert psnr(a, b).se == pytest.approx(float(theirs.std()) / 3**0.5, rel=1e-4)
    _, theirs = structural_similarity_index_measure(a.double(), b.double(), data_range=255.0, return_full_image=True)
    assert ssim(a, b).value == pytest.approx(float(theirs[..., 5:-5, 5:-5].mean()), rel=1e-9)  # it pads, too
    grey, lighter = (torch.full((2, 3, 16, 16), level, dtype=torch.uint8) for level in (100, 120))
    c1 = (0.01 * 255) ** 2  # of constants only the means are left
    assert ssim(grey, lighter).value == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), rel=1e-12)
    assert ssim(a, a).value == pytest.approx(1, abs=1e-15)
    with pytest.raises(UserError, match="at least 11"):
        ssim(a[..., :9], b[..., :9])
    with pytest.raises(UserError, match="allowed: uint8"):
        psnr(a.float(), b)


def test_luminance_inside_a_border_is_as_torchmetrics_and_skimage_have_it() -> None:
    from skimage.color import rgb2ycbcr
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    generator = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (2, 3, 24, 26), dtype=torch.uint8, generator=generator)
    b = (a.long() + torch.randint(-20, 21, a.shape, generator=generator)).clamp(0, 255).byte()
    b[..., 0] = 255 - b[..., 0]  # in the border
    inside = slice(3, -3)
    x, y = (torch.from_numpy(rgb2ycbcr(part.movedim(1, -1).numpy()))[:, None, ..., 0] for part in (a, b))
    x, y = x[..., inside, inside], y[..., inside, inside]
    psnr, ssim = (build("eval.metrics", {"name": name, "border": 3}) for name in ("psnr_y", "ssim_y"))
    theirs = [float(peak_signal_noise_ratio(x[i], y[i], data_range=255.0)) for i in range(2)]
    assert psnr(a, b).value == pytest.approx(sum(theirs) / 2, rel=1e-6)
    _, theirs = structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    assert ssim(a, b).value == pytest.approx(float(theirs[..., 5:-5, 5:-5].mean()), rel=1e-9)
    grey = torch.full((1, 3, 20, 20), 100, dtype=torch.uint8)  # Y of grey is 219 / 255 of it: 1.32 dB more
    assert psnr(grey, grey + 5).value == pytest.approx(20 * math.log10(51 * 255 / 219))
    for metric, images, why in (
        (psnr, a[:, :1], "red"),
        (psnr, a[..., :6], "leaves nothing"),
        (ssim, a[..., :16], "11"),
    ):
        with pytest.raises(UserError, match=why):
            metric(images, images)


def test_clip_score_is_a_cosine() -> None:
    image, text = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
    assert build("eval.metrics", "clip_score")(image, text).value == pytest.approx(50)  # 100 and -60, which counts 0


def test_classes_of_torchmetrics_are_metrics() -> None:
    from torchmetrics.image import PeakSignalNoiseRatio

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 256, (2, 70, 3, 16, 16), dtype=torch.uint8, generator=generator)
    spec = {"name": "torchmetrics", "metric": "torchmetrics.image.PeakSignalNoiseRatio", "options": {"data_range": 1.0}}
    metric, theirs = build("eval.metrics", spec), PeakSignalNoiseRatio(data_range=1.0)
    theirs.update(a.float() / 255, b.float() / 255)
    assert metric(a, b).value == pytest.approx(float(theirs.compute()), rel=1e-6) and metric.needs == "pairs"
    assert metric.columns[0].key == "torchmetrics_peaksignalnoiseratio" and metric.columns[0].higher_is_better
    frechet = build(
        "eval.metrics", {"name": "torchmetrics", "metric": "torchmetrics.image.fid.FrechetInceptionDistance"}
    )
    assert frechet.needs == "images"
    for wrong in (
        "os.path.join",
        "torchmetrics.image.Nothing",
        "torchmetrics.functional.image.peak_signal_noise_ratio",
    ):
        with pytest.raises(UserError, match="torchmetrics"):
            _ = build("eval.metrics", {"name": "torchmetrics", "metric": wrong}).columns
    with pytest.raises(UserError, match=r"PeakSignalNoiseRatio.__init__\(\) missing"):
        build("eval.metrics", {**spec, "options": {"data_rage": 1.0}})(a, b)


def test_metrics_are_classes_of_torchmetrics() -> None:
    x, y = draw(80, 6), draw(70, 6, 1, 1.2)
    ours = AsTorchMetric(FID(), extract=lambda images: images * 2)
    for part in x.split(30):
        ours.update(part)
    ours.update(y, real=True)
    assert float(ours.compute()) == FID()(2 * x, 2 * y).value
    assert ours.estimates() == (FID()(2 * x, 2 * y),)
    pair = AsTorchMetric(build("eval.metrics", "accuracy"))
    pair.update(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    assert float(pair(torch.eye(4), torch.arange(4))) == 1.0 and float(pair.compute()) == 7 / 8
    two = AsTorchMetric(build("eval.metrics", {"name": "kid_subsets", "size": 20}))
    two.update(x)
    two.update(y, real=True)
    assert two.compute().shape == (2,)
    with pytest.raises(UserError, match="too many sets"):
        AsTorchMetric(ClassFID())
    with pytest.raises(UserError, match="call update"):
        alone = AsTorchMetric(FID())
        alone.update(x)
        alone.compute()
    with pytest.raises(UserError, match="other arguments"):
        ours.update(x, y)
