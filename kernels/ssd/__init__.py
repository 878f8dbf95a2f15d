"""Mamba-2's scan, with one decay for all of a head's state.

Back ends: pytorch.py, as masked attention and in chunks, and Triton in triton_kernels.py and triton_launch.py.
reference.py is the recurrence in float64.
"""

from gen.kernels.ssd.op import ssd

__all__ = ["ssd"]
