"""Shared parts of the autoencoders of LDM: levels, their network, and its tensors' names there and in diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.models.autoencoders.lib.network import Network

__all__ = ["LEVELS", "PUBLISHED", "LDMNetwork", "check_levels", "ldm_config", "ldm_name", "to_diffusers", "to_ldm"]

PUBLISHED: Json = {"width": 128, "blocks": 2, "groups": 32, "size": 256, "channels": 3}
# levels by how much smaller latents are; attention where those of 256 x 256 pictures are 16 x 16 and smaller
LEVELS: Mapping[str, Json] = {
    "f4": {"multipliers": (1, 2, 4)},
    "f8": {"multipliers": (1, 2, 4, 4)},
    "f16": {"multipliers": (1, 1, 2, 2, 4), "attention_levels": (4,)},
    "f32": {"multipliers": (1, 1, 2, 2, 4, 4), "attention_levels": (4, 5)},
}


class LDMNetwork(Network):
    """Base of the networks around diffusers' AutoencoderKL and VQModel.

    Args:
        spec: the dataclass that `check_levels` checked.
        net: of diffusers.
    """

    def __init__(self, spec: Any, net: Any) -> None:
        super().__init__(spec)
        self.net = net
        self.channels, self.stride = spec.latent_channels, 2 ** (len(spec.multipliers) - 1)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last convolution."""
        weight: nn.Parameter = self.net.decoder.conv_out.weight
        return weight

    @property
    def latent_layer(self) -> nn.Parameter:
        """The weight of the encoder's last convolution."""
        weight: nn.Parameter = self.net.encoder.conv_out.weight
        return weight


def check_levels(spec: Any) -> None:
    """Check the fields of an autoencoder with levels; UserError for sizes that they do not divide.

    Args:
        spec: the dataclass, with size, width, multipliers, groups and attention_levels.
    """
    one = dict.fromkeys(("size", "channels", "latent_channels", "width", "multipliers", "blocks"), "[1, inf)")
    check_fields(spec, classes="[0, inf)", groups="[1, width]", scale="(0, inf)", **one)
    levels = len(spec.multipliers)
    if any(not 0 <= level < levels for level in spec.attention_levels):
        raise UserError(
            f"{type(spec).__name__}.attention_levels {spec.attention_levels} must be in [0, {levels - 1}] for "
            f"multipliers {spec.multipliers}"
        )
    sides = spec.size if isinstance(spec.size, tuple) else (spec.size, spec.size)
    factor = 2 ** (levels - 1)
    if spec.width % spec.groups or any(side % factor for side in sides):
        raise UserError(
            f"{type(spec).__name__}: width = {spec.width} must be a multiple of groups = {spec.groups}, and size = "
            f"{spec.size} of {factor}, by which {levels} multipliers make latents smaller"
        )


def ldm_config(spec: Any) -> Json:
    """Return the config of diffusers' AutoencoderKL or VQModel.

    Args:
        spec: the dataclass that `check_levels` checked.
    """
    attends = [level in spec.attention_levels for level in range(len(spec.multipliers))]
    return {
        "in_channels": spec.channels,
        "out_channels": spec.channels,
        "down_block_types": tuple(f"{'Attn' if own else ''}DownEncoderBlock2D" for own in attends),
        "up_block_types": tuple(f"{'Attn' if own else ''}UpDecoderBlock2D" for own in reversed(attends)),
        "block_out_channels": tuple(spec.width * factor for factor in spec.multipliers),
        "layers_per_block": spec.blocks,
        "latent_channels": spec.latent_channels,
        "norm_num_groups": spec.groups,
        "sample_size": spec.size if isinstance(spec.size, int) else max(spec.size),
        "mid_block_add_attention": spec.attention,
    }


def to_diffusers(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Return tensors of LDM under diffusers' names; attention's weights, 1 x 1 convolutions there, become matrices.

    Args:
        tensors: by LDM's names.
        levels: number of levels; LDM counts the decoder's from the latents' end, diffusers from its own beginning.
    """
    renamed = {_diffusers_name(name, levels): value for name, value in tensors.items()}
    return {
        name: value[..., 0, 0] if _is_matrix(name) and value.ndim == 4 else value for name, value in renamed.items()
    }


def to_ldm(tensors: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Return tensors of diffusers under LDM's names.

    Args:
        tensors: by diffusers' names.
        levels: number of levels.
    """
    return {
        ldm_name(name, levels): value[..., None, None] if _is_matrix(name) else value for name, value in tensors.items()
    }


# (diffusers' names, LDM's), {0} and {1} numbers, of parts of a level and of the middle
PARTS = (
    ("mid_block.resnets.0.", "mid.block_1."),
    ("mid_block.resnets.1.", "mid.block_2."),
    ("mid_block.attentions.0.", "mid.attn_1."),
    ("down_blocks.{0}.resnets.{1}.", "down.{0}.block.{1}."),
    ("down_blocks.{0}.attentions.{1}.", "down.{0}.attn.{1}."),
    ("down_blocks.{0}.downsamplers.0.", "down.{0}.downsample."),
    ("up_blocks.{0}.resnets.{1}.", "up.{0}.block.{1}."),
    ("up_blocks.{0}.attentions.{1}.", "up.{0}.attn.{1}."),
    ("up_blocks.{0}.upsamplers.0.", "up.{0}.upsample."),
    ("conv_norm_out.", "norm_out."),
)
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def ldm_name(name: str, levels: int) -> str:
    """Return LDM's name of a tensor of diffusers.

    Args:
        name: such as "encoder.down_blocks.0.resnets.1.conv1.weight".
        levels: number of levels.
    """
    return _renamed(name, levels, PARTS, ATTENTION, ("conv_shortcut", "nin_shortcut"))


def _diffusers_name(name: str, levels: int) -> str:
    parts = tuple((theirs, ours) for ours, theirs in PARTS)
    return _renamed(name, levels, parts, {b: a for a, b in ATTENTION.items()}, ("nin_shortcut", "conv_shortcut"))


def _renamed(
    name: str, levels: int, parts: tuple[tuple[str, str], ...], attention: Mapping[str, str], shortcut: tuple[str, str]
) -> str:
    side, _, inner = name.partition(".")
    for old, new in parts if side in ("encoder", "decoder") else ():
        pattern = re.escape(old).replace(r"\{0\}", r"(\d+)").replace(r"\{1\}", r"(\d+)")
        if (match := re.match(pattern, inner)) is None:
            continue
        numbers = [int(number) for number in match.groups()]
        if old.startswith("up"):
            numbers[0] = levels - 1 - numbers[0]
        rest = inner[match.end() :]
        if "attn" in old + new:
            part, _, kind = rest.rpartition(".")
            rest = f"{attention.get(part, part)}.{kind}"
        return f"{side}.{new.format(*numbers)}{rest.replace(*shortcut)}"
    return name


def _is_matrix(name: str) -> bool:
    """Return whether a tensor of diffusers is a weight of attention, a matrix."""
    return re.search(r"\.attentions\.\d+\.to_\w+(\.0)?\.weight$", name) is not None
