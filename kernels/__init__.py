"""Operations with one public function each, a slow exact version in reference.py, and backends that may refuse.

torch and triton only. attention.py, rope.py, norm.py, activation.py, linear_attention.py, convolution.py,
state_space.py and statistics.py hold the functions; dispatch.py says which backend answers a call, and `explain` prints
why.
"""

if __name__ != "gen.kernels":
    # transformers looks for a package of this name and asks for its version: whoever asks for more is told.
    __path__ = []

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError("import gen.kernels, not kernels")
