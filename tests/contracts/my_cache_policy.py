"""A user's cache policy, outside gen: the steps that a number divides."""

from dataclasses import dataclass

from gen.samplers.caches.lib.parts import CachePolicy


@dataclass(frozen=True)
class MyCachePolicy(CachePolicy):
    interval: int = 3

    def decide(self, context, state, h, out):
        full = state is None or context.step < 2 or context.step % self.interval == 0
        return [full], True
