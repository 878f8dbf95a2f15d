"""Transformers of diffusers' pipelines whose blocks are divided into stages; they are not copied."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap, call_site
from gen.kernels.sequence_parallel.stages import Stages
from gen.models.engines.lib.network_parts import RESIDUALS, attention_layers, foreign_operations
from gen.models.engines.lib.network_tokens import ROTARY, TRANSFORMERS, cut_tables, undivided
from gen.models.engines.lib.operations import attend
from gen.models.engines.lib.staged import StagedNet, StageEvaluation, StageSettings
from gen.models.engines.lib.tokens import keys_mask
from gen.models.interop.pipelines.blocks import BLOCKS, BlockSignature, BlockStream, blocks_of
from gen.models.interop.pipelines.families import plain_module
from gen.models.interop.pipelines.network import PipelineNet

__all__ = ["PipelineStages"]

TEXT_ALWAYS = ("HunyuanVideoTransformer3DModel", "QwenImageTransformer2DModel")  # whose blocks fail without a text


class PipelineStages(StagedNet):
    """A pipeline's own transformer, whose blocks are computed by patches when the last one is called."""

    site = "net"

    def __init__(self, net: PipelineNet, engine: StageSettings, stages: Stages):
        network = plain_module(net.inner)
        if reason := _reason(net, network):
            raise UserError(f"the engine 'pipefusion' cannot divide this {type(network).__name__}: {reason}")
        blocks = blocks_of(network)
        super().__init__(net, engine, stages, len(blocks))
        self.inner, self.blocks, self.split = net, blocks, TRANSFORMERS[type(network).__name__]

    @property
    def network(self) -> Any:
        """The pipeline's own module."""
        return plain_module(self.inner.inner)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        def staged(x: Tensor) -> Tensor:
            with self._staged():
                return self.inner(x, t, cond, s=s)

        return call_site(tap, "net", staged, x)

    @contextmanager
    def _staged(self) -> Iterator[None]:
        """Let blocks remember their calls, and the last one compute them all, within."""
        if reason := foreign_operations(self.network):  # a backend is chosen at any time
            raise UserError(f"the engine 'pipefusion': {reason}")
        calls = BlockCalls(self)

        def share(module: Any, args: Any, out: Any) -> Any:
            return (self.stages.share(out[0]), *out[1:])

        def check(module: Any, args: Any, kwargs: Any) -> None:
            if given := [name for name in RESIDUALS if kwargs.get(name) is not None]:
                raise UserError(f"the engine 'pipefusion': {given[0]} are added between blocks")

        with ExitStack() as stack:
            for handle in (
                self.network.register_forward_hook(share),
                self.network.register_forward_pre_hook(check, with_kwargs=True),
            ):
                stack.callback(handle.remove)
            for number, block in enumerate(self.blocks):
                stack.enter_context(_forward(block, partial(calls, number)))
            yield


def _reason(net: PipelineNet, network: Any) -> str:
    """Return why a network cannot be divided, in words; "" if it can."""
    if net.low is not None or net.token_times is not None:
        return "its pipeline has two" if net.low is not None else "each of its tokens has a time"
    if net.left_out.patterns:
        return "blocks of it are left out"
    if hasattr(network, "down_blocks"):
        return "it has no blocks in a row"
    return "it is compiled" if hasattr(net.inner, "_orig_mod") else undivided(network)


@contextmanager
def _forward(block: Any, replaced: Callable[..., Any]) -> Iterator[None]:
    """Call something else than a module's forward within."""
    before = vars(block).get("forward")  # of accelerate's hooks
    block.forward = partial(replaced, block.forward)
    try:
        yield
    finally:
        if before is None:
            del block.forward
        else:
            block.forward = before


@dataclass(frozen=True)
class BlockCall:
    """One block's call.

    Attributes:
        signature: of the block's class.
        forward: the block's own.
        arguments: by name.
    """

    signature: BlockSignature
    forward: Callable[..., Any]
    arguments: dict[str, Any]


class BlockCalls:
    """The calls of a network's blocks in one evaluation.

    Args:
        net: whose evaluation it is.
    """

    def __init__(self, net: PipelineStages):
        self.net, self.calls = net, list[BlockCall]()
        self.text = self.whole = 0  # numbers of tokens
        self.words: dict[int, Tensor] = {}  # the text before each block, where every patch is to have it

    def __call__(self, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        block = self.net.blocks[number]
        bound = inspect.signature(type(block).forward).bind(block, *args, **kwargs)
        call = BlockCall(BLOCKS[type(block).__name__], forward, dict(list(bound.arguments.items())[1:]))
        self._check(call)
        self.calls.append(call)
        if number < len(self.net.blocks) - 1:
            return BlockStream(block).blank(args, kwargs)
        return self._run()

    def _check(self, call: BlockCall) -> None:
        """Raise UserError where the network has changed tokens since the block before."""
        hidden = call.arguments[call.signature.hidden]
        if not self.calls:
            self.whole = hidden.shape[1]
            self.text = call.arguments[call.signature.encoder].shape[1] if call.signature.encoder else 0
            return
        last = self.calls[-1]
        joined = last.signature.encoder and not call.signature.encoder and hidden.shape[1] == self.text + self.whole
        if hidden is not last.arguments[last.signature.hidden] and not joined:
            raise UserError("the engine 'pipefusion': this network changes tokens between its blocks")

    def _run(self) -> Any:
        """Return what the last block returns: on the last stage's process, and elsewhere what has its shapes."""
        net, first, last = self.net, self.calls[0], self.calls[-1]
        now = net.evaluation
        net.check_tokens(self.whole, torch.is_grad_enabled())
        hidden = first.arguments[first.signature.hidden]
        pieces = [hidden] if now.synchronous else list(hidden.chunk(net.patches, 1))
        if self.text:
            pieces[0] = torch.cat([first.arguments[first.signature.encoder], pieces[0]], 1)
        operations = StageOperations(now, self.text, self.whole, net.split.text == "first")

        def attending(layer: Any, args: Any, kwargs: Any) -> None:
            given = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
            operations.cross = given is not None and not net.split.text

        with ExitStack() as hooks:
            for layer in attention_layers(net.network):
                handle = layer.register_forward_pre_hook(attending, with_kwargs=True)
                hooks.callback(handle.remove)
            with operations:
                out = torch.cat(net.stages.run(pieces, partial(self._piece, operations)), 1)
        streams = {"e": out[:, : self.text], "h": out[:, self.text :]}
        if last.signature.returns == "h":
            return out
        return tuple(streams[name] for name in last.signature.returns)

    def _piece(self, operations: StageOperations, patch: int, tokens: Tensor) -> Tensor:
        """Return a patch behind this stage's blocks; the first one has the text before it."""
        text = self.text if patch == 0 else 0
        n = tokens.shape[1] - text
        operations.window = window = range(patch * n, (patch + 1) * n)
        words, image = tokens[:, :text], tokens[:, text:]
        for number in self.net.own:
            operations.layer, operations.number = number, 0
            if type(self.net.network).__name__ in TEXT_ALWAYS:
                words = self.words.setdefault(number, words)
            words, image = self._block(self.calls[number], words, image, window)
        return torch.cat([words[:, :text], image], 1)

    def _block(self, call: BlockCall, words: Tensor, image: Tensor, window: range) -> tuple[Tensor, Tensor]:
        """Return a text and a patch behind a block.

        Args:
            call: of the block.
            words, image: tokens of the text, or none, and of the patch.
            window: positions of the patch.
        """

        def local(table: Tensor) -> Tensor:
            return table[window.start : window.stop]

        given, names, text = dict(call.arguments), call.signature, words.shape[1]
        given[names.hidden] = image if names.encoder else torch.cat([words, image], 1)
        if names.encoder:
            given[names.encoder] = words
        for name in ROTARY:
            if given.get(name) is not None:
                given[name] = cut_tables(given[name], self.whole, self.net.split, local, text > 0)
        out = call.forward(**given)
        if names.returns == "h":
            out = out if isinstance(out, Tensor) else out[0]
            return out[:, :text], out[:, text:]
        changed, image = (out[names.returns.index(name)] for name in "eh")
        return words if changed is None else changed, image


class StageOperations(TorchFunctionMode):
    """Computes, within a `with`, attention of a patch to all tokens of the sample and to those of a text.

    Args:
        evaluation: of the network.
        text, whole: numbers of tokens of the text and of the image.
        text_first: whether the text lies before the image.

    Attributes:
        window: positions of the patch in the image.
        layer, number: of the block, and of the attention in it.
        cross: whether attention is to something else than the sample.
    """

    def __init__(self, evaluation: StageEvaluation, text: int, whole: int, text_first: bool):
        super().__init__()
        self.evaluation, self.text, self.whole, self.text_first = evaluation, text, whole, text_first
        self.window, self.layer, self.number, self.cross = range(whole), 0, 0, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        return (self.attention if func is attend and not self.cross else func)(*args, **(kwargs or {}))

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return torch's attention [B, heads, l + n, d] of a patch, and of the text if it passes with it."""
        words, image = self._split(torch.stack([key, value]))  # each [2, B, heads, l or n, d]
        words, image = self._kept(words, image)
        key, value = torch.cat([words, image] if self.text_first else [image, words], 3)
        if attn_mask is not None:
            mask_of = self.text, len(self.window), self.whole, self.text_first
            attn_mask = keys_mask(attn_mask, *mask_of, "pipefusion")
        return attend(query, key, value, attn_mask, *args, **kwargs)

    def _split(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the text and of the patch."""
        text = kv.shape[3] - len(self.window)
        if self.text_first:
            return kv[:, :, :, :text], kv[:, :, :, text:]
        return kv[:, :, :, len(self.window) :], kv[:, :, :, : len(self.window)]

    def _kept(self, words: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of all tokens, of which those at hand are fresh from now on."""
        now, at = self.evaluation, (self.layer, self.number)
        self.number += 1
        if now.synchronous:
            if now.keep:
                now.kept[at] = words.clone(), image.clone()
            return words, image
        before, whole = now.kept[at]
        whole[:, :, :, self.window.start : self.window.stop] = image
        if words.shape[3]:
            before = words.clone()
            now.kept[at] = before, whole
        return before, whole
