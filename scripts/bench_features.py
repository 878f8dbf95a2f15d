"""What a picture costs in FID's network: ours packed, ours not packed, and torch-fidelity's, on the same threads.

python scripts/bench_features.py [--pictures 16] [--size 256] [--rounds 10] [--threads 1]
python scripts/bench_features.py --reading [--pictures 96] ...

Needs torch-fidelity 0.4 and torchvision, in a folder on PYTHONPATH, for torch-fidelity brings a package `tests`:
pip install --no-deps --target FOLDER torch-fidelity torchvision==0.28.0. One set of seeded weights and random uint8
pictures; each call goes from uint8 pictures to the 2048 features, the resize included. The turns go there and back in
one process (a b c c b a), so that a busy machine slows all alike; CPU seconds of the process are counted. Prints the
median cost of a picture, the median ratio to torch-fidelity's with the interval of the middle nine tenths of the
rounds, and the largest difference of features; then one line of JSON. With --reading, the ratio of features of PNG
files in a folder, opened and decoded, to those of the same pictures in memory, and neither torch-fidelity nor
torchvision is needed.

Measured (2026-11-30, 2 shared cores of an AMD EPYC with AVX-512, torch 2.13, torch-fidelity 0.4.0, pictures of 256
pixels): of torch-fidelity's cost in calls of 16 on one thread .56 (.52 to .57) packed and .56 (.53 to .58) not packed,
on two threads .52 (.51 to .54) and .55 (.52 to .58); in calls of one .50 (.49 to .51) and .71 (.70 to .74). 65 ms a
picture, and features that differ by 5.2e-6 at most. --reading: 1.02 (.99 to 1.05) on one thread, 1.02 (1.02 to 1.06) on
two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from gen.config.spec import build
from gen.eval.extraction import Extraction, Rows
from gen.eval.features.inception import InceptionClassifier
from gen.eval.features.lib.convolution import FoldedConv
from gen.eval.features.lib.inception_net import InceptionNet, seeded_weights
from gen.eval.image_sets import TensorImages
from gen.eval.picture_files import PictureFiles


def torch_fidelity(weights: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Return torch-fidelity's extractor of pool3, with these weights."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # of another build of torch: what it misses is not used here
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        torch_fidelity.library = torch.library.Library("torchvision", "DEF")
        for op in ("nms", "qnms"):
            torch_fidelity.library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with TemporaryDirectory() as folder:
        torch.save(weights, f"{folder}/weights.pth")
        net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=f"{folder}/weights.pth")
    return lambda images: net(images)[0]


@contextmanager
def unpacked() -> Iterator[None]:
    """Leave out oneDNN's layout of the weights."""
    before, FoldedConv._packs = FoldedConv._packs, lambda self, x: False
    try:
        yield
    finally:
        FoldedConv._packs = before


def measure(pictures: int, size: int, rounds: int, threads: int) -> dict[str, object]:
    """Return medians, ratios with their intervals, and differences."""
    torch.set_num_threads(threads)
    weights = seeded_weights()
    images = torch.randint(0, 256, (pictures, 3, size, size), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    ours, theirs = InceptionClassifier(InceptionNet(weights), "", "tf1", "2048", pictures), torch_fidelity(weights)

    def plain(images: Tensor) -> Tensor:
        with unpacked():
            return ours(images)

    calls = {"packed": ours, "not packed": plain, "torch-fidelity": theirs}
    costs: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        rows = {name: call(images) for name, call in calls.items()}
        for _ in range(rounds):
            spent = dict.fromkeys(calls, 0.0)
            for name in (*calls, *reversed(calls)):
                start = time.process_time()
                calls[name](images)
                spent[name] += time.process_time() - start
            for name, seconds in spent.items():
                costs[name].append(seconds / 2 / pictures)
    ratios = {name: [a / b for a, b in zip(costs[name], costs["torch-fidelity"], strict=True)] for name in calls}
    return {
        "seconds": {name: statistics.median(values) for name, values in costs.items()},
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "interval": {name: middle(values) for name, values in ratios.items()},
        "difference": {name: float((rows[name] - rows["torch-fidelity"]).abs().max()) for name in calls},
    }


def reading(pictures: int, size: int, rounds: int, threads: int) -> dict[str, object]:
    """Return medians and the ratio of folder to memory, with its interval; pictures are crops of two photographs."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    torch.set_num_threads(threads)
    extractor, spec = InceptionClassifier(InceptionNet(seeded_weights()), "", "tf1", "2048", 16), {"name": "inception"}
    photographs, generator = load_sample_images().images, torch.Generator().manual_seed(0)
    with TemporaryDirectory() as name:
        for i in range(pictures):
            top, left = torch.randint(427 - size, (2,), generator=generator).tolist()
            crop = photographs[i % 2][top : top + size, left : left + size]
            Image.fromarray(crop).save(Path(name, f"{i:05d}.png"))
        folder = Path(name)
        files = PictureFiles(folder)
        memory = TensorImages(files.read(range(pictures))["images"])
        costs: dict[str, list[float]] = {"folder": [], "memory": []}
        for _ in range(rounds):
            spent = dict.fromkeys(costs, 0.0)
            for kind in ("memory", "folder", "folder", "memory"):
                start = time.process_time()
                images = PictureFiles(folder) if kind == "folder" else memory
                Rows(images, extractor, build("eval.features", spec), Extraction()).fill()
                spent[kind] += time.process_time() - start
            for kind, seconds in spent.items():
                costs[kind].append(seconds / 2 / pictures)
    ratios = [a / b for a, b in zip(costs["folder"], costs["memory"], strict=True)]
    seconds = {kind: statistics.median(values) for kind, values in costs.items()}
    return {"seconds": seconds, "ratio": statistics.median(ratios), "interval": middle(ratios)}


def middle(values: list[float]) -> tuple[float, float]:
    """Return the interval of the middle nine tenths."""
    low, high = torch.tensor(values).quantile(torch.tensor([0.05, 0.95])).tolist()
    return low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"pictures": 16, "size": 256, "rounds": 10, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    parser.add_argument("--reading", action="store_true", help="pictures in a folder against pictures in memory")
    given = vars(parser.parse_args())
    if given.pop("reading"):
        print(json.dumps(reading(**given)))
        return
    result = measure(**given)
    for name, seconds in result["seconds"].items():
        low, high = result["interval"][name]
        print(
            f"{name:<15}{1000 * seconds:7.1f} ms a picture, {result['ratio'][name]:.2f} of torch-fidelity "
            f"({low:.2f} to {high:.2f}), features differ by {result['difference'][name]:.1e}"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
