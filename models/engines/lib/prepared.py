"""A network made ready to be evaluated only: a copy in one dtype, its norms and gates fused, modulations at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.tap import Tap
from gen.kernels.linear import unpackable
from gen.models.layers.family import MODULATION, labels
from gen.models.layers.modulations import Modulations
from gen.models.layers.wrapper import Wrapper
from gen.models.text import TextNet
from gen.training.state import enable_fused

__all__ = ["Dtype", "Prepared", "Table", "chosen"]

Dtype = Literal["auto", "float32", "bfloat16"]
PROCESSORS = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}


class Prepared(Wrapper):
    """Called like the network that it is a copy of, with its sites; takes and returns x's dtype, computes in its own.

    about: what was done, in words. Where the family has `conditioning`, all modulations come from one product, and
    `modulation_table` gives those of a whole sampling loop in advance.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype, about: str):
        super().__init__()
        if isinstance(net, TextNet):
            raise UserError(
                f"the engine {about.split()[0]!r} is for networks of images; for text there is 'packed', on a CPU"
            )
        made = copy.deepcopy(net).eval().requires_grad_(False)
        self.inner = made.to(dtype)
        enable_fused(made)
        self.modulations = Modulations(made) if hasattr(made, "conditioning") else None
        self.dtype, self.about = dtype, f"{about}, {_name(dtype)}"
        self.whole: Callable[..., Tensor] | None = None  # what is called in its place where no tap looks

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        if self.modulations is not None and MODULATION not in cond:
            cond = {**cond, MODULATION: self.modulations(self.inner.conditioning(t, cond, tap))}
        given = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in cond.items()}
        if self.modulations is not None:
            given[MODULATION] = given[MODULATION].expand(len(x), -1).contiguous()  # a table without classes has one row
        if tap is None:
            whole = self.inner if self.whole is None else self.whole  # what is compiled has no truth value
            return whole(x.to(self.dtype), t, given, s=s).to(x.dtype)
        out: Tensor = self.inner(x.to(self.dtype), t, given, s=s, tap=tap)
        return out.to(x.dtype)

    def modulation_table(self, t: Tensor, cond: Mapping[str, Tensor], most: int = 2**28) -> Table | None:
        """The modulations of every time t [T] with every class of cond["y"] [B] or "no class".

        None where the family has none, where cond holds more than "y", or for more than `most` bytes.
        """
        if self.modulations is None or not set(cond) <= {"y"}:
            return None
        classes = self.inner.spec.classes
        y = torch.zeros(1, dtype=torch.int64, device=t.device)
        if classes:
            given = labels(self.inner.spec, cond)
            y = torch.unique(torch.cat([given, given.new_full((1,), classes)]))
        width = self.modulations.product.bias.numel()
        if len(t) * len(y) * width * self.modulations.product.bias.element_size() > most:
            return None
        each = {"y": y.repeat(len(t))} if classes else {}
        rows = self.modulations(self.inner.conditioning(t.repeat_interleave(len(y)), each))  # [T Y, total]
        if not classes:
            return Table(rows.unflatten(0, (len(t), 1)), None)
        place = torch.zeros(classes + 1, dtype=torch.int64, device=y.device)
        place[y] = torch.arange(len(y), device=y.device)
        return Table(rows.unflatten(0, (len(t), len(y))), place)


class Table:
    """Modulations [T, Y, total] of a loop's times and classes; place [classes + 1]: a class's row, None without any."""

    def __init__(self, rows: Tensor, place: Tensor | None):
        self.rows, self.place = rows, place

    def __call__(self, i: int, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """cond with the modulations at time i, one row per sample; without classes it has one row for all."""
        if self.place is None:
            return {**cond, MODULATION: self.rows[i]}
        return {**cond, MODULATION: self.rows[i][self.place[cond["y"]]]}


def chosen(dtype: Dtype, device: torch.device | str) -> tuple[torch.dtype, str]:
    """The dtype that is meant, and why: "auto" is bfloat16 where the processor multiplies it fast, else float32."""
    if dtype != "auto":
        return getattr(torch, dtype), "as asked"
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "the GPU has it") if fast else (torch.float32, "the GPU has no bfloat16")
    fast = [name for name, there in PROCESSORS.items() if getattr(torch.cpu, there)()]
    if not fast:
        return torch.float32, "the processor has no fast bfloat16"
    reason = unpackable(torch.empty(1, 1, dtype=torch.bfloat16))  # PyTorch too multiplies it by oneDNN
    return (torch.bfloat16, fast[0]) if reason is None else (torch.float32, reason)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
