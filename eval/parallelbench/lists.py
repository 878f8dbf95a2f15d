"""Lists of letters: the waiting line's ten tasks with items of one token, for models trained on gen.data.lists."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.data.lists import Lists
from gen.text import worlds
from gen.text.worlds import JointDistribution

__all__ = ["ListTask"]


@dataclass(frozen=True)
class ListTask:
    """One task of the data that a model was trained on, asked with prompts that it was not trained on.

    The replies of an exact model are known, and with them the best that any decoder can make of it
    (gen/eval/bounds.py).

    Attributes:
        task: a name of the data's tasks.
        data: that prompts are drawn from.
    """

    task: str = "copy"
    data: Lists = field(default_factory=Lists)

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "data", dataclasses.replace(self.data, tasks=(self.task,)))

    @property
    def label(self) -> str:
        return f"lists: {self.task.replace('_', ' ')}"

    @property
    def length(self) -> int:
        """Tokens of a reply, at most."""
        return self.data.answer

    def prompts(self, split: str = "test", n: int | None = None) -> list[str]:
        """Return n prompts (100), items 0 .. n - 1 of the split."""
        count = 100 if n is None else n
        if count < 1:
            raise UserError(f"ListTask: {count} prompts")
        self.data.open(split)  # refuses others than train and test
        return [" ".join(self.data.make(split, i)[0]) for i in range(count)]

    def score(self, prompt: str, reply: str) -> float:
        """Return 1 for a right answer, else 0."""
        return float(self.data.right(prompt.split(), reply.split()))

    def joints(self) -> Iterator[tuple[JointDistribution, float]]:
        """Yield the right replies to a list of each length, all alike likely, with their stop token; and the share."""
        for n in range(self.data.low, self.data.high + 1):
            texts = _replies(self.task, n)
            stop = torch.full((len(texts), 1), n + 1)
            whole = torch.cat([texts, stop], 1)
            yield JointDistribution(whole, torch.full((len(whole),), 1 / len(whole), dtype=torch.float64), n + 2), 1.0


def _replies(task: str, n: int) -> torch.Tensor:
    """Return replies [S, L] for a list 0 .. n - 1 and the new item n."""
    if task == "shuffle":
        return torch.tensor(list(itertools.permutations(range(n)))[1:])  # the first moves nothing
    if task.endswith("_random"):
        joint: JointDistribution = getattr(worlds, task.partition("_")[0] + "_joint")(n)
        return joint.support
    length = n + (task == "insert_index") - (task == "remove_index")
    return torch.arange(length)[None]
