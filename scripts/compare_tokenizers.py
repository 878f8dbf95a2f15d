"""Tokenizers of equal size at equal steps: what they reconstruct, and what one DiT generates in the latents of each.

    python scripts/compare_tokenizers.py digits [--seeds 3] [--folder runs/tokenizers] [--table tokenizers_digits.json]
    python scripts/compare_tokenizers.py photographs --encoder dinov2-small

Each row trains an autoencoder, encodes the data, trains a DiT on the latents, samples it after 0.6 and after all of its
steps and decodes: `kl`, the convolutional one of LDM; `kl + VF`, its latents held to features; `rae`, the tokens of a
frozen encoder, decoded with noise of several tau or with none; `hieratok`, and its control in which all tokens attend
to all. The rate is constant in the DiT's training, so that 0.6 of the steps is a training of its own. The rows of rae
share one DiT for each seed, as their latents are the same. rFID and gFID are against held-out pictures, in features
that no row has seen: pixels of digits, EfficientNet-Lite0's of photographs. What is done is kept in the folder, so the
command can be stopped and run again.

    python scripts/compare_tokenizers.py draw

Draws docs/figures/tau.svg, gFID beside rFID for each tau, from the tables in benchmarks/results.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import gen
from gen.config.images import to_uint8
from gen.config.reading import read_json
from gen.config.spec import Json, build
from gen.config.writing import write_text
from gen.data.digits import Digits
from gen.data.latents import Latents
from gen.data.lib.encoding import Encoding, encode
from gen.data.lib.shards import ShardPlan
from gen.data.photographs import Photographs
from gen.diffusion.times import LogitNormal
from gen.eval.reference import Reference
from gen.models.autoencoders.trained import Trained
from gen.training.ema import Classic
from gen.training.objectives.denoise import Denoising
from gen.training.objectives.tokenizer import Tokenizer
from gen.training.objectives.vf import VF
from gen.training.optim.adamw import AdamW
from gen.training.run import Run, Sampler
from gen.training.schedules import Constant, Cosine
from scripts.figures import Panel, figure

ROOT = Path(__file__).resolve().parents[1]
PART = 0.6  # of a DiT's steps, after which it is measured too
DENOISERS: dict[str, Json] = {
    "dit": {"name": "dit", "patch": 1, "width": 64, "depth": 4, "heads": 4, "time_scale": 1000.0, "freq_shift": 1},
    "wide": {"name": "dit_dh", "patch": 1, "depth": 4, "heads": 4, "head_depth": 1, "time_scale": 1000.0},
}


@dataclass(frozen=True)
class Row:
    """A tokenizer, and the network that learns its latents.

    Attributes:
        model: the autoencoder's spec.
        objective: of its training.
        denoiser: "dit" or "wide", see Task.
        like: the row, with the same frozen encoder, whose latents and denoiser are this one's too; "" for its own.
    """

    model: Json
    objective: Tokenizer = field(default_factory=lambda: Tokenizer(gan_weight=0))
    denoiser: str = "dit"
    like: str = ""


@dataclass(frozen=True)
class Task:
    """What tokenizers are compared on.

    Attributes:
        data: pictures.
        rows: by name, a row before those that are like it.
        extractor: of rFID and gFID.
        pairs: metrics of reconstructions beside the pictures.
        coder: the training of an autoencoder, but for model, objective and seed.
        denoiser: the training of a denoiser, but for model, data and seed.
        wide: the widths of DiT^DH.
        samples: drawn for a gFID.
    """

    data: Any
    rows: Mapping[str, Row]
    extractor: str
    pairs: tuple[Any, ...]
    coder: Json
    denoiser: Json
    wide: Json
    samples: int = 1000


def task_of(name: str, encoder: Path | None) -> Task:
    """Return the comparison on digits or on photographs.

    Args:
        name: "digits" or "photographs".
        encoder: folder of a DINOv2, for the rows of photographs that need features; None leaves these out.
    """
    both = {"ema": (Classic(decay=0.99),), "sample_every": 0, "validate_every": 0, "keep": 3}
    denoiser = {**both, "batch_size": 64, "optim": AdamW(lr=2e-3), "schedule": Constant(warmup=50)}
    denoiser |= {"objective": Denoising(times=LogitNormal()), "sampler": Sampler("euler", steps=20)}
    coder = {**both, "schedule": Cosine(warmup=50), "parameterisation": "x0", "save_every": 0}
    if name == "digits":
        coder |= {"steps": 500, "batch_size": 64, "optim": AdamW(lr=2e-3)}
        denoiser |= {"steps": 800, "save_every": round(PART * 800)}
        wide = {"width": 48, "head_width": 80, "head_heads": 4}
        return Task(Digits(), digit_rows(), "pixels", ("psnr",), coder, denoiser, wide)
    coder |= {"steps": 400, "batch_size": 32, "optim": AdamW(lr=1e-3)}
    denoiser |= {"steps": 800, "save_every": round(PART * 800)}
    lpips = {"name": "lpips", "distance": {"trunk": "vgg"}}
    data = Photographs(size=16, side=96, tile=24, stride=4)
    rows = photograph_rows(encoder)
    wide = {"width": 64, "head_width": 384, "head_heads": 6}
    return Task(data, rows, "efficientnet_lite0", ("psnr", "ssim", lpips), coder, denoiser, wide, 500)


def digit_rows() -> dict[str, Row]:
    """Return the tokenizers of digits, each of about 166,000 trained numbers, 16 tokens.

    Features are those of digits_cnn.
    """
    kl = {"name": "kl", "preset": "digits"}
    hier = {"name": "hieratok", "preset": "digits", "width": 72, "heads": 4, "hidden": 144}
    rae = {"name": "rae", "preset": "digits", "width": 80, "depth": 3, "hidden": 160}
    return {
        "kl": Row(kl),
        "kl + VF": Row(kl, VF(gan_weight=0)),
        **rae_rows(rae, (0.8, 1.6, 3.2)),
        **hier_rows(hier),
    }


def photograph_rows(encoder: Path | None) -> dict[str, Row]:
    """Return the tokenizers of photographs, each of about 240,000 trained numbers, 16 tokens.

    Args:
        encoder: see `task_of`.
    """
    size = {"size": 16, "channels": 3, "classes": 9}
    kl = {"name": "kl", **size, "latent_channels": 8, "width": 16, "attention": False}
    hier = {"name": "hieratok", **size, "latent_channels": 8, "scales": (1, 2, 4), "width": 84, "hidden": 168}
    rows = {"kl": Row(kl)}
    if encoder is not None:
        seen = {"name": "dinov2", "path": str(encoder), "grid": 4}
        random = {"name": "vit", "kind": "dinov2", "grid": 4, "patch": 14, "table": 518}  # as large, untrained
        rae = {"name": "rae", **size, "encoder": {**seen, "norm": "plain"}, "width": 92, "depth": 3, "hidden": 184}
        rows["kl + VF"] = Row(kl, VF(gan_weight=0, encoder=build("models.encoders", seen)))
        rows["kl + VF, random encoder"] = Row(kl, VF(gan_weight=0, encoder=build("models.encoders", random)))
        rows |= rae_rows(rae, (0.4, 0.8))
    return {**rows, **hier_rows(hier)}


def rae_rows(model: Json, taus: tuple[float, ...]) -> dict[str, Row]:
    """Return a representation autoencoder without noise, under DiT^DH and under the DiT of the others, and with noise.

    Args:
        model: its spec.
        taus: scales of the noise that its decoder is trained with.
    """
    rows = {"rae": Row(model, denoiser="wide"), "rae, the same DiT": Row(model)}
    for tau in taus:
        rows[f"rae, tau {tau:g}"] = Row(model, Tokenizer(gan_weight=0, tau=tau), "wide", like="rae")
    return rows


def hier_rows(model: Json) -> dict[str, Row]:
    """Return HieraTok, with its causal mask and without."""
    return {f"hieratok, {causal}": Row({**model, "causal": causal}) for causal in ("both", "none")}


class Comparison:
    """One task, in one folder.

    Args:
        task: see above.
        folder: where everything is kept.
    """

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder = task, folder
        self.reference = Reference.open(task.data, "test", task.extractor)
        self.truth = pictures(task.data, "test")

    def measured(self, name: str, seed: int) -> Json:
        """Return the numbers of a row and a seed, which are computed once."""
        own, row = self.folder / f"{name} {seed}", self.task.rows[name]
        if (file := own / "measured.json").exists():
            found: Json = read_json(file)
            return found
        began = time.process_time()
        run = Run(model=row.model, data=self.task.data, objective=row.objective, seed=seed, **self.task.coder)
        gen.train(run, own / "coder", quiet=True)
        coder = Trained(str(own / "coder"))
        net = coder.load()
        result: Json = {"name": name, "seed": seed, "coder": sum(p.numel() for p in net.parameters())}
        result["reconstructed"] = self.reconstructed(net)
        latents = (self.folder / f"{row.like} {seed}" if row.like else own) / "latents"
        if not row.like:
            how = Encoding(coder, dtype="float32", batch_size=250)
            encode(self.task.data, latents, how, ShardPlan(4000, quiet=True))
        result |= self.generated(row, latents, net, seed)
        result["seconds"] = time.process_time() - began
        write_text(file, json.dumps(result, indent=1) + "\n")
        return result

    def reconstructed(self, coder: Any) -> Json:
        """Return PSNR ... and rFID of the held-out pictures, each from the mean of its latent."""
        with torch.no_grad():
            parts = [coder.decode(coder.encode(some).mean) for some in self.truth.split(250)]
        return self.scores(torch.cat(parts), "fid", *self.task.pairs, paired=to_uint8(self.truth))

    def generated(self, row: Row, latents: Path, coder: Any, seed: int) -> Json:
        """Train the denoiser, and return the gFID after each share of the steps.

        Args:
            row: whose it is.
            latents: folder of the data's latents, beside which the denoiser's lies.
            coder: what decodes the samples.
            seed: of the training and of the samples.
        """
        fixed = coder.latent_layer is None  # tokens of a frozen encoder, which RAE normalises at each position
        data = Latents(str(latents), standardise="position" if fixed else "channel")
        about = {"channels": data.shape[0], "classes": data.classes, "size": data.shape[1]}
        model = {**DENOISERS[row.denoiser], **(self.task.wide if row.denoiser == "wide" else {}), **about}
        steps = self.task.denoiser["steps"]
        run = Run(model=model, data=data, seed=seed, **self.task.denoiser)
        folder = gen.train(run, latents.parent / "denoiser", quiet=True).folder
        found: Json = {"latent": list(data.shape), "generated": {}}
        for share, at in ((PART, folder / "checkpoints" / f"step-{round(PART * steps):07d}"), (1.0, folder)):
            pipeline = gen.load(at)
            found["denoiser"] = pipeline.params
            samples = pipeline.decoded(pipeline.sample(self.task.samples, seed=seed), coder, 250)
            found["generated"][f"{share:g}"] = self.scores(samples.x, "fid", "kid")
        return found

    def scores(self, images: Tensor, *metrics: Any, paired: Tensor | None = None) -> Json:
        """Return each metric's value and standard error by its name.

        Args:
            images: in [-1, 1].
            metrics: names or specs.
            paired: what they should be, uint8.
        """
        record = gen.evaluate(to_uint8(images), against=self.reference, metrics=metrics, paired=paired)
        return {m.column.key: {"value": m.estimate.value, "se": m.estimate.se} for m in record.metrics}


def pictures(data: Any, split: str) -> Tensor:
    """Return all pictures of a split, [N, C, H, W]."""
    rows = data.open(split)
    return torch.stack([rows[i]["x"] for i in range(len(rows))])


def summary(comparison: Comparison, found: list[Json]) -> Json:
    """Return the means over the seeds of each row, with their standard errors, and of real pictures."""
    task, about = comparison.task, {"date": str(datetime.date.today()), "torch": torch.__version__}
    plan = {"cpu": platform.machine(), "extractor": task.extractor, "samples": task.samples}
    plan |= {"coder_steps": task.coder["steps"], "denoiser_steps": task.denoiser["steps"]}
    real = comparison.scores(pictures(task.data, "train"), "fid", "kid")
    rows = []
    for name in task.rows:
        some = [one for one in found if one["name"] == name]
        numbers = {key: some[0][key] for key in ("coder", "latent", "denoiser")}
        seconds = statistics.fmean(one["seconds"] for one in some)
        generated = {share: over_seeds([one["generated"][share] for one in some]) for share in some[0]["generated"]}
        values = {"reconstructed": over_seeds([one["reconstructed"] for one in some]), "generated": generated}
        rows.append({"name": name, "seeds": len(some), **numbers, "seconds": round(seconds), **values})
    return {**about, **plan, "real": real, "rows": rows}


def over_seeds(found: list[Json]) -> Json:
    """Return the mean of each metric over the seeds, its standard error (of one seed: of the samples), and all values.

    Args:
        found: {metric: {"value", "se"}} of each seed.
    """
    means = {}
    for key, first in found[0].items():
        values = [one[key]["value"] for one in found]
        se = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else first["se"]
        means[key] = {"value": statistics.fmean(values), "se": se, "seeds": values}
    return means


def trade(tables: Mapping[str, Json]) -> str:
    """Draw rFID and gFID against tau, a panel for each table, as SVG.

    Args:
        tables: by title, see `summary`.
    """
    panels = []
    for title, table in tables.items():
        rows = {row["name"]: row for row in table["rows"] if row["name"].startswith("rae")}
        taus = {
            0.0 if name == "rae" else float(name.split()[-1]): row for name, row in rows.items() if "same" not in name
        }
        curves = {"rFID": [(tau, row["reconstructed"]["fid"]["value"]) for tau, row in sorted(taus.items())]}
        for share in table["rows"][0]["generated"]:
            name = "gFID" if share == "1" else f"gFID at {share} of the steps"
            curves[name] = [(tau, row["generated"][share]["fid"]["value"]) for tau, row in sorted(taus.items())]
        panels.append(Panel(title, "tau", "distance", curves))
    return figure(panels, "Distances of reconstructions and of samples by the noise that RAE's decoder is trained with")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=("digits", "photographs", "draw"))
    parser.add_argument("--encoder", type=Path, help="folder of a small DINOv2, for photographs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/tokenizers"))
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    if args.task == "draw":
        results = ROOT / "benchmarks" / "results"
        tables = {task: read_json(results / f"tokenizers_{task}.json") for task in ("digits", "photographs")}
        write_text(ROOT / "docs" / "figures" / "tau.svg", trade(tables))
        return
    torch.set_num_threads(1)
    comparison, found = Comparison(task_of(args.task, args.encoder), args.folder / args.task), list[Json]()
    for seed in range(args.seeds):
        for name in comparison.task.rows:
            found.append(comparison.measured(name, seed))
            print(json.dumps(found[-1]), flush=True)
    if args.table is not None:
        write_text(args.table, json.dumps(summary(comparison, found), indent=1) + "\n")


if __name__ == "__main__":
    main()
