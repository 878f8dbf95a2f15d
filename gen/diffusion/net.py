"""The contract of a network: what an nn.Module must have so that every verb can train, sample, cache and prepare it.

A user's own model is a frozen dataclass (the spec, `NetSpec`) whose `build()` returns an nn.Module (the network,
`Net`); `--model my_package.module:MySpec` then trains it. Members that only some networks have are optional; everything
reads them through `members`, which gives their defaults, and nothing else asks a network whether it has an attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from gen.config.errors import UserError
from gen.diffusion.tap import Tap

if TYPE_CHECKING:
    from gen.diffusion.denoiser import Cond

__all__ = [
    "ModulationTable", "Net", "NetMembers", "NetSpec", "empty_network", "members", "shape_of", "sides", "takes_shape",
    "unwrap",
]  # fmt: skip

T = TypeVar("T")
DRAWS = {getattr(Tensor, f"{name}_") for name in ("normal", "uniform", "bernoulli", "exponential", "log_normal")} | {
    getattr(nn.init, f"{name}_")  # which hide those of tensors
    for name in ("normal", "uniform", "trunc_normal", "orthogonal", "kaiming_normal", "kaiming_uniform",
                 "xavier_normal", "xavier_uniform")
}  # fmt: skip


class NetSpec(Protocol):
    """The configuration of a network: a frozen dataclass of JSON values, saved with every checkpoint."""

    @property
    def channels(self) -> int:
        """One x is [channels, height, width], unless the network has a `state_shape`, or the spec a `shape`.

        A `shape` is that of one x, such as a signal's [channels, length]; then there may be no `size`.
        """
        ...

    @property
    def size(self) -> int | tuple[int, int]:
        """Height and width of x: one number for squares, else both."""
        ...

    @property
    def classes(self) -> int:
        """Number of labels in cond["y"]; 0 for an unconditional network."""
        ...

    def build(self) -> nn.Module:
        """Return the network, freshly initialised from torch's global generator, float32, on the default device."""
        ...


class Net(Protocol):
    """A network that predicts a x0 + b eps at x_t, for the (a, b) of a parameterisation; an nn.Module.

    Required are `forward` (called as `__call__`), `null` and `spec`. It must hold that row i of the output depends on
    row i of the arguments alone, that the same arguments give the same bits in eval mode, that arguments are not
    written to, that copy.deepcopy works, and that state_dict() has all that a checkpoint needs.

    Optional members, with the default of their absence:
        state_shape: shape of one x; (spec.channels, spec.size, spec.size).
        image(x): the image [B, C, H, W] in a state x; x itself.
        base_picture(cond, (H, W)): the picture [B, C, H, W] that is added to a state's image, where states are
            residuals (gen.models.beside); none. Loops and objectives pass it as cond["base"].
        lr_scales(): parameter name -> factor on the learning rate; {}, a factor of 1 for all.
        spec.null_class: whether the label spec.classes stands for "no class"; True.
        spec.size_step: what the sides of an x that is higher or wider than spec.size are multiples of, pixels; None for
            a network that takes spec.size alone.
        logvar(t): log variance of the loss at t [B], learned with the weights (EDM2), [B]; none.
        conditions: keys of cond besides "y" that the network reads, such as "text_ids" and "text_mask"; ().
        store_null_text(text, mask, pooled): keep the embedding of the empty caption, [L, D], bool [L] and [P] or None,
            as what no caption is; none.
        compute_dtypes: dtypes besides float32 that `forward` also computes in, once the module was moved to them with
            `.to(dtype)`; (). An engine then passes x and floating conditions in that dtype and t, s as they are.
        modulation_table(t, cond): see `ModulationTable`; none. Engines provide it.
        about: what prepared the network, in words; "".
        taps_kept(): a context in which what taps need stays on the network between evaluations; nothing needs it.
    """

    spec: Any

    def __call__(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        """Return the prediction for noisy states.

        Args:
            x: input-scaled state [B, *state_shape]; float32, or an engine's dtype, or float64 in tests.
            t: time as `path.t_to_network` gives it, [B], or [B, S, 2] on a path of S stages; float32 (float64 if x is
                float64), never an engine's dtype, since bfloat16 cannot tell neighbouring times apart: embed it, then
                cast the embedding to x's dtype.
            cond: tensors [B, ...]: "y" int64 labels 0 .. classes (the last is "no class"), embeddings, masks, ...
                May hold keys that the network does not know.
            s: the time [B] that a flow map jumps to, as t; None for all other networks.
            tap: None, or to be called by every block as `h = h + (f(h) if tap is None else tap("blocks.3", f, h))`,
                see gen.diffusion.tap. A network may ignore it; feature caches then refuse it.

        Returns:
            The output, shaped as x, floating.
        """
        ...

    def null(self, cond: Cond) -> Cond:
        """Return the condition that stands for "no condition".

        Args:
            cond: tensors [B, ...]; the result has its keys, shapes and devices.
        """
        ...


class ModulationTable(Protocol):
    """Adaptive-norm modulations of all times of a sampling loop, computed in one product before it starts.

    `net.modulation_table(t [T], cond)` returns one, or None where it cannot be had (other conditions, too large).
    """

    def __call__(self, i: int, cond: Cond) -> Cond:
        """Return cond with the modulations of one time added, one row per sample.

        Args:
            i: index of the time in t.
            cond: tensors [B, ...] of the batch, labels among those that the table was made for.
        """
        ...


@dataclass(frozen=True)
class NetMembers:
    """The optional members of a Net, each with its default where the network has none; see `Net`.

    Attributes:
        state_shape: None where neither the network nor its spec says.
        image, lr_scales: callables, always there.
        base_picture: None for a network whose states are no residuals.
        null_class: whether there is a label for "no class".
        logvar, modulation_table, store_null_text: None where the network has none.
        conditions: keys besides "y".
        compute_dtypes: dtypes besides float32.
        about: "" for a network that no engine prepared.
        fixed_batch: whether a further size of the batch is costly, or all processes must have the same: caches then
            compute all rows or none.
        run_branches: two evaluations on several processes, of an engine's network (gen.models.engines.branches); None
            to run one after the other.
        start_loop: (steps, a cache's session or None) -> the tap of one sampling loop, of an engine's network that
            remembers something in it (gen.models.engines.patches); None for the session itself.
        splits_samples: whether sites of a tap see a part of each sample, each process another one. Networks of engines
            whose processes compute each sample together all say so.
        taps_kept: a context in which what taps need stays on the network from one evaluation to the next.
    """

    state_shape: tuple[int, ...] | None
    image: Callable[[Tensor], Tensor]
    base_picture: Callable[[Cond, tuple[int, int]], Tensor] | None
    lr_scales: Callable[[], Mapping[str, float]]
    null_class: bool
    logvar: Callable[[Tensor], Tensor] | None
    compute_dtypes: tuple[torch.dtype, ...]
    modulation_table: Callable[[Tensor, Cond], ModulationTable | None] | None
    about: str
    fixed_batch: bool
    conditions: tuple[str, ...]
    store_null_text: Callable[[Tensor, Tensor, Tensor | None], None] | None
    run_branches: Callable[[Callable[[], Any], Callable[[], Any]], tuple[Any, Any]] | None
    start_loop: Callable[[int, Any], Any] | None
    splits_samples: bool
    taps_kept: Callable[[], AbstractContextManager[None]]

    def with_base(self, cond: Cond, size: Sequence[int]) -> Cond:
        """Return the condition with the picture that states are residuals of, as "base"; as it is where they are none.

        Args:
            cond: tensors [B, ...].
            size: height and width of a picture.
        """
        return cond if self.base_picture is None else {**cond, "base": self.base_picture(cond, (size[0], size[1]))}

    def pictures(self, cond: Cond) -> Callable[[Tensor], Tensor]:
        """Return the function from states x [B, ...] to pictures: their image, and the base where they are residuals.

        Args:
            cond: what `with_base` returned.
        """
        if self.base_picture is None:
            return self.image
        return lambda x: self.image(x) + cond["base"]

    def check_edit(self, edit: T) -> T:
        """Return an edit of `Pipeline.sample`, or None for none; UserError for one of residuals.

        Args:
            edit: gen.diffusion.editing.Edit.
        """
        if self.base_picture is not None and edit is not None:
            raise UserError("this model restores the picture cond['low'], and edits none: leave out image and mask")
        return edit

    def loop_tap(self, steps: int, session: Any) -> Any:
        """Return the tap of one sampling loop: a cache's session, or what an engine's network puts around it.

        Args:
            steps: of the loop.
            session: gen.diffusion.contracts.CacheSession; None for none.

        Raises:
            UserError: for a cache that decides by features of which each process sees others: some would compute what
                others leave out, and wait for them for ever.
        """
        if session is not None and self.splits_samples and getattr(session, "decides_by_features", True):
            raise UserError(
                f"under {self.about!r} each process sees a part of each sample, by which this cache would decide or "
                "measure; allowed: caches that decide by steps, such as fora or taylorseer"
            )
        return session if self.start_loop is None else self.start_loop(steps, session)


def members(net: nn.Module) -> NetMembers:
    """Read a network's optional members, under DistributedDataParallel too.

    Args:
        net: a `Net`.
    """
    inner = unwrap(net)
    return NetMembers(
        state_shape=_state_shape(inner),
        image=getattr(inner, "image", lambda x: x),
        base_picture=getattr(inner, "base_picture", None),
        lr_scales=getattr(inner, "lr_scales", dict),
        null_class=getattr(getattr(inner, "spec", None), "null_class", True),
        logvar=getattr(inner, "logvar", None),
        compute_dtypes=tuple(getattr(inner, "compute_dtypes", ())),
        modulation_table=getattr(inner, "modulation_table", None),
        about=getattr(inner, "about", ""),
        fixed_batch=getattr(inner, "fixed_batch", False),
        conditions=tuple(getattr(inner, "conditions", ())),
        store_null_text=getattr(inner, "store_null_text", None),
        run_branches=getattr(inner, "run_branches", None),
        start_loop=getattr(inner, "start_loop", None),
        splits_samples=getattr(inner, "splits_samples", False),
        taps_kept=getattr(inner, "taps_kept", nullcontext),
    )


def empty_network(spec: NetSpec, size: int) -> nn.Module:
    """Return a network whose weights are on the meta device, for load_state_dict(..., assign=True) to put there.

    What a state dict does not hold, such as tables that are computed, is there.

    Args:
        spec: the network's.
        size: bytes of the file of its weights.

    Raises:
        UserError: for a network that is far too large for that file, before memory is taken for it.
    """
    with _bounded(size):
        try:
            with torch.device("meta"):
                net = spec.build()
            complete = _only_state(net)
        except (RuntimeError, NotImplementedError):  # the constructor looks at values
            complete = False
        if not complete:
            with _Undrawn():
                net = spec.build()
            net.load_state_dict({name: value.to("meta") for name, value in net.state_dict().items()}, assign=True)
    return net


class _Undrawn(TorchFunctionMode):
    """Leaves parameters as they are where random numbers would be drawn for them, which takes longer than to load them.

    Draws by a generator stay, and those for other tensors: what a state dict does not hold may be made of them.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        drawn = (*args, given.get("tensor"))[0] if func in DRAWS and not given.get("generator") else None
        return drawn if isinstance(drawn, nn.Parameter) else func(*args, **given)


@contextmanager
def _bounded(size: int) -> Iterator[None]:
    """Refuse to build, within, a network of far more weights than a file of `size` bytes holds."""
    tensors, numbers = 0, 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, numbers
        tensors, numbers = tensors + 1, numbers + (0 if parameter is None else parameter.numel())
        # some are replaced while it is built, and a pruned network is built whole
        if tensors > 1000 + size / 16 or numbers > 2**20 + 16 * size:
            raise UserError(f"the model has more weights than its file of {size:,} bytes can hold")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _only_state(net: nn.Module) -> bool:
    """Return whether a network has no tensors but those of its state dict."""
    state = set(net.state_dict())
    loose = any(isinstance(value, Tensor) for module in net.modules() for value in vars(module).values())
    return not loose and {name for name, _ in net.named_buffers()} <= state


def unwrap(net: nn.Module) -> Any:
    """Return the network itself: DistributedDataParallel hides its attributes one level down.

    Args:
        net: a `Net`, or one that DistributedDataParallel wraps.
    """
    return getattr(net, "module", net)


def sides(spec: Any) -> tuple[int, int]:
    """Return height and width of a network's x.

    Args:
        spec: the network's, whose `size` is one number for squares, else both.
    """
    return tuple(spec.size) if isinstance(spec.size, (tuple, list)) else (spec.size, spec.size)


def shape_of(spec: Any) -> tuple[int, ...] | None:
    """Return the shape of one x of a network; None where its spec does not say.

    Args:
        spec: the network's.
    """
    own = getattr(spec, "shape", None)
    if own is None and hasattr(spec, "channels"):
        own = (spec.channels, *sides(spec))
    return None if own is None else tuple(own)


def takes_shape(spec: Any, shape: Sequence[int]) -> bool:
    """Return whether a network takes an x of a shape.

    Args:
        spec: the network's.
        shape: (C, H, W), the network's own or another.
    """
    own, step = shape_of(spec), getattr(spec, "size_step", None)
    if step is None or own is None or len(shape) != 3:
        return tuple(shape) == own
    return shape[0] == own[0] and all(side > 0 and side % step == 0 for side in shape[1:])


def _state_shape(net: Any) -> tuple[int, ...] | None:
    own = getattr(net, "state_shape", None)
    return tuple(own) if own is not None else shape_of(getattr(net, "spec", None))
