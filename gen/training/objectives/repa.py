"""REPA: denoising while inner tokens are aligned with a frozen encoder's view of the clean image."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError, nearest
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.alignment import Encoder, Features, Projector, negative_cosine, tokens_of
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.net import members
from gen.diffusion.tap import FeatureRecorder
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import Denoising

__all__ = ["REPA", "site_shape"]


@dataclass(frozen=True)
class REPA(Denoising):
    """Denoising plus weight times -cos(head(tokens at `site`), encoder(x)), mean over tokens (Yu et al. 2024).

    The head is a role of its own, and so a file of its own. The encoder is not saved and gets no gradient.

    Attributes:
        encoder: see gen.models.encoders; it gets the clean x.
        site: where tokens are taken, on the encoder's grid: "hidden.3" is after the fourth block. REPA aligns the 4th
            of B and the 8th of L and XL.
        weight: of the alignment loss; default the paper's.
        hidden: width of the head; default the paper's.
    """

    encoder: Any = part("models.encoders", default="digits_cnn")
    site: str = "hidden.3"
    weight: float = 0.5
    hidden: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, weight="[0, inf)", hidden="[1, inf)")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        self.check_net(net)
        count, width = site_shape(net, self.site)
        self.check_grid(count)
        return {"net": net, "head": Projector(width, self.encoder.dim, self.hidden)}

    def check_grid(self, count: int) -> None:
        """Raise UserError unless `count` tokens at the site fit the encoder's grid."""
        grid = self.encoder.grid
        if count != grid**2:
            raise UserError(
                f"{type(self).__name__}: {self.site} has {count} tokens and the encoder a grid of {grid} x {grid}: "
                "choose another site or encoder.grid, or the objective urepa, which resamples"
            )

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        features, batch = self.encode(batch)
        t, cond = self.draw(f, batch)
        recorder = FeatureRecorder((self.site,))
        denoising = self.losses(f, batch, cond, t, recorder).mean()
        alignment, logs = self.align(roles["head"].net, recorder.features[self.site], features)
        yield ("net", "head"), denoising + alignment, {"denoising": denoising, **logs}

    def align(self, head: nn.Module, h: Tensor, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted alignment loss of the site's value h, and the logs."""
        loss = negative_cosine(head(tokens_of(h)), features.tokens)
        return self.weight * loss, {"alignment": loss}

    def encode(self, batch: Batch) -> tuple[Features, Batch]:
        """Return the encoder's features of a clean batch, and the batch without the condition that it reads."""
        encoder, reads = loaded(self.encoder, str(batch.x.device)), getattr(self.encoder, "reads", None)
        with torch.no_grad():
            if reads is None:
                return encoder(batch.x), batch
            if reads not in batch.cond:
                given = ", ".join(batch.cond) or "nothing"
                raise UserError(
                    f"the encoder reads {reads!r}, which this data does not give beside x; it gives {given}"
                )
            cond = {k: v for k, v in batch.cond.items() if k != reads}
            return encoder(batch.cond[reads]), replace(batch, cond=cond)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the denoising loss alone, as of Denoising."""
        return super().validate(roles, self.encode(batch)[1])


@functools.cache
def loaded(encoder: Encoder, device: str) -> nn.Module:
    """Load the encoder once for each device."""
    return encoder.load(device)


def site_shape(net: Any, site: str) -> tuple[int, int]:
    """Return number and width of a network's tokens at a site, found on the meta device.

    Args:
        net: the network.
        site: of all tokens, not inside a block.

    Raises:
        UserError: for a site that is not there.
    """
    with torch.device("meta"):
        probe = net.spec.build()
        shape = members(probe).state_shape or ()
        recorder = FeatureRecorder()
        probe(torch.zeros(1, *shape), torch.zeros(1), {"y": torch.zeros(1, dtype=torch.int64)}, tap=recorder)
    sites = {k: v for k, v in recorder.features.items() if v.ndim in (3, 4) and not k.startswith("blocks.")}
    if site not in sites:
        raise UserError(f"the network has no tokens at {site!r}. {nearest(site, sites)}")
    _, count, width = tokens_of(sites[site]).shape
    return count, width
