"""A network whose features are known, and a small DiT in which everything matters."""

from collections import Counter

import torch
from torch import nn

from gen.diffusion.path import Flow
from gen.diffusion.tap import BoundTap, Context, with_branch
from gen.models.dit import DiT

DEPTH, TOKENS, WIDTH = 2, 3, 5


class Toy(nn.Module):
    """A DiT's sites; what a bare module gives is a polynomial in t, and differs by row, label, block and channel.

    net(x [B, 1], t [B], {"y": [B]}) -> [B]. `calls` counts what really ran, by site.
    """

    def __init__(self, degree=1, depth=DEPTH):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.depth = depth
        self.coefficients = torch.randn(2, 2 * depth, degree + 1, TOKENS, WIDTH, generator=g, dtype=torch.float64)
        self.calls = Counter()

    def visit(self, tap, site, compute, h):
        def counted(h):
            self.calls[site] += 1
            return compute(h)

        return counted(h) if tap is None else tap(site, counted, h)

    def forward(self, x, t, cond, *, s=None, tap=None):
        powers = (t[:, None] * x) ** torch.arange(self.coefficients.shape[2])  # [B, degree + 1]: rows change unlike
        features = torch.einsum("bk,bmktw->mbtw", powers, self.coefficients[cond["y"]])

        def module(site, k, h):
            def gated(h):
                return self.visit(tap, f"{site}.raw", lambda h: h - 3, features[k] + 3)

            return self.visit(tap, site, gated, h)

        def block(i, h):
            first = module(f"blocks.{i}.attn", 2 * i, h)
            return first + module(f"blocks.{i}.mlp", 2 * i + 1, h + first)

        def after(i, h):
            return self.visit(
                tap, f"hidden.{i}", lambda h: h + self.visit(tap, f"blocks.{i}", lambda h: block(i, h), h), h
            )

        def trunk(h):
            for i in range(self.depth):
                h = after(i, h)
            return h

        h = self.visit(tap, "trunk", trunk, x[:, :, None].expand(-1, TOKENS, WIDTH))
        return self.visit(tap, "final", lambda h: h.sum((1, 2)), h)


def contexts(steps, times=None):
    """The contexts of a loop of one-stage steps, on an even grid or a given one."""
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist() if times is None else times
    lams = Flow().lam(torch.tensor(times, dtype=torch.float64)).tolist()
    return [Context(i, steps, 0, times[i], lam=lams[i]) for i in range(steps)]


def walk(net, run, places, x, branches=("main", "uncond")):
    """The network at every context, in each branch with that branch's label: {branch: [steps, B]}."""
    out = {name: [] for name in branches}
    for context in places:
        for name in branches:
            y = torch.full((len(x),), int(name == "uncond"))
            tap = None if run is None else with_branch(BoundTap(run, context), name)
            out[name].append(net(x, torch.full((len(x),), context.t, dtype=torch.float64), {"y": y}, tap=tap))
    return {name: torch.stack(rows) for name, rows in out.items()}


def random_dit(dtype=torch.float32, **changes):
    """A small DiT that does not start at zero."""
    fields = {"size": 8, "patch": 4, "channels": 1, "classes": 3, "width": 16, "depth": 3, "heads": 2}
    torch.manual_seed(0)
    net = DiT(**{**fields, **changes}).build()
    for name, weight in net.named_parameters():
        if name != "pos_embed":
            nn.init.normal_(weight, std=0.1)
    return net.to(dtype).eval().requires_grad_(False)
