"""d3LLM (Qian et al. 2026, arXiv 2601.07568): LLaDA, Dream and Dream-Coder, distilled to decode many tokens at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import build
from gen.models.interop.lib.inferred import Conversion
from gen.models.interop.text.dream import DreamFolder
from gen.models.interop.text.llada import LLaDAFolder
from gen.models.interop.weights import Weights
from gen.text.decoding import Decoding

__all__ = ["D3LLMFolder"]


@dataclass(frozen=True)
class D3LLMFolder:
    """The network of `llada` or `dream`, whichever config.json says, decoded by entropy in several open blocks.

    It is never recognised, for its folders are like those of the models that it was distilled from: name it.

    Attributes:
        mask_token_id, eos_token_ids: as of `llada` and `dream`.
        threshold: entropy in nats up to which tokens are committed; None for the published .5 of LLaDA, .4 of Dream.
        add: share of a block that is committed when the next one opens; None for .5 and .1.
    """

    mask_token_id: int | None = None
    eos_token_ids: tuple[int, ...] | None = None
    threshold: float | None = None
    add: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, inf)", add="[0, 1]")

    def claims(self, weights: Weights) -> bool:
        return False

    def read(self, weights: Weights, preset: str | None) -> Conversion:
        llada = LLaDAFolder(self.mask_token_id, self.eos_token_ids)
        dream = DreamFolder(self.mask_token_id, self.eos_token_ids)
        if not llada.claims(weights) and not dream.claims(weights):
            raise UserError("config.json is neither of LLaDA nor of Dream, from which d3LLM's models were distilled")
        base, threshold, add = (llada, 0.5, 0.5) if llada.claims(weights) else (dream, 0.4, 0.1)
        threshold = threshold if self.threshold is None else self.threshold
        add = add if self.add is None else self.add
        how = Decoding(
            policy=build("samplers.decoding_policies", {"name": "entropy", "threshold": threshold}),
            block_schedule=build("samplers.block_schedules", {"name": "multi", "add": add}),
        )
        conversion = base.read(weights, preset)
        return replace(conversion, run=replace(conversion.run, sampler=how))
