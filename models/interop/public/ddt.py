"""MCG-NJU/DDT: Lightning's .ckpt with `denoiser.` and `ema_denoiser.` in its state dict (Wang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.models.ddt import DDT
from gen.models.interop.lib.inferred import LAST_STEP, SD_VAE, Conversion, Reader, build_spec, cfg_spec, published_heads
from gen.models.interop.lib.settings import said_number
from gen.models.interop.weights import State, Weights
from gen.training.run import Run, Sampler

__all__ = ["DDTWeights"]


@dataclass(frozen=True)
class DDTWeights:
    """The velocity towards data; t = 1 is the data.

    Sampled by 250 Euler steps of which the last is 0.04 long, guided on all channels for t < 0.7, by 2 and, for images
    of 512 pixels, by 3, as the repository's settings say.

    Attributes:
        size: of the latents, which the weights do not show: 32 for 256 pixels, 64 for 512.
        patch: side of a patch, which the weights do not show.
        encoder: number of the encoder's blocks; None for that of the settings or of the published depths.
    """

    size: int = 32
    patch: int = 2
    encoder: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, size="[1, inf)", patch="[1, inf)", encoder="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        names = weights.tensors
        return "x_embedder.proj.weight" in names and "blocks.0.mlp.w1.weight" in names and "pos_embed" not in names

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        reader = Reader(weights.tensors, "DDT")
        if "s_embedder.proj.weight" not in weights.tensors:
            raise UserError("these are weights of DDT's plain DiT, without an encoder (no s_embedder): not read here")
        width, numbers = reader.shape("x_embedder.proj.weight", 2)
        depth = reader.count("blocks")
        encoder = self._encoder(width, depth, preset, said_number(weights, "num_encoder_blocks"))
        gain = "blocks.0.attn.q_norm.weight"
        dim = reader.shape(gain, 1)[0] if gain in weights.tensors else None
        fields = {
            "size": self.size,
            "patch": self.patch,
            "channels": reader.ratio(numbers, self.patch**2, "x_embedder.proj.weight"),
            "classes": reader.classes(),
            "width": width,
            "encoder": encoder,
            "decoder": depth - encoder,
            "heads": published_heads(DDT.presets, None, width=width) if dim is None else reader.ratio(width, dim, gain),
            "qk_norm": dim is not None,
        }
        model = build_spec(DDT, preset, fields)
        guide = cfg_spec(model, 3.0 if self.size > 32 else 2.0, until=0.7)
        sampler = Sampler(solver="euler", steps=250, grid=LAST_STEP, guide=guide)
        run = Run(model=model, path=Flow(), parameterisation=Velocity(toward="data"), sampler=sampler, ema=())
        said = f"size {self.size} and patch {self.patch} are not in the weights: as --from has them"
        return Conversion(run, weights.tensors, SD_VAE, notes=(said, f"encoder of {encoder} blocks"))

    def publish(self, state: State) -> Json:
        """Return the content of a file of these weights."""
        return {"state_dict": {f"ema_denoiser.{name}": value for name, value in state.items()}}

    def _encoder(self, width: int, depth: int, preset: str | None, given: int | None) -> int:
        if self.encoder is not None:
            return self.encoder
        if given is not None and 0 < given < depth:
            return given
        if preset is not None:
            return DDT.preset(preset).encoder
        rows = DDT.presets.values()
        known = {r["encoder"] for r in rows if (r["width"], r["encoder"] + r["decoder"]) == (width, depth)}
        if len(known) == 1:
            return int(known.pop())
        raise UserError(
            f"how many of the {depth} blocks are the encoder's cannot be read off the weights, and no published model "
            f'has width {width} and so many: say it, as in --from \'{{"name": "ddt", "encoder": 22}}\''
        )
