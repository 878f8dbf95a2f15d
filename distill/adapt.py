"""Adaptation: a next-token model learns to fill masks, by Fast-dLLM v2's recipe or by Dream's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import build
from gen.data.text import Text
from gen.diffusion.denoiser import DenoiserLike
from gen.distillers.lib.answers import text_teacher
from gen.text.decoding import Decoding
from gen.text.mask_path import LogLinear
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Objective, Roles, Step
from gen.training.objectives.cart import Cart
from gen.training.objectives.fast_dllm import FastDLLM
from gen.training.optim.adamw import AdamW
from gen.training.run import Run

__all__ = ["Adapt"]


@dataclass(frozen=True)
class Adapt(Distiller):
    """Adaptation of a next-token model: its weights, with the shift that it was trained with, and another mask rule.

    The teacher is what `gen import` makes of a folder of Llama or Qwen.

    - fast_dllm (Wu et al. 2025, arXiv 2509.26328): blocks that see the blocks before them, two complementary copies of
      each text; decoded with the exact cache. Published for Qwen2.5-1.5B-Instruct: blocks of 32, 6000 updates of 256
      texts of 2048 tokens at 2e-5 (third-party summary; the training script is not public).
    - dream (Ye et al. 2025, arXiv 2508.15487): full attention, masked tokens weighted by their context
      (gen.training.objectives.cart). Published for Qwen2.5-7B: 580 billion tokens.

    Attributes:
        recipe: see above.
        block_size: tokens of a block of fast_dllm, at least 1; the paper's.
        text: files that it learns from, as of gen.data.text, by the teacher's own tokenizer; None for the data of the
            teacher's run, or of --data.
        length: tokens of their windows, at most; Fast-dLLM v2's.
    """

    recipe: Literal["fast_dllm", "dream"] = "fast_dllm"
    block_size: int = 32
    text: str | None = None
    length: int = 2048
    for_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, block_size="[1, inf)", length="[2, inf)")

    @property
    def loss(self) -> Objective:
        """The objective of the recipe."""
        return FastDLLM() if self.recipe == "fast_dllm" else Cart()

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the run that starts from the teacher's weights."""
        pipeline, blocks, data = text_teacher(teacher, type(self).__name__), self.recipe == "fast_dllm", run.data
        model, tokenizer = replace(run.model, block_size=self.block_size if blocks else None), pipeline.tokenizer
        if tokenizer is not None and hasattr(tokenizer, "with_files_in"):  # the student's folder has no copy
            model = replace(model, tokenizer=tokenizer.with_files_in(Path.cwd()))
        if self.text is not None:
            if tokenizer is None:
                raise UserError(f"Adapt: {teacher} has no tokenizer for text = {self.text}: give --data in its ids")
            data = Text(self.text, model.tokenizer or tokenizer, min(self.length, model.length))
        sampler = Decoding(kv_plan=build("samplers.kv_plans", "block") if blocks else None)
        return replace(
            run, model=model, data=data, objective=self, path=LogLinear(), teacher=None, init=str(teacher),
            sampler=sampler, optim=AdamW(lr=2e-5), steps=6000, batch_size=256, micro_batch_size=None, ema=(),
        )  # fmt: skip

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return self.loss.roles(net, teacher)

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        yield from self.loss(roles, batch)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        return self.loss.validate(roles, batch)

    def validate_all(self, roles: Roles, batches: Sequence[Batch]) -> float:
        return self.loss.validate_all(roles, batches)
