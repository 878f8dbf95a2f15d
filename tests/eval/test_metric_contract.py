"""The contract of a metric: a user's own, from evaluation to the page, and every law of the folder.

A new file in eval/metrics is tested here without a new test.
"""

import csv
import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import avg_pool2d

from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build, find, names, spec_of
from gen.eval.estimate import Estimate
from gen.eval.evaluate import evaluate
from gen.eval.extraction import Extraction, Rows
from gen.eval.features.digits_cnn import DigitsCNN
from gen.eval.image_sets import TensorImages
from gen.eval.leaderboard import leaderboard, table
from gen.eval.measuring import choose
from gen.eval.metrics import NEEDS, Column
from gen.eval.reference import Reference, measure
from gen.eval.sources import collect
from tests.eval.test_evaluate import Copier
from tests.eval.test_leaderboard import Page
from tests.eval.test_lpips import random_trunk

MINE = '''
from dataclasses import dataclass
from gen.eval.metrics import Column, Estimate

@dataclass(frozen=True)
class Sharpness:
    """The mean difference of neighbouring pixels."""

    power: int = 1
    columns = (Column("sharpness", "Sharpness <b>", higher_is_better=True, note="a difference of pixels"),)
    needs = "images"

    def __call__(self, samples, reference):
        samples = samples.flatten(1).double() / 255
        x = ((samples[:, 1:] - samples[:, :-1]).abs() ** self.power).mean(1)
        return Estimate(float(x.mean()), float(x.std()) / len(x) ** 0.5, len(x))
'''
assert len(MINE.strip().splitlines()) <= 20


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.open("digits")


@pytest.fixture(scope="module")
def copier(reference) -> Copier:
    return Copier(reference.train.rows("images"), reference.train.labels)


@pytest.fixture
def mine(tmp_path, monkeypatch) -> str:
    """The name of a metric in a module of the user's own."""
    (tmp_path / "my_metrics.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_metrics:Sharpness"
    sys.modules.pop("my_metrics", None)


# A user's own metric


def test_a_users_metric_is_computed_ranked_and_drawn(mine, copier, reference, tmp_path) -> None:
    noisy = Copier(copier.images, copier.labels, noise=1.0)
    records = [
        evaluate(p, against=reference, n=40, seconds=0.01, metrics=[mine, "fid"], label=label)
        for label, p in (("clean", copier), ("noisy", noisy))
    ]
    sharp = records[0].measured("sharpness")
    assert sharp.metric == {"name": "my_metrics:Sharpness", "power": 1} and sharp.floor.n == 1437
    assert [m.column.key for m in records[0].metrics] == ["sharpness", "fid"]
    assert 'metrics=["my_metrics:Sharpness", "fid"]'.replace('"', "'") in records[0].command
    sys.modules.pop("my_metrics")  # from here on records alone are read: no code of a metric is needed, or run
    page = leaderboard(records, tmp_path)
    (rows,) = Page(page.read_text()).tables
    assert [head.rstrip("↑↓") for head in rows[0][4:6]] == ["Sharpness <b>", "FID"]
    assert [row[2][:5] for row in rows if len(row) > 5][2:] == ["noisy", "clean"]
    text = page.read_text()
    assert "Sharpness &lt;b&gt; against NFE on digits" in text and "a difference of pixels; higher is better" in text
    assert 'class="floor"' in text and "my_metrics" not in sys.modules
    first = next(csv.DictReader(io.StringIO(page.with_suffix(".csv").read_text())))
    value = records[1].estimate("sharpness")
    assert (first["label"], float(first["sharpness"]), float(first["sharpness_se"])) == ("noisy", value.value, value.se)
    assert value.text() in page.with_suffix(".md").read_text() and value.text() in table(records)


def test_the_command_line_takes_it_too(mine, tmp_path, monkeypatch, capsys, copier) -> None:
    monkeypatch.setattr("gen.cli.evaluate.loaded", lambda args: replace(copier, folder=tmp_path))
    monkeypatch.setattr("gen.eval.provenance.loading_options", lambda pipeline: {})
    (tmp_path / "run.json").touch()  # as a run has it
    run = ["evaluate", str(tmp_path), "-n", "12", "--metrics"]
    assert main([*run, f"{mine},recall"]) == 0
    assert "Sharpness <b> " in capsys.readouterr().out
    assert main([*run, json.dumps([{"name": mine, "power": 2}, "fid"])]) == 0
    first, second = sorted(collect(tmp_path), key=lambda r: len(r.command))
    assert f"--metrics {mine},recall" in first.command and '"power": 2' in second.command
    assert main(["leaderboard", str(tmp_path), "--out", str(tmp_path / "lb.html"), "--rank-by", "sharpness"]) == 0
    assert main([*run, "fidd"]) == 2
    assert "Did you mean 'fid'" in capsys.readouterr().err


def test_a_file_in_the_folder_is_a_default_metric(copier, reference, monkeypatch) -> None:
    import gen.eval.measuring as module

    @dataclass(frozen=True)
    class Dropped:
        columns = (Column("dropped", "Dropped", priority=95),)
        needs = "train_features"

        def __call__(self, samples, real):
            return Estimate(float(samples.mean() - real.mean()), None, len(samples))

    @dataclass(frozen=True)
    class Demanding(Dropped):
        option: int

    monkeypatch.setattr(module, "names", lambda folder: [*names(folder), "dropped", "demanding"])
    ours = {"dropped": Dropped, "demanding": Demanding}
    monkeypatch.setattr(module, "find", lambda name, folder: ours.get(name) or find(name, folder))
    record = evaluate(copier, against=reference, n=12, seconds=0.01)
    assert [m.column.key for m in record.metrics][:3] == ["fid", "dropped", "kid"]
    assert record.estimate("dropped").se is None


def test_pairs_compare_each_sample_with_its_own_target(reference) -> None:
    @dataclass(frozen=True)
    class PSNR:
        columns = (Column("mse", "MSE"), Column("worst", "Worst"))
        needs = "pairs"

        def __call__(self, samples, targets):
            mse = ((samples.double() - targets.double()) ** 2).flatten(1).mean(1)
            se = float(mse.std()) / len(mse) ** 0.5
            return Estimate(float(mse.mean()), se, len(mse)), Estimate(float(mse.max()), None, len(mse))

    class Restorer(Copier):
        def sample(self, n, **how):
            samples = super().sample(n, **how)
            return replace(samples, cond={**samples.cond, "target": samples.x.round()})

    pair = reference.train.rows("images"), reference.train.labels
    record = evaluate(Restorer(*pair), against=reference, n=30, seconds=0.01, metrics=[PSNR()], batch_size=7)
    assert [m.column.key for m in record.metrics] == ["mse", "worst"] and record.metrics[0].floor is None
    assert 0 < record.estimate("mse").value < record.estimate("worst").value
    with pytest.raises(UserError, match=r"the samples have no targets: cond\[.target.\] is not there"):
        evaluate(Copier(*pair), against=reference, n=30, metrics=[PSNR()])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"needs": "feature"}, "needs = 'feature'. Did you mean 'features'?"),
        ({"columns": ()}, "columns = (), expected a tuple of Column"),
        ({"columns": ("fid",)}, "expected a tuple of Column"),
        ({"__call__": None}, "a frozen dataclass that can be called"),
    ],
)
def test_what_is_no_metric_is_refused(changes, says) -> None:
    body = {"columns": (Column("a", "A"),), "needs": "features", "__call__": lambda self, x, y: None, **changes}
    body = {name: value for name, value in body.items() if value is not None}
    with pytest.raises(UserError) as error:
        choose([dataclass(frozen=True)(type("Wrong", (), body))()])
    assert says in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="list is no metric"):
        choose([[1]])


def test_a_number_that_is_none_is_refused() -> None:
    body = {"columns": (Column("bad", "B"),), "__call__": lambda self, x, y: Estimate(torch.nan, 0.0, 3)}
    with pytest.raises(UserError, match="bad of 3 samples is not finite"):
        measure(type("Bad", (), body)(), torch.zeros(3, 1), torch.zeros(3, 1))


# Laws of every metric of the folder

# Options without which 120 digits cannot be measured; weights of LPIPS come from a file of random ones.
SSIM = {"metric": "torchmetrics.image.StructuralSimilarityIndexMeasure", "options": {"data_range": 1.0}}
SMALL = {
    "fld": {"epochs": 10},
    "kid_subsets": {"size": 60, "subsets": 20},
    "lpips_diversity": {"pairs": 100},
    "torchmetrics": SSIM,
}
METRICS = [pytest.param({"name": name, **SMALL.get(name, {})}, id=name) for name in names("eval.metrics")]
NOT_PERFECT = {
    "kid",
    "kid_subsets",
    "fd_infinity",
    "fld",
    "torchmetrics_structuralsimilarityindexmeasure",
}  # unbiased or extrapolated: identical sets pass it
OF_ONE_SET = {"vendi", "inception_score"}  # of no reference: better than the worst, which `perfect` is
NO_ORDER = {"vendi", "cmmd", "calibration"}  # noise is varied; unit rows are all alike; so are two samples here


@pytest.fixture
def metric(request, weights):
    spec = {**request.param, **({"distance": {"path": weights}} if "lpips" in request.param["name"] else {})}
    return build("eval.metrics", spec)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("alex") / "alexnet.pth"
    torch.save(random_trunk("alex"), file)
    return str(file)


@pytest.fixture(scope="module")
def small() -> Reference:
    """Digits, few of them, as both splits."""
    whole = Reference.open("digits")
    split = filled(whole.train.rows("images")[:120], whole.train.labels[:120])
    return replace(whole, train=split, test=split, floors={})


def inputs(metric, rows, small) -> list[torch.Tensor]:
    """The arguments of a metric; features stand in for spatial ones and embeddings, images are 32 pixels wide."""

    def argument(name: str) -> torch.Tensor:
        owner, _, kind = name.rstrip("?").rpartition(".")
        row = (small.train if owner else rows).rows
        if kind == "measured":
            return avg_pool2d(argument("images").double() / 127.5 - 1, 2)
        if kind in ("images", "targets"):
            images = row(kind).repeat_interleave(4, 2).repeat_interleave(4, 3)
            return images.repeat(1, 3, 1, 1) if hasattr(metric, "border") else images
        return small.extractor.head(row("features")) if kind == "logits" else row(SAME.get(kind, kind))

    if metric.needs == "posterior":  # each picture stands for two samples
        pairs = [argument(name).repeat_interleave(2, 0) for name in ("images", "targets")]
        return [*pairs, torch.arange(len(pairs[0])) // 2]
    return [argument(name) for name in NEEDS[metric.needs]]


SAME = {"spatial": "features", "embeddings": "features", "prompts": "target_features"}


def filled(images, labels, targets=None, **how) -> Rows:
    """Rows of pictures, with those that each should be: itself, if nothing else is given."""
    rows = Rows(TensorImages(images, labels), DigitsCNN().load(), DigitsCNN(), Extraction(**how))
    targets = images if targets is None else targets
    rows.given |= {"targets": targets, "target_features": rows.extractor(targets)}
    return rows


@pytest.mark.parametrize("metric", METRICS, indirect=True)
def test_declarations_are_complete(metric) -> None:
    assert metric.needs in NEEDS and metric.columns
    for column in metric.columns:
        assert column.key.isidentifier() and column.heading and column.note
        assert column.note[-1] != "." and column.digits >= 2 and column.priority > 0
    assert build("eval.metrics", spec_of(metric)) == metric and hash(metric) is not None


def test_the_page_of_metrics_names_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    first_cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("|")]
    assert {*names("eval.metrics")} <= {name.strip(" *") for cell in first_cells for name in cell.split(",")}


def test_no_two_metrics_have_a_key_or_a_priority_in_common() -> None:
    owners = [find(name, "eval.metrics") for name in names("eval.metrics") if name != "torchmetrics"]
    columns = [column for owner in owners for column in owner.columns]
    assert len({c.key for c in columns}) == len({c.priority for c in columns}) == len(columns)


@pytest.mark.parametrize("metric", METRICS, indirect=True)
def test_identical_sets_give_the_perfect_value(metric, small) -> None:
    arguments = inputs(metric, small.train, small)
    if metric.needs == "logits":  # scores that say the labels
        arguments[0] = torch.nn.functional.one_hot(arguments[1], 10).float()
    for column, estimate in zip(metric.columns, measure(metric, *arguments), strict=True):
        sign = {True: -1, False: 1, None: 1}[column.higher_is_better]
        if column.key in OF_ONE_SET:
            assert estimate.value > column.perfect
        elif column.key in NOT_PERFECT or column.key.startswith("torchmetrics"):
            assert sign * estimate.value <= sign * column.perfect + 1e-9, estimate
        elif column.higher_is_better is not None or column.key in ("nearest", "authpct"):
            assert estimate.value == pytest.approx(column.perfect, abs=1e-5 if "density" in column.key else 1e-9)


@pytest.fixture(scope="module")
def fillings(reference, tmp_path_factory) -> list[Rows]:
    """The same 120 images: in one batch, in small ones, and as two processes fill them, which do not meet."""
    images, labels = reference.train.rows("images")[200:320], reference.train.labels[200:320]
    root = tmp_path_factory.mktemp("rows")
    for part in ((2, 2), (1, 2)):
        filled(images, labels, root=root, part=part).fill(["features", "images"])
    return [filled(images, labels, **how) for how in ({}, {"batch_size": 7}, {"root": root})]


@pytest.mark.parametrize("metric", METRICS, indirect=True)
def test_value_depends_on_the_rows_alone_to_the_bit(metric, small, fillings) -> None:
    first, *others = (measure(metric, *inputs(metric, rows, small)) for rows in fillings)
    assert others == [first] * 2


@pytest.fixture(scope="module")
def good_and_bad(reference) -> list[Rows]:
    """Images and noise, both beside what the images should be."""
    images, labels = reference.train.rows("images")[200:320], reference.train.labels[200:320]
    noise = torch.randint(0, 256, images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return [filled(x, labels, images ^ 1) for x in (images, noise)]


@pytest.mark.parametrize("metric", METRICS, indirect=True)
def test_worse_samples_are_worse(metric, small, good_and_bad) -> None:
    good, bad = (measure(metric, *inputs(metric, rows, small)) for rows in good_and_bad)
    for column, a, b in zip(metric.columns, good, bad, strict=True):
        if column.higher_is_better is not None and column.key not in NO_ORDER:
            assert (a.value > b.value) is column.higher_is_better and a.differs(b)


@pytest.mark.parametrize("metric", METRICS, indirect=True)
def test_what_cannot_be_compared_is_refused(metric) -> None:
    count = len(NEEDS[metric.needs])
    for sizes in ((5, 6), (0, 6)):
        rows = [torch.zeros(sizes[i > 0], 3 + (i > 0)) if i < 2 else torch.zeros(7) for i in range(count)]
        with pytest.raises(UserError) as error:
            metric(*(rows if count > 1 or not sizes[0] else [torch.zeros(5)]))
        assert "\n" not in str(error.value)
