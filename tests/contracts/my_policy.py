"""A decoding policy of one's own, in the fewest lines: `gen decode RUN --policy tests.contracts.my_policy:MyPolicy`.

Nothing here is registered anywhere. It imports the contract for its defaults; `BarePolicy` does without.
"""

from dataclasses import dataclass

from gen.text.contracts import CommitDecision, DecodingPolicy


@dataclass(frozen=True)
class MyPolicy(DecodingPolicy):
    """Commits the first masks of the window, so many at a step."""

    count: int = 1

    def select(self, view, state):
        return CommitDecision(view.masked & (view.masked.cumsum(1) <= self.count)), state


class BarePolicy:
    """The same, one token at a step, without the contract as a base: it has every member."""

    may_skip = order_depends_on_samples = edits = False

    def init(self, rows, length):
        return {}

    def select(self, view, state):
        return CommitDecision(view.masked & (view.masked.cumsum(1) == 1)), state
