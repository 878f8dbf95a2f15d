"""The times of a pipeline's own scheduler as a grid."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.path import NoisePath
from gen.models.interop.pipelines.call_checks import in_one_line
from gen.models.interop.pipelines.listening import Heard
from gen.models.interop.pipelines.schedule import start_of, times_of, with_steps

__all__ = ["OwnGrid"]


@dataclass(frozen=True)
class OwnGrid:
    """The times of a pipeline's own scheduler, with the shift that the pipeline gives it for its size.

    Attributes:
        scheduler: its class, of diffusers; its configuration lies in the pipeline's folder.
        heard: of the pipeline, which is called again for other numbers of steps.
    """

    scheduler: str
    heard: Heard = field(metadata={"saved": False}, compare=False, repr=False)
    _known: dict[int, tuple[Tensor, float]] = field(default_factory=dict, init=False, compare=False, repr=False)

    def times(self, path: NoisePath, steps: int) -> Tensor:
        return self._loop(path, steps)[0]

    def start_std(self, path: NoisePath, steps: int) -> float:
        """Return the standard deviation of the x that the pipeline begins with.

        Args:
            path, steps: as of `times`.
        """
        return self._loop(path, steps)[1]

    def _loop(self, path: NoisePath, steps: int) -> tuple[Tensor, float]:
        """Return times and start of a loop."""
        if steps not in self._known:
            heard = in_one_line(self.heard.pipe, lambda: with_steps(self.heard, steps))
            times = in_one_line(self.heard.pipe, lambda: times_of(heard))
            if float(times[0]) > path.t1:
                raise UserError(f"steps = {steps}: {self.scheduler} then begins above its last time; take fewer steps")
            self._known[steps] = times, start_of(heard)
        return self._known[steps]
