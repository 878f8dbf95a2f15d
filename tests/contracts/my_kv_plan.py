"""A KV plan of one's own: everything at the first steps of a window, then the window alone."""

from dataclasses import dataclass

import torch

from gen.text.contracts import KvPlan


@dataclass(frozen=True)
class MyKvPlan(KvPlan):
    """Computes all positions in the first `full` steps of each window; a large number is no cache."""

    full: int = 1

    def span(self, step):
        everything = step.index < self.full
        first = torch.where(everything, 0, step.window.start)
        return first, torch.where(everything, step.text_end, step.window.stop)
