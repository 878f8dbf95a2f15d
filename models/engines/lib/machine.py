"""A machine's figures, of which the costs of computing and of exchanging are predicted."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.fields import check_fields

__all__ = ["Machine"]


@dataclass(frozen=True)
class Machine:
    """One process's share of a machine.

    Attributes:
        flops: floating-point operations per second that large products reach.
        bandwidth: bytes per second that it sends, while it receives as many.
        latency: seconds that an exchange takes whatever its size.
        launch: seconds that a product of matrices, a convolution or attention takes whatever its size.
        overlap: whether what is sent travels while the process computes; on a CPU it takes the core that computes.
        contention: how many times as long as alone a product takes while all processes compute.
        score: seconds that a pair of a query and a key takes beside its operations in a ring, for a head, where no
            kernel computes it, which is so on a CPU.
    """

    flops: float
    bandwidth: float
    latency: float = 0.0
    launch: float = 0.0
    overlap: bool = True
    contention: float = 1.0
    score: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            flops="(0, inf)",
            bandwidth="(0, inf)",
            latency="[0, inf)",
            launch="[0, inf)",
            contention="[1, inf)",
            score="[0, inf)",
        )

    def alone(self, flops: float, products: float) -> float:
        """Return the seconds of so many operations in so many products, while no other process computes."""
        return flops / self.flops + products * self.launch

    def together(self, flops: float, products: float) -> float:
        """Return the seconds of so many operations in so many products, while all processes compute."""
        return self.contention * self.alone(flops, products)

    def exchange(self, sent: float, exchanges: int) -> float:
        """Return the seconds of so many exchanges, of so many bytes together."""
        return sent / self.bandwidth + exchanges * self.latency

    def beside(self, work: float, exchange: float) -> float:
        """Return the seconds of work and of an exchange that is not waited for until it is done."""
        return max(work, exchange) if self.overlap else work + exchange
