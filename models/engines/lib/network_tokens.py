"""Transformers of diffusers of whose tokens each process computes an equal part."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.models.engines.lib.network_parts import NetworkParts, attention_layers, check_arguments, foreign_operations
from gen.models.engines.lib.tokens import TokenOperations
from gen.models.interop.pipelines.blocks import BLOCKS, blocks_of

__all__ = ["ROTARY", "TRANSFORMERS", "TokenSplit", "TransformerTokens", "cut_tables", "undivided"]

ROTARY = ("image_rotary_emb", "rotary_emb", "freqs_cis")  # arguments of blocks with a table for each token


@dataclass(frozen=True)
class TokenSplit:
    """The cut of the tokens of a class of transformers.

    Attributes:
        text: that attends jointly with the image lies before or behind it; "" for cross-attention or none.
        apart: whether rotary tables are one of the image and one of the text; else both have both, or no text.
    """

    text: Literal["", "first", "last"] = ""
    apart: bool = False


TRANSFORMERS: Mapping[str, TokenSplit] = {
    "CogVideoXTransformer3DModel": TokenSplit("first"),
    "DiTTransformer2DModel": TokenSplit(),
    "Flux2Transformer2DModel": TokenSplit("first"),
    "FluxTransformer2DModel": TokenSplit("first"),
    "HunyuanVideoTransformer3DModel": TokenSplit("last"),
    "LTXVideoTransformer3DModel": TokenSplit(),
    "PixArtTransformer2DModel": TokenSplit(),
    "QwenImageTransformer2DModel": TokenSplit("first", apart=True),
    "SD3Transformer2DModel": TokenSplit("last"),
    "WanTransformer3DModel": TokenSplit(),
}
REASONS = {
    "SanaTransformer2DModel": "its attention is linear, and its MLPs are convolutions",
    "Lumina2Transformer2DModel": "its rows have text of unlike lengths before the image",
    "ZImageTransformer2DModel": "its rows have text of unlike lengths behind the image",
}


def undivided(network: Any) -> str:
    """Return why a network's tokens cannot be divided, in words; "" if they can.

    Args:
        network: of diffusers.
    """
    kind, blocks = type(network).__name__, blocks_of(network)
    if kind not in TRANSFORMERS:
        return REASONS.get(kind) or f"known are UNet2DConditionModel, {', '.join(TRANSFORMERS)}"
    if any("TokenReplace" in type(block).__name__ for block in blocks):
        return "its first frame is a picture"
    return foreign_operations(network) if blocks else "its blocks are of no known class"


class TransformerTokens(NetworkParts):
    """A transformer whose blocks compute this process's tokens."""

    kind = TokenOperations

    def reason(self) -> str:
        """Return why the network cannot be shared out, in words; "" if it can."""
        if reason := undivided(self.network):
            return reason
        self.split, self.blocks = TRANSFORMERS[type(self.network).__name__], blocks_of(self.network)
        if self.portion is not None and self.split.text:
            return "its text attends to the whole image: leave out the portion"
        return ""

    @contextmanager
    def in_parts(self, operations: TokenOperations) -> Iterator[None]:
        """Compute tokens between the first block and the end of the last one.

        Args:
            operations: for one evaluation.
        """
        if reason := foreign_operations(self.network):  # a backend is chosen at any time
            raise UserError(f"the engine 'patches': {reason}")
        operations.off, operations.text_first = True, self.split.text == "first"
        parts, whole = self.exchange.parts, 0

        def enter(block: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            nonlocal whole
            bound = inspect.signature(type(block).forward).bind(block, *args, **kwargs)
            given, hidden = bound.arguments, BLOCKS[type(block).__name__].hidden
            if block is self.blocks[0]:
                whole = given[hidden].shape[1]
                if whole % parts:
                    raise UserError(f"the engine 'patches': {whole} tokens do not divide into {parts} parts")
                given[hidden] = local = self.exchange.local(given[hidden])
                operations.off, operations.own = False, local.shape[1]
            for name in ROTARY:
                if given.get(name) is not None:
                    given[name] = self._cut(given[name], whole)
            return bound.args[1:], bound.kwargs

        def leave(block: Any, args: Any, out: Any) -> Any:
            operations.off = True

            def whole_of(h: Tensor) -> Tensor:
                text = h.shape[1] - operations.own  # of both in one stream
                return torch.cat([h[:, :text], self.exchange.gather(h[:, text:])], 1)

            returns = BLOCKS[type(block).__name__].returns
            if returns == "h":
                return whole_of(out) if isinstance(out, Tensor) else (whole_of(out[0]), *out[1:])
            return tuple(whole_of(h) if name == "h" else h for name, h in zip(returns, out, strict=True))

        def attend(layer: Any, args: Any, kwargs: Any) -> None:
            given = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
            operations.cross = given is not None and not self.split.text

        with ExitStack() as hooks:
            handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in self.blocks]
            handles.append(self.blocks[-1].register_forward_hook(leave))
            handles.append(self.network.register_forward_pre_hook(check_arguments, with_kwargs=True))
            layers = attention_layers(self.network)
            handles += [layer.register_forward_pre_hook(attend, with_kwargs=True) for layer in layers]
            for handle in handles:
                hooks.callback(handle.remove)
            with operations:
                yield

    def _cut(self, tables: Any, whole: int) -> Any:
        """Return rotary tables for this process's tokens, with those of a text before them where they are joined."""

        def local(table: Tensor) -> Tensor:
            return self.exchange.local(table[None])[0]

        return cut_tables(tables, whole, self.split, local)


def cut_tables(tables: Any, whole: int, split: TokenSplit, local: Callable[[Tensor], Tensor], text: bool = True) -> Any:
    """Return rotary tables for some tokens, behind those of a text where they are joined.

    Args:
        tables: as a block gets them.
        whole: number of the image's tokens.
        split: of the class.
        local: from a table [T, ...] of the image's tokens to those of some.
        text: whether there are tokens of a text.
    """

    def cut(table: Tensor) -> Tensor:
        dim = next(dim for dim, size in enumerate(table.shape) if size >= whole)
        words, tokens = table.split([table.shape[dim] - whole, whole], dim)
        own = local(tokens.movedim(dim, 0)).movedim(0, dim)
        return torch.cat([words, own], dim) if text and words.shape[dim] else own

    if split.apart:
        return (cut(tables[0]), *(table if text else table[:0] for table in tables[1:]))
    return tuple(map(cut, tables))
