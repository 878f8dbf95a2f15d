"""Sites of a diffusers network that is used as it is: hooks of diffusers' own registry, which call a tap.

A transformer has "net" (all of it), "trunk" (all blocks), "hidden.3" (a block with its skip connections), "blocks.3"
(what the block adds), and in it "blocks.3.attn.raw", "blocks.3.cross.attn.raw", "blocks.3.mlp.raw" (bare modules) and
their like of text streams, "blocks.3.context.mlp.raw". Blocks whose attention and MLP run beside each other have both
in "blocks.3.mlp.raw". The value of a block of two streams is encoder states before hidden states.

A UNet has "net", "hidden.0" (its first layer), "trunk" (all between its first and its last layer, what DeepCache
leaves out), "deep.1", "deep.2", .. (all below a level) and its transformer blocks, "blocks.3" with what is in them.

"trunk", "deep.1" and their like lie between the hooks of two modules. While one of them is left out, the modules in it
do not run; it is the tap that decides, see gen.diffusion.tap.SiteCall.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.tap import Compute, SiteCall, Tap, begin_site
from gen.models.interop.pipelines.blocks import BLOCKS, BlockStream, blocks_of
from gen.models.interop.pipelines.families import plain_module
from gen.models.interop.pipelines.modules import ModuleStream
from gen.models.interop.pipelines.placed_hook import PlacedHook

__all__ = ["HOOK", "SiteHooks"]

HOOK = "gen.sites"  # name of our hooks in diffusers' registry


@dataclass(eq=False)
class Span:
    """A site that lies between the hooks of two modules.

    Attributes:
        site: its name.
        call: of the evaluation at hand; None before the span is entered and after it is left.
        value: what stands for its output, if it is left out.
    """

    site: str
    call: SiteCall | None = None
    value: Tensor | None = None


@dataclass(eq=False)
class Hooked:
    """A module with a hook.

    Attributes:
        module: it.
        stream: the value through it.
        sites: names of the sites around it, the outermost first.
        enters, leaves: spans that begin before it and end after it, the outermost first.
        placed: the hook; None before it is put on.
    """

    module: nn.Module
    stream: BlockStream | ModuleStream
    sites: list[str] = field(default_factory=list)
    enters: list[Span] = field(default_factory=list)
    leaves: list[Span] = field(default_factory=list)
    placed: PlacedHook | None = None


class SiteHooks:
    """Hooks on a network of diffusers, which call `tap` at its sites until they are removed.

    Args:
        network: a transformer or UNet of diffusers.
        patterns: of the sites that are offered.
        around: runs every evaluation of the network, which it is given as a function; None calls it.
        compiled: whether transformer blocks are compiled (torch.compile), within the hooks.
        attach: whether the hooks are put on at once; else by `refresh`.

    Attributes:
        tap: is called at the sites; with None the network runs as it does without hooks.
        sites: names of those that are offered, "net" first.
        known: names of all that the network has.
        opaque: those inside the trunk of a UNet, where modules that are no sites run beside them.
    """

    def __init__(
        self,
        network: nn.Module,
        patterns: Sequence[str] = ("*",),
        around: Callable[[Callable[[], Any]], Any] | None = None,
        compiled: bool = False,
        attach: bool = True,
    ):
        self.tap: Tap | None = None
        self.network, self.patterns, self.around = plain_module(network), tuple(patterns), around
        self.compiled = compiled
        self.sites: list[str]
        self.known: dict[str, None]
        self.opaque: set[str]
        self.spans: list[Span]
        self.passing: Span | None = None  # the span that is being left out
        self.hooked: dict[nn.Module, Hooked] = {}
        self._plan()
        if attach:
            self.attach()

    def __enter__(self) -> SiteHooks:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    @property
    def context(self) -> str | None:
        """Name that the pipeline gave the call by `cache_context`, such as "cond"; None without one."""
        try:
            return str(self._contexts.context.name)
        except ValueError:
            return None

    @property
    def current(self) -> bool:
        """Whether all modules are still where they were: adapters put theirs around some."""
        return all(getattr(parent, name, None) is module for parent, name, module in self.positions)

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the network."""
        return self._attached(self.network) is self

    @property
    def compiled_blocks(self) -> int:
        """Number of blocks that are compiled."""
        return sum(h.placed is not None and h.placed.compiled is not None for h in self.hooked.values())

    def remove(self) -> None:
        """Take all hooks off."""
        if not self.attached:
            return
        for hooked in reversed(self.hooked.values()):
            if hooked.placed is not None:
                hooked.placed.remove()
        self._forget_registries()
        self.tap = None

    def refresh(self) -> None:
        """Put the hooks on, on the network's modules of today, unless they are."""
        if not self.current:
            self.remove()
            self._plan()
        if not self.attached:
            self.attach()

    def kinds(self) -> list[str]:
        """Return the names of all sites, without their numbers."""
        return list(dict.fromkeys(re.sub(r"\b\d+\b", "*", site) for site in self.known))

    def _offers(self, site: str) -> bool:
        self.known[site] = None
        return any(fnmatchcase(site, pattern) for pattern in self.patterns)

    def _around_module(self, module: Any, sites: Sequence[str], stream: BlockStream | None = None) -> None:
        """Put sites around a module."""
        wanted = [site for site in sites if self._offers(site)]
        if wanted:
            hooked = self.hooked.setdefault(module, Hooked(module, stream or ModuleStream()))
            hooked.sites += wanted
            self.sites += wanted

    def _between(self, site: str, modules: Sequence[Any]) -> None:
        """Put a site from the first module to the last one; all of them are left out with it."""
        if not self._offers(site):
            return
        span = Span(site)
        self.spans.append(span)
        self.sites.append(site)
        for module in modules:
            if module not in self.hooked:
                block = type(module).__name__ in BLOCKS
                self.hooked[module] = Hooked(module, BlockStream(module) if block else ModuleStream())
        self.hooked[modules[0]].enters.append(span)
        self.hooked[modules[-1]].leaves.append(span)

    def _plan(self) -> None:
        """Find the sites; outer ones first."""
        self.sites, self.spans, self.known, self.opaque = [], [], {}, set()
        self.hooked = {self.network: Hooked(self.network, ModuleStream())}
        self._around_module(self.network, ["net"])
        self._plan_blocks()
        children = [(parent, *child) for parent in self.network.modules() for child in parent.named_children()]
        self.positions = [child for child in children if child[2] in self.hooked]

    def _plan_blocks(self) -> None:
        if hasattr(self.network, "down_blocks") and hasattr(self.network, "up_blocks"):
            self._plan_unet()
            return
        blocks = blocks_of(self.network)
        if blocks:
            self._between("trunk", blocks)
        for i, block in enumerate(blocks):
            self._around_module(block, [f"hidden.{i}", f"blocks.{i}"], BlockStream(block))
            self._plan_inside(block, f"blocks.{i}")

    def _plan_inside(self, block: Any, site: str) -> None:
        signature = BLOCKS[type(block).__name__]
        if signature.parallel:
            self._between(f"{site}.mlp.raw", [block.proj_mlp, block.attn, block.proj_out])
        for name, attribute in signature.modules.items():
            module = getattr(block, attribute, None)
            if module is not None:
                self._around_module(module, [f"{site}.{name}.raw"])

    def _plan_unet(self) -> None:
        net: Any = self.network
        down, up, middle = list(net.down_blocks), list(net.up_blocks), [net.mid_block] if net.mid_block else []
        if not hasattr(down[0], "resnets") or not hasattr(up[-1], "resnets"):
            return
        first, *rest = _layers(down[0])
        *before_last, _ = _layers(up[-1])
        inner = [module for layer in rest for module in layer]
        inner += [*(getattr(down[0], "downsamplers", None) or ()), *down[1:], *middle, *up[:-1]]
        inner += [module for layer in before_last for module in layer]
        self._between("hidden.0", first)
        if inner:
            self._between("trunk", inner)
        for k in range(1, len(down)):
            self._between(f"deep.{k}", [*down[k:], *middle, *up[: len(up) - k]])
        inside = [module for part in (*down, *middle, *up) for module in part.modules()]
        blocks = [module for module in inside if type(module).__name__ in BLOCKS]
        for i, block in enumerate(blocks):
            before = set(self.sites)
            self._around_module(block, [f"blocks.{i}"], BlockStream(block))
            self._plan_inside(block, f"blocks.{i}")
            if any(block in module.modules() for module in inner):
                self.opaque |= set(self.sites) - before

    @staticmethod
    def _attached(network: nn.Module) -> SiteHooks | None:
        """The hooks of ours that a network has."""
        hook = getattr(getattr(network, "_diffusers_hook", None), "hooks", {}).get(HOOK)
        return None if hook is None else hook.owner

    def attach(self) -> None:
        """Put the hooks on, in place of others that are idle; UserError beside others at work."""
        other = self._attached(self.network)
        if other is not None:
            if other.around is not None or other.tap is not None:
                raise UserError(f"{type(self.network).__name__} is accelerated already: remove() that first")
            other.remove()
        for hooked in self.hooked.values():
            hook = _hook(self, hooked)
            hooked.placed = PlacedHook(hooked.module, hook, HOOK)
            if self.compiled and isinstance(hooked.stream, BlockStream):
                hooked.placed.compile()
            if hooked.module is self.network:
                self._contexts = hook.contexts
        self._forget_registries()

    def _forget_registries(self) -> None:
        """Let diffusers look for its registries again, whose list it keeps."""
        registry = getattr(self.network, "_diffusers_hook", None)
        if registry is not None:
            registry.invalidate_child_registries_cache()

    def call(self, hooked: Hooked, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a hooked module, or what stands for it."""
        if hooked.module is self.network:
            return self._evaluate(hooked, forward, args, kwargs)
        if self.tap is None:
            return forward(*args, **kwargs)
        for span in hooked.enters:
            if self.passing is None:
                args, kwargs = self._enter(span, hooked, args, kwargs)
        if self.passing is None:
            out = self._run(hooked, forward, args, kwargs)
        elif (out := hooked.stream.blank(args, kwargs)) is None:
            out = forward(*args, **kwargs)
            self._remember(hooked, out, args, kwargs)
        for span in reversed(hooked.leaves):
            if span.call is not None and self.passing in (None, span):
                out = self._leave(span, hooked, out, args, kwargs)
        return out

    def _evaluate(self, hooked: Hooked, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the whole network."""

        def run() -> Any:
            if self.tap is None:
                return forward(*args, **kwargs)
            self.passing = None
            try:
                out = self._run(hooked, forward, args, kwargs)
                if self.passing is not None:
                    raise UserError(f"the network skipped the end of {self.passing.site!r}, which a cache left out")
                return out
            finally:
                self.passing = None
                for span in self.spans:
                    if span.call is not None:
                        span.call.close()
                    span.call = span.value = None

        return run() if self.around is None else self.around(run)

    def _run(self, hooked: Hooked, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run a module under the sites around it."""
        if not hooked.sites:
            out = forward(*args, **kwargs)
            self._remember(hooked, out, args, kwargs)
            return out
        stream, whole, computed = hooked.stream, None, None
        given = stream.read(args, kwargs)

        def compute(h: Tensor) -> Tensor:
            nonlocal whole, computed
            given_args, given_kwargs = (args, kwargs) if h is given else stream.write(args, kwargs, h)
            whole = forward(*given_args, **given_kwargs)
            computed = stream.output(whole, given_args, given_kwargs)
            return computed

        assert self.tap is not None
        around: Compute = compute
        for site in reversed(hooked.sites):
            around = _site(self.tap, site, around)
        value = around(given)
        return whole if value is computed else stream.replaced(value, args, kwargs)

    def _remember(self, hooked: Hooked, out: Any, args: Any, kwargs: Any) -> None:
        if isinstance(hooked.stream, ModuleStream) and hooked.module is not self.network:
            hooked.stream.remember(out, args, kwargs)

    def _enter(self, span: Span, hooked: Hooked, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Begin a span; return the arguments at which its first module is to be computed."""
        assert self.tap is not None
        h = hooked.stream.read(args, kwargs)
        span.call = begin_site(self.tap, span.site, h)
        try:
            wanted = next(span.call)
        except StopIteration as end:
            self.passing, span.value = span, end.value
            return args, kwargs
        return (args, kwargs) if wanted is h else hooked.stream.write(args, kwargs, wanted)

    def _leave(self, span: Span, hooked: Hooked, out: Any, args: Any, kwargs: Any) -> Any:
        """End a span; return what its last module returns."""
        call, span.call = span.call, None
        assert call is not None
        if self.passing is span:
            self.passing, value, span.value = None, span.value, None
            assert value is not None
            return hooked.stream.replaced(value, args, kwargs)
        computed = hooked.stream.output(out, args, kwargs)
        try:
            call.send(computed)
        except StopIteration as end:
            value = end.value
        else:
            raise UserError(f"a tap computes {span.site!r} twice, which a network with hooks cannot do")
        return out if value is computed else hooked.stream.replaced(value, args, kwargs)


def _layers(block: Any) -> list[list[Any]]:
    """The layers of a UNet's block, each of a resnet and an attention or a resnet alone."""
    attentions = list(getattr(block, "attentions", None) or ())
    return [[resnet, *attentions[i : i + 1]] for i, resnet in enumerate(block.resnets)]


def _site(tap: Tap, site: str, compute: Compute) -> Compute:
    """A computation under a site; "blocks.3" is what the block adds, all others are whole values."""
    if not site.startswith("blocks.") or site.endswith(".raw"):
        return lambda h: tap(site, compute, h)

    def add(h: Tensor) -> Tensor:
        whole = added = None

        def residual(given: Tensor) -> Tensor:
            nonlocal whole, added
            out = compute(given)
            added, whole = out - given, out if given is h else None
            return added

        value = tap(site, residual, h)
        return whole if whole is not None and value is added else h + value  # h + (out - h) would round

    return add


def _hook(hooks: SiteHooks, hooked: Hooked) -> Any:
    """A hook of diffusers' that calls `hooks`; the network's own also gets the names of its calls."""
    from diffusers.hooks import hooks as theirs

    library: Any = theirs  # which has few types

    class SiteHook(library.ModelHook):  # type: ignore[misc]
        _is_stateful = hooked.module is hooks.network

        def __init__(self) -> None:
            super().__init__()
            self.owner = hooks
            self.contexts = library.StateManager(library.BaseState)

        def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return hooks.call(hooked, self.fn_ref.original_forward, args, kwargs)

        def reset_state(self, module: nn.Module) -> nn.Module:
            return module

    hook: Any = SiteHook()
    hook.new_forward = torch.compiler.disable(hook.new_forward, recursive=False)  # what it calls is compiled
    return hook
