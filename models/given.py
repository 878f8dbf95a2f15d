"""A network of one's own, given as an object: any torch.nn.Module with the forward of gen.diffusion.net.Net."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import digest, find, name_of
from gen.config.trust import names_from
from gen.diffusion.denoiser import Cond

__all__ = ["GivenNet"]


@dataclass(frozen=True)
class GivenNet:
    """A module given as an object, Run(model=my_module), and what a checkpoint says of it: not how to build it.

    forward(x, t, cond, *, s=None, tap=None) returns the shape of x; see gen.diffusion.net.Net. `null(cond)` is needed
    to drop conditions and to guide. Training starts from the module's weights and leaves the module as it is. To load a
    checkpoint, give the module again, gen.load(folder, model=my_module), or its class where that takes no arguments:
    model="my_pkg.mod:MyNet", or allow=("my_pkg",), which follows the name that was stored.

    Attributes:
        module: the network; not stored.
        kind: its class.
        shape: of one x.
        classes: number of labels.
        layout: digest of its tensors' names, types and shapes, by which another network is noticed.
    """

    module: Any = field(compare=False, repr=False, metadata={"saved": False})
    kind: str = ""
    shape: tuple[int, ...] = ()
    classes: int = 0
    layout: str = ""

    def __post_init__(self) -> None:
        check_fields(self, classes="[0, inf)")
        if self.module is None:
            if not self.kind:
                raise UserError("GivenNet: there is no network; it is given in Python, Run(model=my_module)")
            return
        if not isinstance(self.module, nn.Module):
            raise UserError(f"model: got a {type(self.module).__name__}, expected a torch.nn.Module")
        kind, spec = name_of(type(self.module)), getattr(self.module, "spec", None)
        if hasattr(spec, "build") and not isinstance(spec, GivenNet):
            raise UserError(
                f"model: {type(self.module).__name__} can be built from its spec: give model.spec, and weights to "
                "start from by init"
            )
        try:
            inspect.signature(self.module.forward).bind("x", "t", "cond", s=None, tap=None)
        except TypeError:
            given = inspect.signature(self.module.forward)
            raise UserError(
                f"model: {kind} has forward{given}; it must take (x, t, cond, *, s=None, tap=None)"
            ) from None
        layout = digest([[k, str(v.dtype), list(v.shape)] for k, v in self.module.state_dict().items()])[:16]
        if self.layout and (kind, layout) != (self.kind, self.layout):
            raise UserError(f"model: a {kind} with tensors {layout}, expected a {self.kind} with tensors {self.layout}")
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "layout", layout)

    def found(self, model: object, source: object) -> GivenNet:
        """Return the same with a network.

        Args:
            model: a module, the name "my_pkg.mod:MyNet" of a class that takes no arguments, or None for the stored one,
                if it may be followed.
            source: the folder that this is from.

        Raises:
            UserError: if there is none, or another one.
        """
        if model is None and (":" not in self.kind or "<" in self.kind or self.kind.startswith("__main__")):
            raise UserError(f"{source}: its network was given as an object of {self.kind}: gen.load(folder, model=...)")
        if model is None:
            with names_from(source):
                model = find(self.kind, "models")
        if isinstance(model, str):
            model = find(model, "models")
        try:
            module = model() if isinstance(model, type) else model
        except TypeError as error:
            raise UserError(f"{self.kind} is not built without arguments ({error}): give a module as model") from None
        return replace(self, module=module)

    def build(self) -> nn.Module:
        """Return a copy of the module."""
        self._check_given()
        return self._finished(copy.deepcopy(self.module))

    def frozen(self) -> nn.Module:
        """Return a copy of the module that shares its weights, none of which is trained."""
        self._check_given()
        shared: dict[int, Any] = {id(buffer): buffer for buffer in self.module.buffers()}
        for p in self.module.parameters():
            shared[id(p)] = nn.Parameter(p.detach(), requires_grad=False)
        return self._finished(copy.deepcopy(self.module, shared))

    def _check_given(self) -> None:
        if self.module is None:
            raise UserError(f"the network was given as an object of {self.kind}: give it again as model")

    def _finished(self, net: Any) -> nn.Module:
        """Return a copy of the module with what `Net` asks for besides."""
        net.spec = replace(self, module=None)
        if not hasattr(net, "null"):
            net.null = NoNull(self.kind)
        out: nn.Module = net
        return out

    @torch.no_grad()
    def check(self, net: Any, x: torch.Tensor, cond: Cond) -> None:
        """Raise UserError, in one line, for a network that does not take one item of the data.

        Args:
            net: what `build` returned; in eval mode for the while.
            x: [1, ...].
            cond: tensors [1, ...].
        """
        given = f"x {list(x.shape)}, t [1] and cond { ({k: list(v.shape) for k, v in cond.items()}) }"
        try:
            out = net.eval()(x, torch.full((1,), 0.5), cond, s=None, tap=None)
        except Exception as error:  # code of the user's, which may raise anything
            what = " ".join(str(error).split())
            raise UserError(f"{self.kind}: forward fails on {given}: {type(error).__name__}: {what}") from error
        if getattr(out, "shape", None) != x.shape:
            shape = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise UserError(f"{self.kind}: forward returns {shape} for {given}; it must return {list(x.shape)}")


@dataclass(frozen=True)
class NoNull:
    """The `null` of a network that has none: nothing is none already, and anything else is refused."""

    kind: str

    def __call__(self, cond: Cond) -> Cond:
        if cond:
            raise UserError(
                f"{self.kind} has no null(cond), the condition that stands for none: dropping {', '.join(cond)} and "
                "guides need it; write it, or leave out guides and train with objective.class_dropout 0"
            )
        return cond
