"""U-REPA: alignment for U-Nets, whose middle has fewer tokens than the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.alignment import Features, manifold, negative_cosine, resample, tokens_of
from gen.training.objectives.repa import REPA

__all__ = ["UREPA"]


@dataclass(frozen=True)
class UREPA(REPA):
    """REPA in the middle of a U-Net, whose loss has the manifold loss in it (Tian et al. 2025, equation 5).

    The head's tokens are resampled bilinearly to the encoder's grid; the encoder's are not.

    Attributes:
        site: see REPA.
        manifold_weight: of the manifold loss within the alignment's, which `weight` multiplies; default the paper's.
        pairs: which tokens the manifold loss compares: those of one sample ("intra") or of the whole batch ("all").
    """

    site: str = "middle"
    manifold_weight: float = 3.0
    pairs: Literal["intra", "all"] = "intra"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, manifold_weight="[0, inf)")

    def check_grid(self, count: int) -> None:
        if round(count**0.5) ** 2 != count:
            raise UserError(f"UREPA: {self.site} has {count} tokens, which are no square grid: choose another site")

    def align(self, head: nn.Module, h: Tensor, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        projected = resample(head(tokens_of(h)), self.encoder.grid)
        cosine = negative_cosine(projected, features.tokens)
        angles = manifold(projected, features.tokens, self.pairs)
        return self.weight * (cosine + self.manifold_weight * angles), {"alignment": cosine, "manifold": angles}
