"""A network prepared for evaluation only: a copy in one dtype, norms and gates fused, modulations in one product."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import members, unwrap
from gen.diffusion.tap import Tap
from gen.kernels.linear import unpackable
from gen.models.layers.family import labels
from gen.models.layers.modulations import Modulations
from gen.models.layers.patch import MODULATION, PatchNet
from gen.models.layers.wrapper import Wrapper
from gen.models.text import TextNet
from gen.training.state import enable

__all__ = ["ClassModulations", "Dtype", "Prepared", "choose_dtype", "dtype_name"]

Dtype = Literal["auto", "float32", "bfloat16"]
PROCESSORS = {"AMX": "_is_amx_tile_supported", "AVX512-BF16": "_is_avx512_bf16_supported"}


class Prepared(Wrapper):
    """A copy of a network, called like it, with its sites: takes and returns x's dtype, computes in its own.

    If all that the network's blocks take of the condition are adaLN modulations (gen.models.layers.patch.PatchNet),
    these come from one product, and `modulation_table` gives those of a whole sampling loop in advance.

    Attributes:
        about: what was done, in words.
        compiled: the compiled network, called where there is no tap; None for the network itself.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype, about: str):
        if isinstance(net, TextNet):
            raise UserError(
                f"the engine {about.split()[0]!r} is for networks of images; for text there is 'packed', on a CPU"
            )
        inner = copy.deepcopy(unwrap(net)).eval().requires_grad_(False)
        super().__init__(inner.spec)
        self.inner = inner.to(dtype)
        enable(inner, "fused")
        self.modulations = Modulations(inner) if isinstance(inner, PatchNet) and inner.adaln_only else None
        self.dtype, self.about = dtype, f"{about}, {dtype_name(dtype)}"
        self.compiled: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if self.modulations is not None and MODULATION not in cond:
            cond = {**cond, MODULATION: self.modulations(self.inner.conditioning(t, cond, tap))}
        given = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in cond.items()}
        if self.modulations is not None:
            given[MODULATION] = given[MODULATION].expand(len(x), -1).contiguous()  # a table without classes has one row
        if tap is None:
            whole = self.inner if self.compiled is None else self.compiled  # what is compiled has no truth value
            return whole(x.to(self.dtype), t, given, s=s).to(x.dtype)
        return self.inner(x.to(self.dtype), t, given, s=s, tap=tap).to(x.dtype)

    @property
    def fixed_batch(self) -> bool:
        """Whether each size of the batch is compiled anew."""
        return self.compiled is not None

    def modulation_table(self, t: Tensor, cond: Cond, max_bytes: int = 2**28) -> ClassModulations | None:
        """Return the modulations of every time t [T] with every class of cond["y"] [B] and "no class".

        None where the family has none, where cond holds more than "y", or for more than max_bytes.
        """
        if self.modulations is None or not set(cond) <= {"y"}:
            return None
        classes = self.inner.spec.classes
        y = torch.zeros(1, dtype=torch.int64, device=t.device)
        if classes:
            given = labels(self.inner.spec, cond)
            y = torch.unique(torch.cat([given, given.new_full((1,), classes)]))
        width = self.modulations.product.bias.numel()
        if len(t) * len(y) * width * self.modulations.product.bias.element_size() > max_bytes:
            return None
        each = {"y": y.repeat(len(t))} if classes else {}
        rows = self.modulations(self.inner.conditioning(t.repeat_interleave(len(y)), each))  # [T Y, total]
        if not classes:
            return ClassModulations(rows.unflatten(0, (len(t), 1)), None)
        row = torch.zeros(classes + 1, dtype=torch.int64, device=y.device)
        row[y] = torch.arange(len(y), device=y.device)
        return ClassModulations(rows.unflatten(0, (len(t), len(y))), row)


class ClassModulations:
    """Modulations of a loop's times and classes; a gen.diffusion.net.ModulationTable.

    Attributes:
        rows: modulations [T, Y, total].
        row: index into Y of each label, int64 [classes + 1]; None without classes.
    """

    def __init__(self, rows: Tensor, row: Tensor | None):
        self.rows, self.row = rows, row

    def __call__(self, i: int, cond: Cond) -> Cond:
        """Return cond with the modulations at time i, one row per sample; without classes one row for all."""
        if self.row is None:
            return {**cond, MODULATION: self.rows[i]}
        return {**cond, MODULATION: self.rows[i][self.row[cond["y"]]]}


def choose_dtype(dtype: Dtype, device: torch.device | str, net: Any) -> tuple[torch.dtype, str]:
    """Return the dtype to compute in, and the reason in words.

    Args:
        dtype: "auto" is bfloat16 where the processor multiplies it fast and the network computes in it, else float32.
        device: where the network will run.
        net: the network; UserError for a dtype that it does not name in `compute_dtypes` (gen.diffusion.net.Net).
    """
    known = (torch.float32, *members(net).compute_dtypes)
    fast, reason = _fast_dtype(device) if dtype == "auto" else (getattr(torch, dtype), "as asked")
    if fast in known:
        return fast, reason
    family = type(unwrap(net)).__name__
    if dtype == "auto":
        return torch.float32, f"{family} names no other dtype in compute_dtypes"
    allowed = ", ".join(dtype_name(kind) for kind in known)
    raise UserError(f"dtype = {dtype}; {family} computes in {allowed}: to allow others, name them in compute_dtypes")


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name, such as "float32".

    Args:
        dtype: of torch.
    """
    return str(dtype).removeprefix("torch.")


def _fast_dtype(device: torch.device | str) -> tuple[torch.dtype, str]:
    """Return bfloat16 where the processor multiplies it fast, else float32; and the reason in words."""
    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "the GPU has it") if native else (torch.float32, "the GPU has no bfloat16")
    fast = [name for name, probe in PROCESSORS.items() if getattr(torch.cpu, probe)()]
    if not fast:
        return torch.float32, "the processor has no fast bfloat16"
    reason = unpackable(torch.empty(1, 1, dtype=torch.bfloat16))  # PyTorch too multiplies it by oneDNN
    return (torch.bfloat16, fast[0]) if reason is None else (torch.float32, reason)
