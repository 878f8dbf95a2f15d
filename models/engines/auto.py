"""The engine that suits the device, the network and the batch, by measurement."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.machine import compiler_obstacle
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import ModulationTable, members, unwrap
from gen.diffusion.tap import Tap
from gen.kernels.linear import unpackable
from gen.models.engines.compiled import Compiled
from gen.models.engines.fused import Fused
from gen.models.engines.lib.prepared import Dtype, choose_dtype
from gen.models.engines.lib.remembered import RememberedChoice
from gen.models.engines.packed import Packed
from gen.models.layers.patch import MODULATION
from gen.models.layers.wrapper import Wrapper
from gen.models.text import TextNet

__all__ = ["Auto", "Measured"]

GAIN = 0.85  # of the plain time, at most: less is not worth the rounding, and sampling has costs beside the calls


@dataclass(frozen=True)
class Auto:
    """The fastest for each batch size, as measured at its first evaluation: on a CPU plain, `packed` or `fused`.

    The choice is remembered in the user's cache folder by network, batch, machine and versions, and not measured again.
    On a GPU it is `compiled`, and for text on a CPU `packed`, without a measurement. The result says which, and in what
    dtype. It holds a copy of the weights for each engine that is tried.

    Attributes:
        dtype: "auto" is bfloat16 where the processor multiplies it fast and the network computes in it, else float32;
            float32 is then tried too.
        seconds: how long each engine is timed at a new batch size, in turns; three evaluations at least.
        compile: on a CPU try `compiled` too, which takes a minute for each batch size: only long runs repay it.
    """

    dtype: Dtype = "auto"
    seconds: float = 0.1
    compile: bool = False

    def __post_init__(self) -> None:
        check_fields(self, seconds="[0, inf)")

    def prepare(self, net: nn.Module, device: torch.device | str = "cpu") -> nn.Module:
        """Return a copy of the network, ready on the device."""
        if torch.device(device).type == "cuda":
            return Compiled(self.dtype).prepare(net, device)
        dtype, _ = choose_dtype(self.dtype, device, net)
        packable = unpackable(torch.empty(1, 1, dtype=dtype, device=device)) is None
        engine: Packed | Fused | Compiled = (Packed if packable else Fused)(self.dtype)
        if isinstance(net, TextNet):
            return engine.prepare(net, device)
        engines = [engine, *([replace(engine, dtype="float32")] if dtype != torch.float32 else [])]
        if self.compile:
            if (obstacle := compiler_obstacle()) is not None:
                raise UserError(f"auto: compile = true: {obstacle}")
            engines.append(Compiled(self.dtype))
        tried = {"plain": copy.deepcopy(unwrap(net)).to(device).eval().requires_grad_(False)}
        for engine in engines:
            prepared = engine.prepare(net, device)
            tried[members(prepared).about] = prepared
        return Measured(tried, self.seconds)


class Measured(Wrapper):
    """A network under several engines, called like it; each batch size, up to a power of two, has the fastest of them.

    Attributes:
        tried: the network as it is, "plain", and as engines prepared it, by what they did in words.
        seconds: how long each is timed.
        chosen: the fastest by batch size (the next power of two) and shape and dtype of x.
    """

    def __init__(self, tried: Mapping[str, nn.Module], seconds: float):
        plain = tried["plain"]
        super().__init__(getattr(plain, "spec", None))
        self.inner, self.seconds = plain, seconds
        self.tried = tried
        self.engines = nn.ModuleList(tried.values())  # they move, and are counted, with the rest
        self.chosen: dict[tuple[int, tuple[int, ...], torch.dtype], str] = {}

    @property
    def fixed_batch(self) -> bool:
        """Whether an engine that was chosen compiles each size of the batch anew."""
        return any(members(self.tried[name]).fixed_batch for name in self.chosen.values())

    @property
    def about(self) -> str:
        """What was chosen, by batch size."""
        if not self.chosen:
            return f"auto, to be measured: {' or '.join(self.tried)}"
        sizes: dict[str, list[int]] = {}
        for (size, *_), name in sorted(self.chosen.items(), key=lambda item: item[0][0]):
            sizes.setdefault(name, []).append(size)
        if len(sizes) == 1:
            return next(iter(sizes))
        return "; ".join(f"batch {', '.join(map(str, of))}: {name}" for name, of in sizes.items())

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if MODULATION in cond:  # of a table, which an engine has computed
            name = self.chosen.get(_key(x), "plain")
            name = name if name != "plain" else list(self.tried)[1]
        else:
            name = self.chosen.get(_key(x)) or self._measured(x, t, cond, s, tap)
        out: Tensor = self.tried[name](x, t, cond, s=s, tap=tap)
        return out

    def modulation_table(self, t: Tensor, cond: Cond) -> ModulationTable | None:
        """Return the table of the engine that is fastest for cond's batch; None where that is the plain network."""
        shape = members(self.inner).state_shape
        if not cond or shape is None:
            return None
        rows = len(next(iter(cond.values())))
        x = torch.zeros(rows, *shape, device=t.device)
        times = t[:1].expand(rows, *t.shape[1:])
        net = self.tried[self.chosen.get(_key(x)) or self._measured(x, times, cond, None, None)]
        make = members(net).modulation_table
        return None if make is None else make(t, cond)

    @torch.no_grad()
    def _measured(self, x: Tensor, t: Tensor, cond: Cond, s: Tensor | None, tap: Tap | None) -> str:
        """Return the name of the fastest for such a batch; some rows of one that a cache computes have the batch's."""
        key = _key(x)
        larger = [known for known in self.chosen if known[0] > key[0] and known[1:] == key[1:]]
        if tap is not None and larger:
            return self.chosen[min(larger, key=lambda known: known[0])]
        remembered = RememberedChoice(self.inner, x, key[0], self.tried)
        if (known := remembered.read()) is not None:
            self.chosen[key] = known
            return known
        took = in_turns({name: self._call(net, x, t, cond, s) for name, net in self.tried.items()}, self.seconds)
        best = min(took, key=lambda name: took[name])
        self.chosen[key] = best if took[best] < GAIN * took["plain"] else "plain"
        remembered.write(self.chosen[key], took)
        return self.chosen[key]

    def _call(self, net: nn.Module, x: Tensor, t: Tensor, cond: Cond, s: Tensor | None) -> Callable[[], Tensor]:
        """Return an evaluation as a loop has it: with the modulations of its times computed before."""
        make = members(net).modulation_table
        table = None if make is None or s is not None else make(t[:1], cond)
        if table is None:
            return partial(net, x, t, cond, s=s)
        rows: ModulationTable = table
        return lambda: net(x, t, rows(0, cond), s=s)


def in_turns(calls: Mapping[str, Callable[[], Tensor]], seconds: float) -> dict[str, float]:
    """Return the least seconds of each call after one to warm up, all of them taking turns.

    The least and not the median: what else the machine does only adds to it.

    Args:
        calls: by name.
        seconds: how long each is timed; three calls at least.
    """
    took: dict[str, list[float]] = {name: [] for name in calls}
    while len(times := next(iter(took.values()))) < 4 or sum(times) < seconds:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            took[name].append(time.perf_counter() - began)
    return {name: min(times[1:]) for name, times in took.items()}


def _key(x: Tensor) -> tuple[int, tuple[int, ...], torch.dtype]:
    return 1 << (len(x) - 1).bit_length(), tuple(x.shape[1:]), x.dtype
