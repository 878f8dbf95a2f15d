"""Our metrics beside the field's tools: the same seeded weights, pictures and rows, in one run.

python scripts/compare_tools.py [--rows 4000x512] [--parts distances,neighbours,scores] [--pictures 24] [--rounds 3]
    [--out comparison.md]

Tools: torch-fidelity, clean-fid, pytorch-fid, torchmetrics and prdc, each by its own functions. Nothing is installed
and nothing is downloaded: missing packages are named with the command that installs them. The FID Inception has random
weights from a seed, so these numbers compare programs and no pictures. clean-fid's network is code in a file of
weights; its resize rule is run with pytorch-fid's network, which is the same graph.

torch-fidelity brings a package `tests`, so install the tools into a folder of their own and put it on PYTHONPATH.

Prints a table: both values, their relative difference, the difference that is allowed (1e-5, or the tool's own
precision), and the median over the rounds of our CPU time divided by theirs, one after the other on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from gen.config.spec import build
from gen.config.writing import write_text
from gen.eval.features.lib.inception_net import seeded_weights
from gen.eval.metrics.lib.balls import share_distances

PACKAGES = {  # by the module that is imported
    "torch_fidelity": "torch-fidelity==0.4.0",
    "cleanfid": "clean-fid==0.1.35",
    "pytorch_fid": "pytorch-fid==0.3.0",
    "prdc": "prdc==0.2",
    "torchvision": "torchvision",
    "scipy": "scipy",
}
# Relative differences: of equal numbers, of small differences of float32 sums, and of pairs at a ball's very surface.
EQUAL, OF_FLOAT32, OF_TIES = 1e-5, 1e-3, 1e-4


@dataclass(frozen=True)
class Line:
    """A number of both programs.

    Attributes:
        what: the number.
        tool: whose.
        ours, theirs: values.
        allowed: relative difference.
        ratio: of CPU times, ours / theirs; None where it says nothing.
    """

    what: str
    tool: str
    ours: float
    theirs: float
    allowed: float
    ratio: float | None

    @property
    def difference(self) -> float:
        return abs(self.ours - self.theirs) / max(abs(self.theirs), 1e-12)

    def cells(self) -> list[str]:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        numbers = [f"{self.ours:.10g}", f"{self.theirs:.10g}", f"{self.difference:.1e}", f"{self.allowed:.0e}", ratio]
        return [self.what, self.tool, *numbers]


Values = Callable[[], Iterable[float]]


def lines(
    what: Sequence[str], tool: str, ours: Values, theirs: Values, rounds: int, allowed: float = EQUAL
) -> list[Line]:
    """Return a line for each number, after so many rounds of both.

    Args:
        what: names of the numbers.
        tool: theirs.
        ours, theirs: compute the numbers.
        rounds: for the ratio of times; 0 computes once and gives none.
        allowed: relative difference.
    """
    ratios, values = [], [list[float](), list[float]()]
    for i in range(max(rounds, 1)):
        seconds = [0.0, 0.0]
        for k in (i % 2, 1 - i % 2):
            start = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                values[k] = [float(value) for value in (ours, theirs)[k]()]
            seconds[k] = time.process_time() - start
        ratios.append(seconds[0] / max(seconds[1], 1e-9))
    ratio = statistics.median(ratios) if rounds else None
    made = [Line(name, tool, a, b, allowed, ratio) for name, a, b in zip(what, *values, strict=True)]
    print(*("  ".join(line.cells()) for line in made), sep="\n", flush=True)
    return made


def ours(spec: object, *sets: Tensor) -> Values:
    """Return what computes a metric's values.

    Args:
        spec: of the metric.
        sets: its arguments.
    """

    def values() -> list[float]:
        result = build("eval.metrics", spec)(*sets)
        return [estimate.value for estimate in (result if isinstance(result, tuple) else (result,))]

    return values


def seeded_rows(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Return samples [n, d] and reference rows [3 n / 4, d], as features after a ReLU are."""
    g = np.random.default_rng(0)
    mix = g.standard_normal((d, d)) / np.sqrt(d)
    x = np.maximum(0, g.standard_normal((n, d)) @ mix + 0.3).astype(np.float32)
    y = np.maximum(0, g.standard_normal((3 * n // 4, d)) @ mix * 1.05 + 0.32).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(y)


def distance_lines(x: Tensor, y: Tensor, rounds: int) -> Iterator[Line]:
    """Compare FID and KID of given rows."""
    from cleanfid.fid import frechet_distance
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.kid import poly_mmd

    def moments(dtype: type) -> list[np.ndarray]:
        sets = [rows.numpy().astype(dtype) for rows in (x, y)]
        return [part for rows in sets for part in (rows.mean(0), np.cov(rows, rowvar=False))]

    def of_torchmetrics() -> list[float]:
        sets = [rows.double() for rows in (x, y)]
        return [_compute_fid(*(part for rows in sets for part in (rows.mean(0), torch.cov(rows.T))))]

    tools: dict[str, Values] = {
        "torch-fidelity": lambda: fidelity_distance(x, y),
        "pytorch-fid": lambda: [calculate_frechet_distance(*moments(np.float64))],
        "clean-fid": lambda: [frechet_distance(*moments(np.float32))],
        "torchmetrics": of_torchmetrics,
    }
    for tool, theirs in tools.items():
        yield from lines(["FID"], tool, ours("fid", x, y), theirs, rounds)
    names = ["KID, 20 subsets of 1000", "its deviation"]
    options = {"kid_subsets": 20, "kid_subset_size": 1000, "rng_seed": 2020, "verbose": False}

    def subsets(a: Tensor, b: Tensor) -> Iterable[float]:
        return kid_features_to_metric(a, b, **options).values()

    for dtype, allowed in ((torch.float32, OF_FLOAT32), (torch.float64, EQUAL)):
        a, b = x.to(dtype), y.to(dtype)
        tool = f"torch-fidelity, {name_of(dtype)}"
        own = ours({"name": "kid_subsets", "subsets": 20}, a, b)
        yield from lines(names, tool, own, functools.partial(subsets, a, b), rounds, allowed)
    a, b = x[:3000].double(), y[:3000].double()  # of equal numbers
    yield from lines(["KID, all pairs"], "torchmetrics, float64", ours("kid", a, b), lambda: [poly_mmd(b, a)], rounds)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def fidelity_distance(x: Tensor, y: Tensor) -> list[float]:
    """Return FID by torch-fidelity's functions."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    return [*fid_statistics_to_metric(*map(fid_features_to_statistics, (x, y)), False).values()]


def neighbour_lines(x: Tensor, y: Tensor, rounds: int) -> Iterator[Line]:
    """Compare precision, recall, density and coverage of given rows."""
    from prdc import compute_prdc
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    def together(a: Tensor, b: Tensor, *specs: object) -> Values:
        metrics = [build("eval.metrics", spec) for spec in specs]
        return lambda: [estimate.value for estimate in share_distances(metrics, a, b)]

    names = ["precision, k 3", "recall, k 3"]
    own = together(x, y, "precision", "recall")
    yield from lines(names, "torch-fidelity", own, lambda: calculate_precision_recall_full(x, y), rounds)
    five = [{"name": name, "nearest": 5, "strict": True} for name in ("precision", "recall")]
    names = [f"{name}, k 5" for name in ("precision", "recall", "density", "coverage")]
    for dtype, allowed in ((torch.float32, OF_TIES), (torch.float64, EQUAL)):
        a, b = x.to(dtype), y.to(dtype)
        theirs = functools.partial(compute_prdc, b.numpy(), a.numpy(), 5)
        own = together(a, b, *five, "density", "coverage")
        yield from lines(
            names, f"prdc, {name_of(dtype)}", own, lambda theirs=theirs: theirs().values(), rounds, allowed
        )


def score_lines(x: Tensor, y: Tensor, rounds: int) -> Iterator[Line]:
    """Compare the Inception score and CMMD of given rows, of which columns serve as class scores."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 2 * x[:, :100]
    own = ours({"name": "inception_score", "splits": 10, "shuffle": 2020}, logits)
    theirs: Values = lambda: [*isc_features_to_metric(logits).values()][:1]  # noqa: E731
    yield from lines(["IS, 10 splits"], "torch-fidelity", own, theirs, rounds)
    block = logits[:3000]
    own = ours("inception_score", block)
    yield from lines(["IS, one block"], "ADM's formula, numpy", own, lambda: [adm_score(block)], 0)
    yield from lines(["CMMD"], "its formula, numpy", ours("cmmd", x, y), lambda: [cmmd(x, y)], 0)


PARTS = {"distances": distance_lines, "neighbours": neighbour_lines, "scores": score_lines}


def adm_score(logits: Tensor) -> float:
    """Return the Inception score of one block by its definition."""
    p = torch.softmax(logits.double(), 1).numpy()
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


def cmmd(x: Tensor, y: Tensor) -> float:
    """Return CMMD by its definition in float64."""
    a, b = (rows.double().numpy() for rows in (x, y))
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (a, b))

    def mean(u: np.ndarray, v: np.ndarray) -> float:
        return float(np.exp((u @ v.T - 1) / 100).mean())

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


class Networks:
    """The tools' networks with one set of seeded weights, as functions of uint8 pictures [B, 3, H, W]."""

    def __init__(self, state: dict[str, Tensor], file: Path) -> None:
        import pytorch_fid.inception
        from cleanfid.resize import build_resizer
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        layers = ["2048", "logits_unbiased"]
        self.fidelity = FeatureExtractorInceptionV3("i", layers, feature_extractor_weights_path=str(file))
        self.fidelity.Mixed_6d.branch1x1.register_forward_hook(self._keep)
        pytorch_fid.inception.load_state_dict_from_url = lambda *args, **kwargs: state
        self.resizing = pytorch_fid.inception.InceptionV3([3]).eval()
        self.plain = pytorch_fid.inception.InceptionV3([3], resize_input=False, normalize_input=False).eval()
        self.cleaner = build_resizer("clean")

    def _keep(self, _module: object, _inputs: object, out: Tensor) -> None:
        self.branch = out

    def fidelity_spatial(self, images: Tensor) -> Tensor:
        self.fidelity(images)
        return self.branch[:, :7].permute(0, 2, 3, 1).flatten(1)

    def pytorch_fid(self, images: Tensor) -> Tensor:
        return self.resizing(images.float() / 255)[0].flatten(1)

    def clean(self, images: Tensor) -> Tensor:
        resized = [torch.from_numpy(self.cleaner(image.permute(1, 2, 0).numpy())) for image in images]
        return self.plain((torch.stack(resized).permute(0, 3, 1, 2) - 128) / 128)[0].flatten(1)


def seeded_pictures(count: int) -> tuple[Tensor, Tensor]:
    """Return samples and references, uint8 [count, 3, 32, 32]: random blocks of 4 x 4 pixels."""
    first, second = (np.random.default_rng(seed).integers(0, 256, (48, 8, 8, 3), np.uint8) for seed in (1, 2))
    sets = (torch.from_numpy(x[:count].repeat(4, 1).repeat(4, 2)) for x in (first, second // 2 + 64))
    a, b = (x.permute(0, 3, 1, 2).contiguous() for x in sets)
    return a, b


def picture_lines(count: int, folder: Path) -> Iterator[Line]:
    """Compare whole pipelines, from uint8 pictures of 32 px to a number."""
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torchmetrics.image.fid import FrechetInceptionDistance

    state, file = seeded_weights(), folder / "inception.pth"
    torch.save(state, file)
    a, b = seeded_pictures(count)
    nets = Networks(state, file)
    extractors = {
        resize: build("eval.features", {"name": "inception", "path": str(file), "resize": resize}).load()
        for resize in ("tf1", "clean", "torchmetrics", "pytorch-fid")
    }

    def of_torchmetrics() -> list[float]:
        metric = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(file))
        metric.update(a, real=False)
        metric.update(b, real=True)
        return [metric.compute()]

    def own(resize: str) -> Values:
        extract = extractors[resize]
        return lambda: ours("fid", extract(a), extract(b))()

    tools: list[tuple[str, str, Values]] = [
        ("tf1", "torch-fidelity", lambda: fidelity_distance(nets.fidelity(a)[0], nets.fidelity(b)[0])),
        ("clean", "clean-fid", lambda: fidelity_distance(nets.clean(a), nets.clean(b))),
        ("pytorch-fid", "pytorch-fid", lambda: fidelity_distance(nets.pytorch_fid(a), nets.pytorch_fid(b))),
        ("torchmetrics", "torchmetrics", of_torchmetrics),
    ]
    for resize, tool, theirs in tools:
        yield from lines([f"FID of pictures, resize {resize}"], tool, own(resize), theirs, 1)
    tf1 = extractors["tf1"]
    spatial: Values = lambda: fidelity_distance(nets.fidelity_spatial(a), nets.fidelity_spatial(b))  # noqa: E731
    own_spatial = ours("sfid", tf1.spatial(a), tf1.spatial(b))
    yield from lines(["sFID of pictures"], "torch-fidelity's network", own_spatial, spatial, 0)
    score = ours({"name": "inception_score", "splits": 4, "shuffle": 2020}, tf1.head(tf1(a)))
    theirs = lambda: [*isc_features_to_metric(nets.fidelity(a)[1], splits=4).values()][:1]  # noqa: E731
    yield from lines(["IS of pictures, 4 splits"], "torch-fidelity", score, theirs, 0)


def check_packages() -> None:
    """Exit with the command that installs what is missing; let torchvision load beside a CPU build of torch."""
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}\npip install --no-deps --target FOLDER {' '.join(missing)}")
    with contextlib.suppress(RuntimeError):  # they are there already
        operators = torch.library.Library("torchvision", "DEF")
        operators.define("nms(Tensor dets, Tensor scores, float threshold) -> Tensor")
        operators.define("qnms(Tensor dets, Tensor scores, float threshold) -> Tensor")
        KEPT.append(operators)


KEPT: list[torch.library.Library] = []  # operators last as long as their library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", default="4000x512", help="samples x dimensions of seeded rows")
    parser.add_argument("--parts", default=",".join(PARTS), help="comparisons of rows")
    parser.add_argument("--pictures", type=int, default=24, help="of each set, 8 to 48; 0 leaves the networks out")
    parser.add_argument("--rounds", type=int, default=3, help="of the timing")
    parser.add_argument("--out", type=Path, help="a markdown file for the table")
    args = parser.parse_args()
    check_packages()
    warnings.simplefilter("ignore")  # the tools' own
    torch.set_num_threads(1)
    n, d = map(int, args.rows.split("x"))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        x, y = seeded_rows(n, d)
        found = [line for part in args.parts.split(",") for line in PARTS[part](x, y, args.rounds)]
        found += picture_lines(args.pictures, Path(folder)) if args.pictures else []
    head = ["number", "tool", "ours", "theirs", "difference", "allowed", "CPU time, ours / theirs"]
    table = [head, ["---"] * len(head), *(line.cells() for line in found)]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in table) + "\n"
    print(text)
    if args.out:
        write_text(args.out, text)
    wrong = [f"{line.what} of {line.tool}" for line in found if not line.difference <= line.allowed]
    if wrong:
        sys.exit(f"different: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
