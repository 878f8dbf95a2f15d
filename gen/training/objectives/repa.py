"""REPA: denoising while inner tokens are aligned with a frozen encoder's view of the clean image."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError, nearest
from gen.config.spec import build, part
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

    site: a whole value of the network, "hidden.3" being the tokens after the fourth block; REPA aligns the 4th for B
    and the 8th for L and XL. Its tokens must lie on the encoder's grid. encoder: see gen.models.encoders; it is given
    the clean x, has no part in the checkpoint and gets no gradient. The head, hidden numbers wide, is a role of its
    own, and so a file of its own.
    """

    encoder: Any = part("models.encoders", default="digits_cnn")
    site: str = "hidden.3"
    weight: float = 0.5
    hidden: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "encoder", build("models.encoders", self.encoder))
        if self.weight < 0 or self.hidden < 1:
            name = type(self).__name__
            raise UserError(f"{name}: weight = {self.weight}, hidden = {self.hidden}; weight >= 0 and hidden >= 1")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        self.check_net(net)
        count, width = site_shape(net, self.site)
        self.check_grid(count)
        return {"net": net, "head": Projector(width, self.encoder.dim, self.hidden)}

    def check_grid(self, count: int) -> None:
        """Raises UserError unless `count` tokens at the site fit the encoder's."""
        grid = self.encoder.grid
        if count != grid**2:
            raise UserError(
                f"{type(self).__name__}: {self.site} has {count} tokens and the encoder a grid of {grid} x {grid}: "
                "choose another site or encoder.grid, or the objective urepa, which resamples"
            )

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        features, batch = self.look(batch)
        t, cond = self.draw(f, batch)
        record = FeatureRecorder((self.site,))
        flow = self.losses(f, batch, cond, t, record).mean()
        aligned, logs = self.align(roles["head"].net, record.features[self.site], features)
        yield ("net", "head"), flow + aligned, {"denoising": flow, **logs}

    def align(self, head: nn.Module, h: Tensor, features: Features) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted alignment loss of the site's value h, and what to log."""
        loss = negative_cosine(head(tokens_of(h)), features.tokens)
        return self.weight * loss, {"alignment": loss}

    def look(self, batch: Batch) -> tuple[Features, Batch]:
        """What the encoder sees of a clean batch, and the batch without what was stored for the encoder alone."""
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
        """The denoising loss alone, as of Denoising."""
        return super().validate(roles, self.look(batch)[1])


@functools.cache
def loaded(encoder: Encoder, device: str) -> nn.Module:
    """The encoder's weights, read once for each device."""
    return encoder.load(device)


def site_shape(net: Any, site: str) -> tuple[int, int]:
    """Tokens and width of a network's whole value, found on the meta device. UserError for a site that is not there."""
    with torch.device("meta"):
        probe = net.spec.build()
        shape = members(probe).state_shape or ()
        record = FeatureRecorder()
        probe(torch.zeros(1, *shape), torch.zeros(1), {"y": torch.zeros(1, dtype=torch.int64)}, tap=record)
    whole = {k: v for k, v in record.features.items() if v.ndim in (3, 4) and not k.startswith("blocks.")}
    if site not in whole:
        raise UserError(f"the network has no tokens at {site!r}. {nearest(site, whole)}")
    _, count, width = tokens_of(whole[site]).shape
    return count, width
