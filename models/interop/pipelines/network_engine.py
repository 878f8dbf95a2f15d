"""An engine in a network of diffusers that stays as it is: hooks on the modules that it computes faster."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gen.config.errors import UserError
from gen.config.spec import name_of
from gen.models.engines.fused import Fused
from gen.models.engines.packed import Packed
from gen.models.interop.pipelines.families import plain_module
from gen.models.interop.pipelines.fast_modules import (
    FUSED,
    ActivatedLayer,
    FastModule,
    PackedConvolution,
    PackedLayer,
    activation_of,
    unpackable_layer,
)
from gen.models.interop.pipelines.placed_hook import PlacedHook

__all__ = ["NetworkEngine"]

HOOK = "gen.engine"  # name of our hooks in diffusers' registry
LAYERS: Mapping[type, type[PackedLayer]] = {nn.Linear: PackedLayer, nn.Conv2d: PackedConvolution}


class NetworkEngine:
    """Modules of a network that are computed faster, until they are removed. The network itself is not changed.

    Args:
        network: a transformer or UNet of diffusers.
        engine: `packed` or `fused`, in the network's own dtype.
        active: asked at every call of a module; False runs the module itself.

    Attributes:
        fast: the modules, each with its faster way.
        left: modules that an engine knows and leaves as they are: reason -> number.

    Raises:
        UserError: for other engines, and where no module can be computed faster.
    """

    def __init__(self, network: nn.Module, engine: Any, active: Callable[[], bool] = lambda: True):
        self.network, self.active = plain_module(network), active
        self.name, self.kind = name_of(type(engine)), type(self.network).__name__
        if not isinstance(engine, (Packed, Fused)):
            raise UserError(f"engine = {self.name} prepares a copy of a network, and a pipeline's is used as it is; "
                            "allowed: packed, fused, and compiled on a live one; or torchao's quantize_")  # fmt: skip
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)
        if engine.dtype not in ("auto", str(dtype).removeprefix("torch.")):
            raise UserError(f"engine = {self.name}, dtype = {engine.dtype}: a pipeline's network stays in its own, "
                            f"{dtype}; load the pipeline in another, or leave dtype out")  # fmt: skip
        self.fast: dict[nn.Module, FastModule] = {}
        self.left: Counter[str] = Counter()
        self.placed: list[PlacedHook] = []
        self._refuse_another()
        if isinstance(engine, Packed):
            self._pack()
            self._check("linear layers and convolutions that oneDNN can hold")
        self._fuse()
        self._check(", ".join(FUSED))

    def __enter__(self) -> NetworkEngine:
        self.attach()
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    @property
    def about(self) -> str:
        """What is replaced and what is left, in words."""
        used = [type(module).__name__ for module, fast in self.fast.items() if fast.used]
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(used).items()))
        left = "".join(f", {n} left ({reason})" for reason, n in self.left.items())
        many = f"{len(used)} of {len(self.fast)} modules replaced ({kinds})" if used else f"{len(self.fast)} modules"
        return f"{self.name}: {many}{left}"

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the network."""
        return bool(self.placed)

    def attach(self) -> None:
        """Put the hooks on, and take over weights that have changed; UserError beside another engine's."""
        if self.attached:
            return
        self._refuse_another()
        self.refresh()
        hook = _hook_class()
        for module, fast in self.fast.items():
            self.placed.append(PlacedHook(module, hook(self.active, fast), HOOK))
        self._forget_registries()

    def remove(self) -> None:
        """Take all hooks off; a second call does nothing."""
        placed, self.placed = self.placed, []
        for hook in reversed(placed):
            hook.remove()
        if placed:
            self._forget_registries()

    def refresh(self) -> None:
        """Take over weights that have changed, such as those that an adapter was merged into."""
        for fast in self.fast.values():
            fast.refresh()

    def _refuse_another(self) -> None:
        """Refuse a network that has hooks of an engine."""
        if any(HOOK in getattr(getattr(m, "_diffusers_hook", None), "hooks", {}) for m in self.network.modules()):
            raise UserError(f"{self.kind} is accelerated already: remove() that first")

    def _check(self, looked: str) -> None:
        """Refuse an engine that found nothing of what it looked for."""
        if not self.fast:
            reasons = "".join(f"; {n} left: {reason}" for reason, n in self.left.items())
            raise UserError(f"engine = {self.name}: this {self.kind} has none of what it looks for, {looked}{reasons}")

    def _pack(self) -> None:
        layers: dict[nn.Module, PackedLayer] = {}
        for name, module in self.network.named_modules():
            if type(module) not in LAYERS or ".lora_" in name:
                continue
            reason = unpackable_layer(module) or _wrapped(module)
            if reason is None:
                self.fast[module] = layers[module] = LAYERS[type(module)](module)
            else:
                self.left[reason] += 1
        for module in self.network.modules():
            activation, layer = activation_of(module), layers.get(getattr(module, "proj", None))  # type: ignore[arg-type]
            if activation is not None and layer is not None and _wrapped(module) is None:
                self.fast[module] = ActivatedLayer(module, layer, activation)

    def _fuse(self) -> None:
        for module in self.network.modules():
            make = FUSED.get(type(module).__name__) if type(module).__module__.startswith("diffusers.") else None
            fast = None if make is None or _wrapped(module) is not None else make(module)
            if fast is not None:
                self.fast[module] = fast

    def _forget_registries(self) -> None:
        """Let diffusers look for its registries again, whose list it keeps."""
        registry = getattr(self.network, "_diffusers_hook", None)
        if registry is not None:
            registry.invalidate_child_registries_cache()


def _wrapped(module: nn.Module) -> str | None:
    """Return why a module's own forward is not all that a call of it runs, or None."""
    return "hooks of others are on them" if "forward" in vars(module) else None


@functools.cache
def _hook_class() -> Any:
    """The class of our hooks: diffusers is imported when the first one is put on."""
    from diffusers.hooks import hooks as theirs

    library: Any = theirs  # which has few types

    class EngineHook(library.ModelHook):  # type: ignore[misc]
        """Computes a module by its faster way."""

        def __init__(self, active: Callable[[], bool], fast: FastModule):
            super().__init__()
            self.active, self.fast = active, fast

        def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.active() and self.fast.fits(*args, **kwargs):
                self.fast.used = True
                return self.fast(*args, **kwargs)
            return self.fn_ref.original_forward(*args, **kwargs)

    return EngineHook
