"""bytetriper/RAE: stage2_model.pt of DiT^DH or of the plain DiT on its latents, and ep-*.pt (Zheng et al. 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.models.dit_dh import DiTDH
from gen.models.interop.lib.dit_layout import read_dit_layout
from gen.models.interop.lib.inferred import Conversion, Reader, build_spec, check_pos_embed
from gen.models.interop.lib.rope_table import check_rope, head_width
from gen.models.interop.lib.settings import transport
from gen.models.interop.weights import State, Weights
from gen.models.lightning_dit import LightningDiT
from gen.training.run import Run, Sampler

__all__ = ["RAEWeights"]

BASE = 4096  # numbers of a latent for which the grid of times is even
LATENT = {
    "autoencoder": "nyu-visionx/RAE-collections",
    "scale": "1 / sqrt(var + 1e-5), per channel and position, of stat.pt in the same repository",
    "shift": "mean, per channel and position, of the same file",
    "image_range": [0.0, 1.0],
}


@dataclass(frozen=True)
class RAEWeights:
    """The velocity towards noise, whose t = 1 is the noise, of latents normalised per channel and position.

    Sampled by 49 Euler steps between 50 times, shifted to noise by the root of a latent's numbers over 4096, of which
    the last is not 0 but 0.001 before the shift; unguided: the published guide is a second, smaller model.

    Attributes:
        head_depth: number of the head's blocks, where it is as wide as the rest; None to read it off the weights.
    """

    head_depth: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, head_depth="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        return "t_embedder.W" in weights.tensors and "pos_embed" in weights.tensors

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        tensors = weights.tensors
        path, parameterisation = transport(weights, "noise", ("velocity",))
        if "s_embedder.proj.weight" in tensors:
            model, notes = self._wide(tensors, preset)
        else:
            model, notes = read_dit_layout(
                weights, "RAE", None, preset, owner=LightningDiT, mlp="w12", time="gaussian", time_convention="noise"
            )
        shift = max(1.0, math.sqrt(model.channels * model.size**2 / BASE))  # they never shift towards data
        sampler = Sampler(solver="euler", steps=49, grid={"name": "shift", "shift": shift, "stop": 0.001})
        run = Run(model=model, path=path, parameterisation=parameterisation, sampler=sampler, ema=())
        return Conversion(run, tensors, LATENT, notes=notes)

    def _wide(self, tensors: State, preset: str | None) -> tuple[DiTDH, tuple[str, ...]]:
        """Read DiT^DH: the rotary tables show the heads, and the widths where the head begins."""
        reader = Reader(tensors, "RAE")
        width, channels, patch, _ = reader.shape("s_embedder.proj.weight", 4)
        head, _, _, _ = reader.shape("x_embedder.proj.weight", 4)
        side, note = check_pos_embed(reader, width)
        count = reader.count("blocks")
        wide = [i for i in range(count) if reader.shape(f"blocks.{i}.adaLN_modulation.1.weight", 2)[1] == head]
        depth = count - (len(wide) if width != head else self._head_depth(count))
        dims = {name: head_width(reader, name) for name in ("enc_feat_rope", "dec_feat_rope")}
        fields = {
            "size": side * patch,
            "patch": patch,
            "channels": channels,
            "classes": reader.classes(),
            "width": width,
            "depth": depth,
            "heads": reader.ratio(width, dims["enc_feat_rope"], "enc_feat_rope"),
            "head_width": head,
            "head_depth": count - depth,
            "head_heads": reader.ratio(head, dims["dec_feat_rope"], "dec_feat_rope"),
            "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        }
        notes = [check_rope(reader, name, dim, side) for name, dim in dims.items()]
        return build_spec(DiTDH, preset, fields), (note, *notes)

    def _head_depth(self, count: int) -> int:
        if self.head_depth is None:
            raise UserError(
                f"how many of the {count} blocks are the head's cannot be read off the weights, which are all as wide: "
                'say it, as in --from \'{"name": "rae", "head_depth": 2}\''
            )
        return self.head_depth
