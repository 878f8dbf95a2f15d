"""Mamba's selective scan, in any order of the tokens.

Back ends: chunked.py (a CPU's), pytorch.py (every device and every derivative), and Triton in triton_kernels.py and
triton_launch.py. reference.py is the recurrence in float64.
"""

from gen.kernels.selective_scan.op import selective_scan

__all__ = ["selective_scan"]
