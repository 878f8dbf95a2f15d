"""Every distillation method on eight Gaussians in the plane, whose teacher is exact: a picture and a table.

python scripts/mixture_students.py [--only dmd2 sid] [--seed 0] [--out docs/students.png] [--table mixture.json]

Students begin as one small network, trained to denoise, and are sampled in one evaluation (cdrl in its own number).
"denoise" is no student but that network, trained on the data for longer and sampled in 50 steps: what a learned score
of this size can tell.

Measured (2026-11-29, two cores of an AMD EPYC that others used too, torch 2.13, 19 rows, one seed, 20,000 samples;
distances to the exact law, energy distance and sliced W2): the teacher's 50 Euler steps 0.0001 and 0.016, its one step
1.01 and 1.00; reflow 0.0000 and 0.017, rectified_diffusion 0.0001 and 0.018, progressive 0.0002 and 0.020, knowledge
0.0000 and 0.013, dmd2 0.0002 and 0.025, f_distill js 0.0003 and 0.028, f_distill forward_kl 0.0010 and 0.052, sid
0.0007 and 0.033, disback 0.0025 and 0.072 (after 1500 updates 0.0087 and 0.123), consistency 0.0008 and 0.037, ict
0.0083 and 0.095, ect 0.0018 and 0.051, tcm 0.0011 and 0.043, scm 0.0003 and 0.025, meanflow 0.0030 and 0.056, shortcut
0.0004 and 0.026; cdrl 0.0001 and 0.021, denoise 0.0002 and 0.026 (2026-11-30; a network twice as wide 0.0003 and
0.026).

Every student covers 8 of 8 modes, but so does a bare circle through them: only the distances tell. Students of scores
need many samples and updates: 800 updates of 256 rows leave dmd2 thin, at a sliced W2 of 0.081, and 3000 of 2048 bring
it to 0.026. With the exact score of 2048 of the student's samples in place of the learned one, 800 updates of 512 rows
give the modes their width, at 0.035: it is the learned score that lags, and near a width of 0 the gradient vanishes
with the width. cdrl was thin because its sampler was: with the exact energy too, 4 even levels and 6 Langevin steps of
0.1 leave 0.091, 10 levels even in log-SNR and 4 steps of 0.6 leave 0.018 (of 20,000 samples, exact ones 0.013);
the rest was training: 1000 updates of 512 rows leave 0.037, 3000 of 512 0.028, of 2048 0.021.
Settings were chosen in a few short tries with this seed, the only one. sid had fewer updates than dmd2: 3000 instead of
2000 make it worse (0.066; its alpha of 1.2 is biased: 0.5 gives 0.030 after 2000). Of dmd2, two seeds and 4000 or 5000
updates give 0.025, 0.035 and 0.025: what is left is a per cent of mass in the wrong mode, which little draws back,
since low noise levels outweigh those at which the modes meet; times from 0.15 or 0.2 on balance the modes and blur them
(0.027, 0.032). The learned score is no finer than that: see denoise. With student and fake score begun as the exact
score plus a network that is 0, 1000 updates of dmd2 give 0.115 and 4000 diverge (0.385).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from gen.config.spec import Json, build
from gen.config.writing import replacing, write_text
from gen.data.mixture import MixturePoints
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.net import members
from gen.diffusion.noise import Noise, derive
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow, Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Tap
from gen.diffusion.worlds import Mixture
from gen.distillers.lib.networks import ema_update
from gen.distillers.lib.sequence import TeacherSequence, load_matching
from gen.samplers.solvers.recovery import Recovery
from gen.training.objectives import Batch
from gen.training.run import Sampler

DATA = MixturePoints(dim=2, modes=8, std=0.15, radius=1.4)  # about unit deviation along either axis
MODEL = build("models", "mlp", channels=2, width=64, depth=3, time_scale=4.0)
MAP = build("models", "flow_map", inner=MODEL, tell="interval")
HOLD = 50  # updates that each of DisBack's targets lasts
ROOT = Path(__file__).resolve().parents[1]
REACH, CELL, TITLE, ACROSS = 2.2, 270, 46, 5  # of the picture: half a panel's width in data, pixels, panels in a row
denoiser = partial(Denoiser, path=Flow(), parameterisation=Velocity())


@dataclass(frozen=True)
class Plan:
    """How a student is trained; after: the student it begins as, if not the denoiser; back: DisBack's first stage.

    steps: of its sampler, unless the objective brings one.
    """

    objective: Any
    updates: int = 1200
    lr: float = 2e-3
    rows: int = 512
    model: Any = MODEL
    pairs: bool = False
    after: str | None = None
    back: Any = None
    betas: tuple[float, float] = (0.9, 0.99)
    steps: int = 1


def plans() -> dict[str, Plan]:
    """What is compared. Points of two numbers want KL's own scale, and a huber so large that it is a square.

    Where scores are matched the student starts at t = 0.8: at 1 a denoiser says the mean whatever the noise, and a
    student that begins as a point becomes a circle through the modes.
    """
    by, times = partial(build, "distillers"), {"name": "uniform", "low": 0.1, "high": 0.95}
    early = {"name": "linear", "start": 0.8}
    kl = {"scale": "kl", "times": times, "critic_steps": 4, "grid": early}
    ratio = {**kl, "features": "fake", "hidden": 32}
    matched = partial(Plan, updates=4000, lr=3e-3, rows=2048, betas=(0.0, 0.99))
    levels = build("samplers.grids", "exponential", sigma_min=0.05, sigma_max=12.8)
    recover = Sampler(Recovery(refine=4, step_size=0.6, initialiser="target"), steps=10, grid=levels)
    return {
        "denoise": Plan(build("training.objectives", "denoise"), 4000, 3e-3, steps=50),
        "reflow": Plan(by("reflow", huber=1.0), pairs=True),
        "rectified_diffusion": Plan(by("rectified_diffusion"), pairs=True),
        "progressive": Plan(by("progressive", start_steps=16, stage_updates=400), 2000),
        "knowledge": Plan(by("knowledge"), pairs=True),
        "dmd2": matched(by("dmd2", **kl)),
        "f_distill, js": matched(by("f_distill", divergence="js", **ratio)),
        "f_distill, forward_kl": matched(by("f_distill", divergence="forward_kl", **ratio)),
        "sid": matched(by("sid", times=times, critic_steps=4, weight="none", grid=early), updates=2000),
        "disback": matched(by("dmd2", **kl), back=by("degradation", records=4, every=50)),
        "consistency": Plan(by("consistency")),
        "ict": Plan(by("ict", grid_steps=(10, 80), double_every=250, huber=1.0)),
        "ect": Plan(by("ect", double_every=150, stages=8, huber=1.0)),
        "tcm": Plan(by("tcm", huber=1.0, gap=2**-7), after="ect"),
        "scm": Plan(by("scm", warmup=400), 1000),
        "meanflow": Plan(by("meanflow", flow_share=0.25, velocity="teacher", power=0.0), 1000, model=MAP),
        "shortcut": Plan(by("shortcut", steps=32, ema_decay=0.98, velocity="teacher"), model=MAP),
        "cdrl": Plan(by("cdrl", sampler=recover), 3000, rows=2048, model=build("models", "cooperative", inner=MODEL)),
    }


@dataclass(frozen=True)
class Quick(Noise):
    """A Noise of one seed for a batch of n samples: here none needs to be its own, and all are drawn at once."""

    n: int = 1

    def normal(self, name: int | str, shape: Sequence[int]) -> Tensor:
        return torch.special.ndtri(self.uniform(name, shape)).float()

    def uniform(self, name: int | str, shape: Sequence[int] = ()) -> Tensor:
        generator = torch.Generator().manual_seed(derive(self.seeds[0], name))
        return torch.rand(self.n, *shape, generator=generator, dtype=torch.float64).clamp(min=1e-12)


class Points:
    """The exact denoiser of the mixture as a teacher of pictures [B, 2, 1, 1]."""

    path, world = Flow(), DATA.world(Flow())

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        return Prediction(*(v.reshape(x.shape).to(x) for v in self.world(x.flatten(1), t)))

    def draw(self, n: int, seed: int) -> Tensor:
        """Real data [n, 2, 1, 1]."""
        return self.world.sample(n, torch.Generator().manual_seed(seed))[0].float()[..., None, None]


class Workshop:
    """The teacher, its pairs, a network trained to denoise, and the students that were made of it: net and seconds."""

    def __init__(self, seed: int, pairs: int = 20_000):
        self.seed, self.teacher = seed, Points()
        self.noise = Quick((derive("pairs", seed),), pairs).normal("start", DATA.shape)
        self.ends = trajectory_end(self.teacher, self.noise, Sampler("heun", steps=32))
        torch.manual_seed(seed)
        self.begun = self.train(Plan(build("training.objectives", "denoise")), MODEL.build(), "denoiser")
        self.made: dict[str, tuple[nn.Module, float]] = {}

    def student(self, name: str, every: dict[str, Plan]) -> tuple[nn.Module, float]:
        """The student of a plan and the seconds of its training, which is done unless it was before."""
        if name not in self.made:
            plan = every[name]
            start, net = self.student(plan.after, every)[0] if plan.after else self.begun, plan.model.build()
            net.load_state_dict(dict(start.state_dict()))
            began = time.perf_counter()
            self.made[name] = self.train(plan, net, name), time.perf_counter() - began
        return self.made[name]

    def batch(self, plan: Plan, name: str, step: int) -> Batch:
        """Real data, or pairs, and the noise of a step."""
        seed = derive("mixture", name, self.seed, step)
        noise, real = Quick((seed,), plan.rows), self.teacher.draw(plan.rows, seed)
        rows = noise.integers("rows", len(self.ends))
        x, cond = (self.ends[rows], {"noise": self.noise[rows]}) if plan.pairs else (real, {})
        return Batch(x, cond, noise, step=step)

    def degraded(self, plan: Plan) -> list[Denoiser]:
        """What the denoiser is on its way to the score of the teacher's own one-step samples."""
        net, kept = copy.deepcopy(self.begun).requires_grad_(True), []
        for k in range(plan.back.records):
            self.train(Plan(plan.back, plan.back.every, plan.lr, plan.rows), net, f"degraded {k}")
            kept.append(denoiser(copy.deepcopy(net).requires_grad_(False)))
        return kept

    def train(self, plan: Plan, net: nn.Module, name: str) -> nn.Module:
        """The average of a network over its last updates; the rate falls to 0 in the second half (of every stage)."""
        torch.manual_seed(derive("init", name, self.seed))
        objective, average = plan.objective, copy.deepcopy(net).requires_grad_(False)
        parts, records = objective.roles(net, self.teacher), self.degraded(plan) if plan.back else []
        if records:
            load_matching(parts["fake"], records[-1].net.state_dict())
        roles = {role: denoiser(part) for role, part in parts.items()}
        optims = {role: adam(part, plan, role) for role, part in parts.items() if list(part.parameters())}
        sequence, span = TeacherSequence(records[-2::-1], HOLD), getattr(objective, "stage_updates", plan.updates)
        for step in range(plan.updates):
            logs: Json = {}
            given = {**roles, "teacher": sequence.at(step, self.teacher)}
            for role, loss, told in objective(given, self.batch(plan, name, step)):
                mine = [optims[one] for one in ((role,) if isinstance(role, str) else role)]
                loss.backward()
                for optim in mine:
                    for group in optim.param_groups:
                        group["lr"] = group["top"] * min(1.0, 2 * (1 - step % span / span))
                    optim.step()
                    optim.zero_grad()
                logs |= told
            if hasattr(objective, "observe"):
                objective.observe(roles, {key: float(value.detach()) for key, value in logs.items()})
            ema_update(average, net, 0.98)
        return average


def adam(net: nn.Module, plan: Plan, role: str) -> torch.optim.Optimizer:
    """Adam at the plan's rate, for each parameter what the objective and the network make of it."""
    rate, scales = plan.lr * getattr(plan.objective, "rates", {}).get(role, 1.0), members(net).lr_scales()
    named = [(p, rate * scales.get(name, 1.0)) for name, p in net.named_parameters()]
    groups = [{"params": [p for p, top in named if top == lr], "lr": lr, "top": lr} for lr in {top for _, top in named}]
    return torch.optim.Adam(groups, betas=plan.betas if role == "net" else (0.9, 0.99), fused=True)


@torch.no_grad()
def trajectory_end(f: DenoiserLike, unit: Tensor, sampler: Sampler, noise: Noise | None = None) -> Tensor:
    """Samples from unit noise [B, 2, 1, 1]."""
    times = sampler.grid.times(f.path, sampler.steps)
    return integrate(f, f.path.start(unit, times[0]), times, sampler.solver, noise=noise, cond={})


def scores(x: Tensor, teacher: Points) -> Json:
    """Modes that got a quarter of their due within 3 deviations, share of samples within 3 of any, distances to data.

    The distances are to the exact law, and so know no noise but that of the samples.
    """
    x, world = x.flatten(1).double(), teacher.world
    near = (torch.cdist(x, world.means) / DATA.std).min(1)
    counts = torch.bincount(near.indices[near.values < 3], minlength=DATA.modes).double() / len(x)
    covered = {"modes": int((counts >= 0.25 * world.weights).sum()), "inside": float(counts.sum())}
    return covered | {"energy_distance": energy_distance(x, world), "sliced_wasserstein": sliced_wasserstein(x, world)}


def energy_distance(x: Tensor, world: Mixture) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| of samples x [N, 2] and the mixture of y, without bias."""
    n, weights, std = len(x), world.weights, DATA.std
    cross = (mean_distance(torch.cdist(x, world.means), std) @ weights).mean()
    within = weights @ mean_distance(torch.cdist(world.means, world.means), math.sqrt(2) * std) @ weights
    among = sum(torch.cdist(rows, x).sum() for rows in x.split(2000)) / (n * (n - 1))
    return float(2 * cross - within - among)


def mean_distance(d: Tensor, std: float) -> Tensor:
    """E|y| of y ~ N(m, std^2 I) in the plane, |m| = d: the mean of Rice's distribution."""
    u = (d / std) ** 2 / 4
    bessel = (1 + 2 * u) * torch.special.i0e(u) + 2 * u * torch.special.i1e(u)
    return std * math.sqrt(math.pi / 2) * bessel


def sliced_wasserstein(x: Tensor, world: Mixture, directions: int = 32) -> float:
    """Root mean square over directions of the Wasserstein distance W2 of samples x [N, 2] and the mixture on a line."""
    angle = torch.arange(directions, dtype=torch.float64) * math.pi / directions
    across = torch.stack([angle.cos(), angle.sin()])  # [2, directions]
    ordered, means = (x @ across).sort(0).values, world.means @ across
    share = (torch.arange(len(x), dtype=torch.float64)[:, None] + 0.5) / len(x)
    low = torch.full_like(ordered, -10.0)
    high = -low
    for _ in range(50):  # quantiles by halving
        middle = (low + high) / 2
        below = sum(w * torch.special.ndtr((middle - m) / DATA.std) for w, m in zip(world.weights, means, strict=True))
        low, high = torch.where(below < share, middle, low), torch.where(below < share, high, middle)
    return float((ordered - low).square().mean().sqrt())


def panel(title: str, below: str, x: Tensor, teacher: Points, dots: int = 2000) -> Image.Image:
    """Samples over the density of the data, at twice the size for smooth edges, under two lines of text."""
    side, radius = 2 * CELL, 2.2
    axis = ((torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1) * REACH
    places = torch.cartesian_prod(-axis, axis).flip(1)  # rows from the top
    density = teacher.world.log_prob(places, torch.zeros(1, dtype=torch.float64)).exp()
    shade = (density / density.max()).sqrt().reshape(side, side, 1)
    big = Image.fromarray((253 - shade * (253 - torch.tensor([150.0, 190.0, 235.0]))).byte().numpy())
    draw = ImageDraw.Draw(big, "RGBA")
    for a, b in x.flatten(1)[:dots].tolist():
        u, v = (REACH + a) / (2 * REACH) * side, (REACH - b) / (2 * REACH) * side
        draw.ellipse((u - radius, v - radius, u + radius, v + radius), fill=(190, 40, 30, 120))
    whole = Image.new("RGB", (CELL + 12, CELL + TITLE + 8), "white")
    whole.paste(big.resize((CELL, CELL), Image.Resampling.LANCZOS), (6, TITLE))
    draw = ImageDraw.Draw(whole)
    draw.text((6, 4), title, fill="black", font=ImageFont.load_default(16))
    draw.text((6, 25), below, fill=(90, 90, 90), font=ImageFont.load_default(13))
    return whole


def main() -> None:
    every = plans()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=every, metavar="NAME", help=f"of {', '.join(every)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the picture; docs/students.png, or none with --only")
    parser.add_argument("--table", type=Path, help="the JSON; benchmarks/results/mixture.json, or none with --only")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shop, n, panels, rows = Workshop(args.seed), 20_000, [], []
    noise = Quick((derive("test", args.seed),), n)

    def show(name: str, f: DenoiserLike, how: Sampler, **about: object) -> None:
        x, nfe = trajectory_end(f, noise.normal("start", DATA.shape), how, noise), how.solver.nfe(how.steps)
        row = {"name": name, "nfe": nfe, **about, **scores(x, shop.teacher)}
        below = f"modes covered {row['modes']} of {DATA.modes}, {100 * row['inside']:.1f} % within 3 std"
        panels.append(panel(f"{name}, {nfe} evaluation{'s' * (nfe > 1)}", below, x, shop.teacher))
        rows.append(row)
        print(*(f"{key} {value:.4g}" if key != "name" else f"{value:24}" for key, value in row.items()), flush=True)

    for steps in (50, 1):
        show("teacher, Euler", shop.teacher, Sampler("euler", steps=steps))
    for name in args.only or every:
        (net, seconds), plan = shop.student(name, every), every[name]
        grid, solver = getattr(plan.objective, "grid", "linear"), "jump" if plan.model is MAP else "euler"
        how = getattr(plan.objective, "sampler", Sampler(solver, steps=plan.steps, grid=grid))
        show(name, denoiser(net), how, updates=plan.updates, seconds=round(seconds, 1))
        save(args, panels, rows)


def save(args: argparse.Namespace, panels: list[Image.Image], rows: list[Json]) -> None:
    """The picture and the table of what there is so far."""
    if out := args.out or (None if args.only else ROOT / "docs/students.png"):
        sheet = Image.new("RGB", (ACROSS * panels[0].width, -(-len(panels) // ACROSS) * panels[0].height), "white")
        for i, one in enumerate(panels):
            sheet.paste(one, (i % ACROSS * one.width, i // ACROSS * one.height))
        with replacing(out) as partial:
            sheet.save(partial, optimize=True)
    if table := args.table or (None if args.only else ROOT / "benchmarks/results/mixture.json"):
        about = {"date": str(datetime.date.today()), "torch": torch.__version__, "cpu": platform.machine()}
        write_text(table, json.dumps({**about, "threads": 1, "seed": args.seed, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
