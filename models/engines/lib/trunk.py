"""Networks of tokens of which only the trunk is computed in parts, with everything before and after it whole."""

from __future__ import annotations

from torch import Tensor

from gen.diffusion.tap import Compute, Tap, call_site

__all__ = ["trunk_in_parts"]


def trunk_in_parts(tap: Tap | None, local: Compute, gather: Compute) -> Tap:
    """Return the tap that computes "trunk" for a part of the tokens, between two steps that cut and join them.

    Args:
        tap: called at every site; inside "trunk" it sees the part.
        local: from all tokens [B, T, width] to the part's.
        gather: from the part's tokens back to all, [B, T, width].
    """

    def part_of_trunk(site: str, compute: Compute, h: Tensor) -> Tensor:
        def own_part(h: Tensor) -> Tensor:
            return gather(compute(local(h)))

        return call_site(tap, site, own_part if site == "trunk" else compute, h)

    return part_of_trunk
