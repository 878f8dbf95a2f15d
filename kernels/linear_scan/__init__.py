"""The linear recurrence h_t = a_t h_(t-1) + b_t.

Back ends: pytorch.py, as a sequential scan and as an associative one in logarithmic depth. reference.py is the
recurrence in float64.
"""

from gen.kernels.linear_scan.op import linear_scan

__all__ = ["linear_scan"]
