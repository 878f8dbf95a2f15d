"""Operations with one public function each, a slow exact version in reference.py, and backends that may refuse.

torch and triton only.
"""

if __name__ != "gen.kernels":
    raise ImportError("import gen.kernels, not kernels")
