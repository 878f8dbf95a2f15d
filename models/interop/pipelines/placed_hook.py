"""A hook of diffusers' registry on one module, which is taken off so that nothing of it is left."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["PlacedHook"]


class PlacedHook:
    """A hook on a module, until it is removed.

    Args:
        module: of a network of diffusers.
        hook: a ModelHook of diffusers' with a `new_forward`.
        name: of the hook in the module's registry.
    """

    def __init__(self, module: nn.Module, hook: Any, name: str):
        from diffusers.hooks.hooks import HookRegistry

        own = vars(module)
        self.module, self.name = module, name
        self.fresh = tuple(key for key in ("_diffusers_hook", "forward") if key not in own)  # come with the hook
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
        self.forward, self.inside = own["forward"], hook.fn_ref.original_forward
        self.compiled: Any = None

    def compile(self) -> None:
        """Compile what lies within the hook, when it is first called."""
        self._reference().original_forward = self.compiled = torch.compile(self.inside)

    def remove(self) -> None:
        """Take the hook off; what accelerate has put around it since stays."""
        own = vars(self.module)
        registry, now, inside = own["_diffusers_hook"], self.module.forward, own.get("_old_forward")
        if self._reference().original_forward is self.compiled:
            self._reference().original_forward = self.inside  # which the registry puts back
        registry.remove_hook(self.name, recurse=False)
        if inside is self.forward:
            own["_old_forward"] = self.module.forward
        if now is not self.forward:
            own["forward"] = now
        if not registry.hooks:
            for key in self.fresh:
                if key != "forward" or now is self.forward:
                    own.pop(key, None)

    def _reference(self) -> Any:
        return vars(self.module)["_diffusers_hook"].hooks[self.name].fn_ref
