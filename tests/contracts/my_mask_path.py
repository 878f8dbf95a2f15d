"""A mask path of one's own: the masked fraction rises as a cubic."""

from dataclasses import dataclass

from gen.text.mask_path import MaskPath


@dataclass(frozen=True)
class MyMaskPath(MaskPath):
    """m = t^3, weight 3 / t."""

    def masked_fraction(self, t):
        return t**3

    def rate(self, t):
        return 3 * t**2
