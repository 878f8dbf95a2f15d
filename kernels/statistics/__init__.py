"""Statistics of logits for decoding: the two likeliest tokens, log-sum-exp and entropy, in one pass.

token_statistics is the op and TokenStatistics its result. Back ends: chunked.py (PyTorch), and Triton in
triton_kernels.py and triton_launch.py. reference.py has the formulas in float64.
"""

from gen.kernels.statistics.call import TokenStatistics
from gen.kernels.statistics.op import token_statistics

__all__ = ["TokenStatistics", "token_statistics"]
