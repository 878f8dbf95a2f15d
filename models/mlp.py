"""MLP: the smallest denoiser, for points of exact worlds and for tests; it sees no picture, only numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.functional import silu

from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.embed import ClassEmbedding, TimeEmbedding
from gen.models.layers.recompute import recomputed

__all__ = ["MLP", "MLPNet"]


@dataclass(frozen=True)
class MLP(family.Family):
    """Residual layers on all numbers of x at once; a point [2] is a picture of 2 channels and size 1.

    Presets: "digits" and "points".

    Attributes:
        size: height and width of x, pixels.
        channels: of x.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        width: of the residual layers.
        depth: number of residual layers.
        time_scale: factor on t; 1000 suits t in [0, 1].
        time_convention: what t = 1 means to the network; "data" passes it 1 - t.
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = {
        "digits": {"size": 8, "channels": 1, "classes": 10, "width": 170, "depth": 3},
        "points": {"size": 1, "channels": 2, "classes": 0, "width": 128, "depth": 3},
    }

    size: int = 1
    channels: int = 2
    classes: int = 0
    width: int = 128
    depth: int = 3
    time_scale: float = 1000.0
    time_convention: Literal["noise", "data"] = "noise"

    def __post_init__(self) -> None:
        family.at_least(self, size=1, channels=1, classes=0, width=1, depth=1)

    def build(self) -> MLPNet:
        """Return a fresh network: its output is zero and every layer the identity."""
        return MLPNet(self)


class MLPNet(family.FamilyNet):
    """MLP's network.

    Sites: what is added, "blocks.3"; whole values "time", "hidden.3" [B, 1, width], "trunk", "final".
    """

    gradient_checkpointing = False

    def __init__(self, spec: MLP):
        super().__init__()
        self.spec = spec
        numbers, width = spec.channels * spec.size**2, spec.width
        self.x_embedder = nn.Linear(numbers, width)
        self.t_embedder = TimeEmbedding(width, 64, scale=spec.time_scale, convention=spec.time_convention)
        self.y_embedder = ClassEmbedding(spec.classes, width) if spec.classes else None
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, width) for name in ("c", "fc1", "fc2")}) for _ in range(spec.depth)
        )
        self.final_layer = nn.Linear(width, numbers)
        self.apply(init.xavier)
        for name, weight in self.named_parameters():
            if name.endswith("fc2.weight") or name == "final_layer.weight":
                nn.init.zeros_(weight)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        family.check(self.spec, x, t, cond, s)
        c = call_site(tap, "time", self.t_embedder, t)  # [B, width]
        if self.y_embedder is not None:
            c = c + self.y_embedder(cond["y"])  # [B, width]
        h = self.x_embedder(x.flatten(1))[:, None]  # [B, 1, width]
        h = call_site(tap, "trunk", lambda h: self.trunk(h, c[:, None], tap), h)  # [B, 1, width]
        return call_site(tap, "final", lambda h: self.final_layer(silu(h)).reshape(x.shape), h)

    def trunk(self, h: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """Run all layers on h [B, 1, width] under the condition c [B, 1, width]."""
        for i, block in enumerate(self.blocks):
            h = self._run_layer(block, h, c, i, tap)
        return h

    def _run_layer(self, block: Any, h: Tensor, c: Tensor, i: int, tap: Tap | None) -> Tensor:
        """Return h [B, 1, width] after layer i."""

        def residual(h: Tensor) -> Tensor:
            return block["fc2"](silu(block["fc1"](silu(h)) + block["c"](silu(c))))

        def after(h: Tensor) -> Tensor:
            return h + call_site(tap, f"blocks.{i}", residual, h)

        return call_site(tap, f"hidden.{i}", recomputed(self, after), h)
