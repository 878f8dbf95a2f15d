"""Draw the figures of docs/mathematics.md by the code that they are about, and print its table of orders.

paths.svg     the share of noise and the half log-SNR along each path
weights.svg   the weight that a loss on each prediction puts on the error of x0
orders.svg    the error of each solver against its evaluations, on an exact mixture, and its measured order
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from gen.config.spec import build
from gen.config.writing import write_text
from gen.diffusion.denoiser import CountingDenoiser
from gen.diffusion.noise import Noise
from gen.diffusion.parameterisation import X0, EDMPrecond, Eps, V, Velocity
from gen.diffusion.path import DDPM, EDM, VP, Flow, NoisePath, Trig
from gen.diffusion.sampling import integrate
from gen.diffusion.weighting import MinSNR, Sigmoid, UniformWeighting, errors
from gen.diffusion.worlds import Mixture

ROOT = Path(__file__).resolve().parents[1]
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f", "#bcbd22", "#e377c2")
PATHS = {"flow": Flow(), "trig": Trig(), "vp": VP(), "ddpm, cosine": DDPM("cosine"), "edm": EDM()}
STEPS = (8, 16, 32, 64, 128, 256)
SOLVERS = {  # by the names of the legend
    "euler": "euler",
    "heun": "heun",
    "midpoint": "midpoint",
    "rk4": "rk4",
    "dpmpp 2M": "dpmpp",
    "dpmpp 3M": {"name": "dpmpp", "solver_order": 3},
    "unipc": "unipc",
    "deis 3": {"name": "deis", "solver_order": 3},
    "exp_ab 3": "exp_ab",
    "flow_adams 4": "flow_adams",
}
WIDTH, HEIGHT, LEFT, TOP, ROW = 420, 300, 62, 34, 17  # of a panel, in pixels; its margins; a line of its legend


@dataclass(frozen=True)
class Panel:
    """A plot of curves.

    Attributes:
        title, across, up: texts above, below and beside.
        curves: points (x, y) by name, in the order of x.
        log: axes that are logarithmic, of "x" and "y".
    """

    title: str
    across: str
    up: str
    curves: dict[str, Sequence[tuple[float, float]]]
    log: str = ""

    def scale(self, axis: int) -> tuple[float, float]:
        """Return the lowest and highest number of an axis, as it is drawn."""
        values = [self.drawn(point[axis], axis) for curve in self.curves.values() for point in curve]
        return min(values), max(values)

    def drawn(self, value: float, axis: int) -> float:
        return math.log10(value) if "xy"[axis] in self.log else value

    def svg(self, left: int) -> str:
        """Return the panel as SVG, from `left` pixels on."""
        (x0, x1), (y0, y1) = self.scale(0), self.scale(1)
        box = (left + LEFT, TOP, left + WIDTH - 14, HEIGHT - 46)

        def at(x: float, y: float) -> str:
            u = box[0] + (x - x0) / (x1 - x0) * (box[2] - box[0])
            v = box[3] - (min(max(y, y0), y1) - y0) / (y1 - y0) * (box[3] - box[1])
            return f"{u:.1f},{v:.1f}"

        middle = (box[0] + box[2]) / 2
        parts = [
            text(middle, 20, self.title, "middle", bold=True),
            text(middle, HEIGHT - 10, self.across, "middle"),
            f'<g transform="rotate(-90 {left + 14} 150)">{text(left + 14, 150, self.up, "middle")}</g>',
            f'<rect x="{box[0]}" y="{box[1]}" width="{box[2] - box[0]}" height="{box[3] - box[1]}" fill="none" '
            'stroke="#888"/>',
        ]
        for axis, (low, high) in enumerate(((x0, x1), (y0, y1))):
            for tick in ticks(low, high, whole="xy"[axis] in self.log):
                u, v = at(tick, y0).split(",") if axis == 0 else at(x0, tick).split(",")
                label = power(tick) if "xy"[axis] in self.log else f"{tick:g}"
                parts += [
                    text(float(u), box[3] + 16, label, "middle")
                    if axis == 0
                    else text(box[0] - 5, float(v) + 4, label, "end")
                ]
                end = (u, f"{box[3] - 4}") if axis == 0 else (f"{box[0] + 4}", v)
                parts += [f'<path d="M{u} {v}L{end[0]} {end[1]}" stroke="#888"/>']
        for colour, curve in zip(COLOURS, self.curves.values(), strict=False):
            points = " ".join(at(self.drawn(x, 0), self.drawn(y, 1)) for x, y in curve)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        return "\n".join(parts)


def ticks(low: float, high: float, whole: bool) -> list[float]:
    """Return about five round numbers between two; whole ones for powers of ten."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    step = max(1.0, step) if whole else step
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def power(exponent: float) -> str:
    if exponent in (0, 1, 2):
        return f"{10**exponent:g}"
    return f'10<tspan dy="-5" font-size="9">{exponent:g}</tspan>'


def text(x: float, y: float, content: str, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{content}</text>'


def figure(panels: Sequence[Panel], title: str) -> str:
    """Return panels side by side, with one legend for the curves of the first.

    Args:
        panels: of the same curves.
        title: read out where the picture is not seen.
    """
    names = list(panels[0].curves)
    width, column = WIDTH * len(panels), 170
    across = max(1, (width - LEFT) // column)
    height = HEIGHT + 8 + ROW * math.ceil(len(names) / across)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" role="img"><title>{title}</title>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        *(panel.svg(i * WIDTH) for i, panel in enumerate(panels)),
    ]
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        x, y = LEFT + i % across * column, HEIGHT + 12 + i // across * ROW
        parts += [f'<path d="M{x} {y - 4}h22" stroke="{colour}" stroke-width="3"/>', text(x + 28, y, name)]
    return "\n".join([*parts, "</svg>\n"])


def paths() -> str:
    """Return the picture of all paths, over the share of t1 that has passed."""
    u = torch.linspace(0.002, 0.998, 250, dtype=torch.float64)
    share, snr = {}, {}
    for name, path in PATHS.items():
        t = u * path.t1
        alpha, sigma = path.alpha(t), path.sigma(t)
        share[name] = points(u, sigma / (alpha**2 + sigma**2).sqrt())
        snr[name] = points(u, path.lam(t))
    return figure(
        [
            Panel("share of noise", "t / t1", "sigma / sqrt(alpha² + sigma²)", share),
            Panel("half log-SNR", "t / t1", "lam = log(alpha / sigma)", snr),
        ],
        "Noise paths: the share of noise and the half log-SNR, from data to noise",
    )


def weights() -> str:
    """Return the picture of the weight on the squared error of x0, by half log-SNR on the VP path."""
    path, lam = VP(), torch.linspace(-4.5, 4.5, 200, dtype=torch.float64)
    t = path.t_from_lambda(lam)
    plain = {"x0": X0(), "eps": Eps(), "v": V(), "velocity": Velocity(), "EDM's F": EDMPrecond()}
    losses = {name: (UniformWeighting(), parameterisation) for name, parameterisation in plain.items()}
    losses |= {
        "eps, min_snr": (MinSNR(), Eps()),
        "sigmoid": (Sigmoid(), Eps()),
    }
    curves = {}
    for name, (weighting, parameterisation) in losses.items():
        x0_error, _ = errors(path, parameterisation, t)
        curves[name] = points(lam, weighting.weight(path, parameterisation, t) / x0_error**2)
    panel = Panel("weight on |error of x0|²", "lam = log(alpha / sigma)", "", curves, log="y")
    return figure([panel], "The weight that losses put on the error of x0, by noise level")


def world(path: NoisePath) -> Mixture:
    """Return three Gaussians in the plane."""
    means = torch.tensor([[2, 0], [-1, 1.5], [-1, -1.5]], dtype=torch.float64)
    stds, weights = (torch.tensor(row, dtype=torch.float64) for row in ((0.3, 0.2, 0.4), (0.5, 0.2, 0.3)))
    return Mixture(path, means, stds, weights, torch.tensor([0, 1, 1]))


def orders() -> dict[str, tuple[float, list[tuple[float, float]]]]:
    """Measure the order and the errors by evaluations of each solver, on the flow of a mixture from t = .8 to .1.

    An error is the median distance to rk4's result in 1024 steps, over 33 points: a few lie where the flow parts, and
    end in another mode under a coarse rule. The order is the slope over the three finest grids.
    """
    f = world(Flow())
    x = f.path.start(Noise(tuple(range(33))).normal("start", (2,)).double(), torch.tensor(1.0))
    start, end = 0.8, 0.1
    rk4 = build("samplers.solvers", "rk4")
    x = integrate(f, x, torch.linspace(1.0, start, 257, dtype=torch.float64), rk4)
    truth = integrate(f, x, torch.linspace(start, end, 1025, dtype=torch.float64), rk4)
    measured = {}
    for name, spec in SOLVERS.items():
        solver, curve = build("samplers.solvers", spec), []
        for steps in STEPS:
            count = CountingDenoiser(f)
            y = integrate(count, x, torch.linspace(start, end, steps + 1, dtype=torch.float64), solver)
            curve.append((float(count.calls), float((y - truth).norm(dim=1).median())))
        slope = math.log(curve[-3][1] / curve[-1][1]) / math.log(STEPS[-1] / STEPS[-3])
        measured[name] = (slope, curve)
    return measured


def points(x: Tensor, y: Tensor) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True) if math.isfinite(b)]


def solvers(measured: dict[str, tuple[float, list[tuple[float, float]]]]) -> str:
    """Return the picture of measured errors."""
    curves = {f"{name}: {slope:.2f}": curve for name, (slope, curve) in measured.items()}
    panel = Panel("error against evaluations", "evaluations of the network", "median error", curves, log="xy")
    return figure([panel], "The error of each solver against its evaluations, and its measured order")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/figures", help="folder (default: docs/figures)")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    measured = orders()
    for name, drawing in (("paths", paths()), ("weights", weights()), ("orders", solvers(measured))):
        write_text(out / f"{name}.svg", drawing)
    for name, (slope, curve) in measured.items():
        print(f"| `{name}` | {slope:.2f} | " + " | ".join(f"{error:.1e}" for _, error in curve[1:4]) + " |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
