"""Networks whose blocks are divided into stages, in a sampling loop that remembers keys and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.tap import Compute, Context, ContextualTap, Tap
from gen.kernels.sequence_parallel.collectives import Traffic
from gen.kernels.sequence_parallel.stages import Stages, stage_blocks
from gen.models.layers.wrapper import Wrapper

__all__ = ["StageEvaluation", "StageSettings", "StagedNet"]


class StageSettings(Protocol):
    """The fields of gen.models.engines.pipefusion.PipeFusion."""

    @property
    def warmup(self) -> int:
        """The number of synchronous steps."""
        ...

    @property
    def patches(self) -> int | None:
        """The number of patches, or None."""
        ...

    @property
    def synchronous(self) -> bool:
        """Return whether all steps are."""
        ...

    @property
    def parts(self) -> int | None:
        """The number of stages on one process, or None."""
        ...


@dataclass
class StageEvaluation:
    """One evaluation of the network in a loop.

    Attributes:
        kept: keys and values of all tokens by layer; those of patches that have passed are fresh.
        synchronous: whether the whole sample passes at once.
        keep: whether a later evaluation may use them.
        patch: the one that passes now.
    """

    kept: dict[Any, Any]
    synchronous: bool
    keep: bool
    patch: int = 0


class StagedNet(Wrapper):
    """A network of which each process computes some blocks, or one process all of them, called like it.

    Args:
        net: the network.
        engine: settings.
        stages: what patches pass through.
        depth: number of blocks.

    Attributes:
        site: inside which an evaluation's patches pass.
        patches: number of them.
        own: numbers of the blocks that this process computes.
        about: numbers of patches and stages, in words.
        evaluation: the one at hand; outside a loop a synchronous one.
    """

    fixed_batch = splits_samples = True
    site: ClassVar[str]

    def __init__(self, net: nn.Module, engine: StageSettings, stages: Stages, depth: int):
        if stages.stages > depth:
            raise UserError(f"the engine 'pipefusion': {depth} blocks do not make {stages.stages} stages")
        super().__init__(net.spec)
        self.engine, self.stages = engine, stages
        self.patches = stages.stages if engine.patches is None else engine.patches
        self.own = range(depth) if engine.parts else stage_blocks(stages.stage, stages.stages, depth)
        where = f"{stages.stages} {'stages in one process' if engine.parts else 'processes'}"
        self.about = f"pipefusion ({self.patches} patches, {where})"
        self.evaluation = StageEvaluation({}, synchronous=True, keep=False)

    @property
    def traffic(self) -> Traffic:
        """The bytes that this process has sent."""
        return self.stages.traffic

    def start_loop(self, steps: int, session: ContextualTap | None) -> ContextualTap:
        """Return the tap of one sampling loop, which holds keys and values; see `StageLoop`.

        Args:
            steps: of the loop.
            session: a cache's, which is refused with a UserError: each process has other blocks.
        """
        if session is not None:
            raise UserError("the engine 'pipefusion' takes no cache, since each process has other blocks: "
                            "leave the cache out, or take the engine 'patches'")  # fmt: skip
        return StageLoop(self, steps)

    def evaluate(self, evaluation: StageEvaluation, compute: Callable[[], Tensor]) -> Tensor:
        """Return what is computed within an evaluation of a loop."""
        before, self.evaluation = self.evaluation, evaluation
        try:
            return compute()
        finally:
            self.evaluation = before

    def check_tokens(self, tokens: int, gradients: bool) -> None:
        """Raise UserError for gradients that stages would not pass on, and for tokens that do not divide.

        Args:
            tokens: of a sample.
            gradients: whether they are wanted.
        """
        if gradients and not (self.evaluation.synchronous and self.engine.parts):
            raise UserError("the engine 'pipefusion' passes no gradients on: sample under torch.no_grad()")
        if tokens % self.patches:
            raise UserError(f"the engine 'pipefusion': {tokens} tokens do not divide into {self.patches} patches")


@dataclass(eq=False)
class StageLoop:
    """A contextual tap for one batch's loop: keys and values of the own blocks, apart for each branch and stage.

    Attributes:
        net: that is evaluated.
        steps: of the loop.
        kept: by branch and stage of the solver's step, and by layer.
    """

    net: StagedNet
    steps: int
    kept: dict[tuple[str, int], dict[Any, Any]] = field(default_factory=dict, init=False)

    def bind(self, context: Context) -> Tap:
        """Return the tap of one evaluation."""
        engine, kept = self.net.engine, self.kept.setdefault((context.branch, context.stage), {})
        evaluation = StageEvaluation(
            kept,
            synchronous=engine.synchronous or context.step < engine.warmup or not kept,
            keep=not engine.synchronous and context.step < self.steps - 1,
        )

        def own(site: str, compute: Compute, h: Tensor) -> Tensor:
            return self.net.evaluate(evaluation, lambda: compute(h)) if site == self.net.site else compute(h)

        return own
