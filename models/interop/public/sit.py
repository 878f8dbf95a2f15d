"""willisma/SiT: SiT-XL-2-256.pt, and what its train.py saves (Ma et al. 2024). Names and shapes are those of DiT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gen.config.fields import check_fields
from gen.models.interop.lib.dit_layout import is_dit_layout, read_dit_layout
from gen.models.interop.lib.inferred import SDE, Conversion, cfg_spec
from gen.models.interop.lib.settings import check_model, grid_spec, ode_plan, transport, vae_latent
from gen.models.interop.weights import Weights
from gen.training.run import Run, Sampler

__all__ = ["SiTWeights"]


@dataclass(frozen=True)
class SiTWeights:
    """The velocity towards data of the linear path, whose t = 1 is the data, unless the file's settings say otherwise.

    Their path_type may be Linear, GVP or VP, their prediction velocity, noise or score. Guided by 1.5 on the first
    three channels, as its FID was measured.

    Attributes:
        heads: of attention; None for those of the settings or of the published sizes.
        classes: number of classes; None for the settings' or, where there are none, one less than the table has rows.
        sampler: "ode" for the solution that their adaptive dopri5 approximates, here by 62 steps of the classical rule,
            within its tolerance; on VP and for noise and score, where it is stiff and theirs ends at t = 0.001, by
            adaptive steps. "sde" for their Euler-Maruyama of w = sigma, 249 steps to t = 0.04 and one to data.
    """

    heads: int | None = None
    classes: int | None = None
    sampler: Literal["ode", "sde"] = "ode"

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", classes="[1, inf)")

    def claims(self, weights: Weights) -> bool:
        return is_dit_layout(weights, "SiT") and not any(name.startswith("projectors.") for name in weights.tensors)

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        check_model(weights, "SiT")
        path, parameterisation = transport(weights, "data", ("velocity", "noise", "score"))
        model, notes = read_dit_layout(weights, "SiT", self.heads, preset, classes=self.classes, time_convention="data")
        plan = SDE if self.sampler == "sde" else ode_plan(path, parameterisation)
        plan = plan | {"grid": grid_spec(plan["grid"], path, parameterisation)}
        sampler = Sampler(**plan, guide=cfg_spec(model, 1.5, channels=3))
        run = Run(model=model, path=path, parameterisation=parameterisation, sampler=sampler, ema=())
        return Conversion(run, weights.tensors, vae_latent(weights), notes=notes)
