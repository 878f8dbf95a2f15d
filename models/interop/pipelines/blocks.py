"""Signatures of the transformer blocks of diffusers, a row for each class, and the stream of tokens through a block."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["BLOCKS", "BLOCK_LISTS", "BlockSignature", "BlockStream", "blocks_of"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@dataclass(frozen=True)
class BlockSignature:
    """The call of one class of blocks.

    Attributes:
        hidden: name of the argument with the hidden states [B, N, D].
        encoder: that with the encoder states [B, L, D] which the block changes and returns, too; "" for none.
        returns: order of the return, h the hidden and e the encoder states.
        modules: attention and feed-forward modules inside: end of the site's name -> attribute.
        parallel: whether attention and `proj_mlp` run beside each other into one `proj_out`.
    """

    hidden: str = "hidden_states"
    encoder: str = ""
    returns: Literal["h", "he", "eh"] = "h"
    modules: Mapping[str, str] = field(default_factory=dict)
    parallel: bool = False


_CROSS = {"attn": "attn1", "cross.attn": "attn2", "mlp": "ff"}
_JOINT = {"attn": "attn", "mlp": "ff", "context.mlp": "ff_context"}
_TWO: Any = {"encoder": "encoder_hidden_states"}
_HUNYUAN = BlockSignature(**_TWO, returns="he", modules=_JOINT)
_HUNYUAN_SINGLE = BlockSignature(**_TWO, returns="he", modules={"attn": "attn"}, parallel=True)

BLOCKS: Mapping[str, BlockSignature] = {
    "BasicTransformerBlock": BlockSignature(modules=_CROSS),  # DiT, PixArt, and inside UNets
    "CogVideoXBlock": BlockSignature(**_TWO, returns="he", modules={"attn": "attn1", "mlp": "ff"}),
    "Flux2SingleTransformerBlock": BlockSignature(modules={"attn": "attn"}),  # text and image in one stream
    "Flux2TransformerBlock": BlockSignature(**_TWO, returns="eh", modules=_JOINT),
    "FluxSingleTransformerBlock": BlockSignature(**_TWO, returns="eh", modules={"attn": "attn"}, parallel=True),
    "FluxTransformerBlock": BlockSignature(**_TWO, returns="eh", modules=_JOINT),
    "HunyuanVideoSingleTransformerBlock": _HUNYUAN_SINGLE,
    "HunyuanVideoTokenReplaceSingleTransformerBlock": _HUNYUAN_SINGLE,
    "HunyuanVideoTokenReplaceTransformerBlock": _HUNYUAN,
    "HunyuanVideoTransformerBlock": _HUNYUAN,
    "JointTransformerBlock": BlockSignature(**_TWO, returns="eh", modules={**_JOINT, "second.attn": "attn2"}),  # SD3
    "LTXVideoTransformerBlock": BlockSignature(modules=_CROSS),
    "Lumina2TransformerBlock": BlockSignature(modules={"attn": "attn", "mlp": "feed_forward"}),
    "QwenImageTransformerBlock": BlockSignature(
        **_TWO, returns="eh", modules={"attn": "attn", "mlp": "img_mlp", "context.mlp": "txt_mlp"}
    ),
    "SanaTransformerBlock": BlockSignature(modules=_CROSS),
    "WanTransformerBlock": BlockSignature(modules={**_CROSS, "mlp": "ffn"}),
    "ZImageTransformerBlock": BlockSignature("x", modules={"attn": "attention", "mlp": "feed_forward"}),
}
BLOCK_LISTS = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")  # refiners are no blocks


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a transformer in their order; [] if some are of no known class.

    Args:
        network: of diffusers.
    """
    lists = [getattr(network, name, None) for name in BLOCK_LISTS]
    blocks = [block for blocks in lists if isinstance(blocks, nn.ModuleList) for block in blocks]
    return blocks if all(type(block).__name__ in BLOCKS for block in blocks) else []


class BlockStream:
    """The tokens of a block as one tensor: encoder states, if it has them, before hidden states, [B, L + N, D].

    Args:
        block: of a class of BLOCKS.
    """

    def __init__(self, block: nn.Module):
        self.signature = BLOCKS[type(block).__name__]
        names = list(inspect.signature(type(block).forward).parameters)[1:]
        self.positions = {name: i for i, name in enumerate(names)}

    def read(self, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the tokens that a call is given."""
        return self._join(*self._given(args, kwargs))

    def write(self, args: Args, kwargs: Kwargs, value: Tensor) -> tuple[Args, Kwargs]:
        """Return the arguments of the call with other tokens."""
        hidden, encoder = self._given(args, kwargs)
        names, parts = (self.signature.hidden, self.signature.encoder), self._split(value, hidden, encoder)
        new = {name: states for name, states in zip(names, parts, strict=True) if name and states is not None}
        by_position = {self.positions[name]: states for name, states in new.items() if name not in kwargs}
        by_name = {name: new.get(name, given) for name, given in kwargs.items()}
        return tuple(by_position.get(i, arg) for i, arg in enumerate(args)), by_name

    def output(self, out: Any, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the tokens in what the block returned; encoder states that it leaves out are those it was given."""
        if self.signature.returns == "h":
            return self._join(out if isinstance(out, Tensor) else out[0], None)
        hidden, encoder = (out[self.signature.returns.index(name)] for name in "he")
        return self._join(hidden, self._given(args, kwargs)[1] if encoder is None else encoder)

    def replaced(self, value: Tensor, args: Args, kwargs: Kwargs) -> Any:
        """Return what the block would return with some tokens."""
        hidden, encoder = self._split(value, *self._given(args, kwargs))
        return {"h": hidden, "he": (hidden, encoder), "eh": (encoder, hidden)}[self.signature.returns]

    def blank(self, args: Args, kwargs: Kwargs) -> Any:
        """Return a stand-in for what a block returns that is left out: what it was given."""
        hidden, encoder = self._given(args, kwargs)
        return {"h": hidden, "he": (hidden, encoder), "eh": (encoder, hidden)}[self.signature.returns]

    def _given(self, args: Args, kwargs: Kwargs) -> tuple[Tensor, Tensor | None]:
        def get(name: str) -> Tensor | None:
            value: Tensor | None = None
            if name:
                value = kwargs[name] if name in kwargs else args[self.positions[name]]
            return value

        hidden = get(self.signature.hidden)
        assert hidden is not None
        return hidden, get(self.signature.encoder)

    @staticmethod
    def _join(hidden: Tensor, encoder: Tensor | None) -> Tensor:
        return hidden if encoder is None else torch.cat([encoder, hidden], 1)

    @staticmethod
    def _split(value: Tensor, hidden: Tensor, encoder: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if encoder is None:
            return value, None
        length = value.shape[1] - hidden.shape[1]
        return value[:, length:], value[:, :length]
