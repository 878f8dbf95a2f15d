"""Cost of reading pictures: items of a folder against a bare PIL decode and crop, workers, and opening many files.

python scripts/bench_data.py [--pictures 64] [--size 256] [--rounds 9] [--files 20000] [--folder FOLDER]

Pictures are crops of scikit-image's photographs, 500 x 375 JPEG of quality 92 (about 90 kB), as ImageNet's are. Four
measurements, each the median over rounds, with the lowest and the highest:
- items: CPU seconds of reading a file, decoding it by PIL, ADM's crop and numpy's array, over those of a folder's item,
  which also compares the file's sha256 and ends as a float tensor in [-1, 1]; the two take turns on one thread;
- workers: pictures per second of the training's loader with two workers over one, in batches of 16, wall time; beside
  it the same of plain processes that read items and hand over nothing, which is what the machine has to give, and
  what two free cores would give by CPU time: 2 w1 / (w2 + m), for w1 and w2 seconds of a picture in one worker and in
  two, m in the process that takes them;
- latents: rows of 4 x 32 x 32 in float16 per CPU second of one thread, in batches of 256 in shuffled order: a column of
  the files, means as the training's loader reads them, and draws, each of which takes a random generator of its own;
- opening: seconds per million files of the first opening (every file is read) and of the next ones, CPU and wall time.
One line of JSON at the end; docs/data.md has the results.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Process
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from gen.config.tensor_files import write_file
from gen.data.folder import Folder
from gen.data.latents import Latents
from gen.data.lib.crops import fit
from gen.data.lib.pictures import PictureSet
from gen.data.photographs import paths
from gen.training.recipes.own import own
from gen.training.stream import ShuffledStream, iterate_steps, keep_memory

SHAPE = (500, 375)


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pictures", 64), ("size", 256), ("rounds", 9), ("files", 20_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", help="where pictures and index are written (default: a temporary folder)")
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.folder) as made:
        os.environ["XDG_CACHE_HOME"] = f"{made}/cache"
        keep_memory()  # as the loader's workers do
        result: dict[str, object] = {"items": items(Path(made) / "a", args.pictures, args.size, args.rounds)}
        result["workers"] = workers(Path(made) / "a", args.size, args.rounds)
        result["latents"] = latents(Path(made) / "c", args.rounds)
        result |= opening(Path(made) / "b", args.files, args.size)
    print(json.dumps(result))


def write(folder: Path, n: int) -> None:
    """Write n pictures in ten class folders; from the 65th on they repeat, but for bytes behind the end."""
    generator = np.random.default_rng(0)
    drawn = list[bytes]()
    sources = [Image.open(path).convert("RGB") for path in paths()]
    sources = [image.resize((image.width * 2, image.height * 2)) for image in sources]
    (folder / "x.jpg").parent.mkdir(parents=True)
    for i in range(n):
        if i < 64:
            image = sources[i % len(sources)]
            left, top = (int(generator.integers(0, side - s)) for side, s in zip(image.size, SHAPE, strict=True))
            image.crop((left, top, left + SHAPE[0], top + SHAPE[1])).save(folder / "x.jpg", quality=92)
            drawn.append((folder / "x.jpg").read_bytes())
        path = folder / f"class{i % 10}" / f"{i:08}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(drawn[i % 64] + i.to_bytes(4, "little"))
    (folder / "x.jpg").unlink()


def spent(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Return the seconds of a call."""
    began = clock()
    work()
    return clock() - began


def said(name: str, values: list[float]) -> list[float]:
    """Print and return the median, the lowest and the highest."""
    row = [round(v, 3) for v in (statistics.median(values), min(values), max(values))]
    print(f"{name}: {row[0]} ({row[1]} to {row[2]})")
    return row


def items(folder: Path, n: int, size: int, rounds: int) -> list[float]:
    """Return the bare cost over ours."""
    write(folder, n)
    data = Folder(str(folder), size, holdout=0.0).open("train")
    files = [data.where(i) for i in range(n)]

    def bare() -> None:
        for file in files:
            with Image.open(file) as image:
                np.asarray(fit(image.convert("RGB"), (size, size)))

    def ours() -> None:
        for i in range(n):
            data[i]

    ratios, costs = list[float](), list[float]()
    for k in range(rounds + 1):
        a, b, c, d = (spent(work) for work in (bare, ours, ours, bare))
        if k:  # the first round warms up
            ratios.append((a + d) / (b + c))
            costs.append((b + c) / 2 / n * 1000)
    said("milliseconds an item", costs)
    return said("bare PIL over an item", ratios)


def workers(folder: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """Return the pictures per second of two workers over those of one, and of two plain processes over one."""
    data = Folder(str(folder), size, holdout=0.0).open("train")
    run = replace(own(), data=None, batch_size=16, steps=40)

    def rate(count: int) -> float:
        steps = iterate_steps(ShuffledStream(data, 0), replace(run, workers=count), 0, 16, 0, 16)
        for _ in range(2 * count):  # the workers have begun, and what they fetch ahead is taken
            next(steps)
        began, done = time.perf_counter(), 0
        for _ in steps:
            done += 16
        return done / (time.perf_counter() - began)

    def cost(count: int) -> tuple[float, float]:
        """Return the CPU seconds of 480 pictures in the workers and in this process: of 40 steps less those of 10."""
        spent = []
        for length in (10, 40):
            own_time, theirs = time.process_time(), getrusage(RUSAGE_CHILDREN)
            for _ in iterate_steps(ShuffledStream(data, 0), replace(run, workers=count, steps=length), 0, 16, 0, 16):
                pass
            gc.collect()  # the workers have ended
            after = getrusage(RUSAGE_CHILDREN)
            workers_time = after.ru_utime + after.ru_stime - theirs.ru_utime - theirs.ru_stime
            spent.append((workers_time, time.process_time() - own_time))
        return spent[1][0] - spent[0][0], spent[1][1] - spent[0][1]

    def plain(count: int) -> float:
        began = time.perf_counter()
        started = [Process(target=reads, args=(data, 600 // count)) for _ in range(count)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        return 600 / (time.perf_counter() - began)

    ratios: dict[str, list[float]] = {"loader": [], "plain": [], "by CPU time": []}
    rates = list[float]()
    for _ in range(rounds):
        for name, of in (("loader", rate), ("plain", plain)):
            a, b, c, d = of(1), of(2), of(2), of(1)
            ratios[name].append((b + c) / (a + d))
            rates += [b, c] if name == "loader" else []
        one, (two, taken) = cost(1)[0], cost(2)
        ratios["by CPU time"].append(2 * one / (two + taken))
    said("pictures per second, two workers", rates)
    return {name: said(f"two workers over one, {name}", values) for name, values in ratios.items()}


def reads(data: PictureSet, n: int) -> None:
    """Read n items."""
    for i in range(n):
        data[i % len(data)]


def latents(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return rows per CPU second: of a column, of means and of draws."""
    folder.mkdir()
    for k in range(4):
        columns = {name: torch.randn(4096, 4, 32, 32).half() for name in ("mean", "logvar")}
        write_file(folder / f"latents-{k:05}.safetensors", columns)
    data = {how: Latents(str(folder), holdout=0.0, posterior=how).open("train") for how in ("mean", "sample")}
    streams = {how: ShuffledStream(items, 0) for how, items in data.items()}
    batches = torch.randperm(len(data["mean"]), generator=torch.Generator().manual_seed(0)).split(256)
    works = {
        "column": lambda: [data["mean"].source.read(["mean"], rows.tolist()) for rows in batches],
        "means": lambda: [streams["mean"].__getitems__(rows.tolist()) for rows in batches],
        "draws": lambda: [streams["sample"].__getitems__(rows.tolist()) for rows in batches],
    }
    rates = {name: [len(data["mean"]) / spent(work) for _ in range(rounds + 1)][1:] for name, work in works.items()}
    return {name: said(f"rows of latents a second, {name}", values) for name, values in rates.items()}


def opening(folder: Path, n: int, size: int) -> dict[str, list[float]]:
    """Return the seconds per million files of the first opening and of the next, [CPU, wall]."""
    write(folder, n)

    def opened() -> None:
        source = Folder(str(folder), size)
        source.open("train"), source.open("test")

    result = {}
    for name in ("first", "again", "again", "again"):
        wall, cpu = time.perf_counter(), spent(opened)
        seconds = [round(s / n * 1e6, 1) for s in (cpu, time.perf_counter() - wall)]
        result[name] = min(seconds, result.get(name, seconds))
        print(f"opening {n} files, {name}: {seconds[0]} CPU seconds per million, {seconds[1]} of the clock")
    return result


if __name__ == "__main__":
    main()
