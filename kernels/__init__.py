"""Operations of networks, each with an exact reference and with fast back ends that may refuse a call.

torch and triton only. A folder is one idea. Its `__init__` lists what is public, op.py holds the ops, which check the
arguments and choose a back end, reference.py their formulas in float64, and the other files the back ends:

    activation          swiglu, gelu_tanh, rational
    attention           attention, attention_qkv, and the mask rules
    linear              linear, pack
    linear_attention    linear_attention
    linear_scan         linear_scan
    long_convolution    long_convolution
    norm                modulated_norm, gated_residual, gated_residual_norm
    rope                norm_rope
    s4d                 s4d_kernel
    selective_scan      selective_scan
    sequence_parallel   ulysses_attention, ring_attention, linear_attention over several processes
    short_convolution   short_convolution
    ssd                 ssd
    statistics          token_statistics

An op is imported from its folder, as in `from gen.kernels.attention import attention`: `gen.kernels.attention` is
always the folder, never the op, which may have the same name. dispatch.py says which back end answers a call, and
`explain` prints why.
"""

if __name__ != "gen.kernels":
    # transformers looks for a package of this name and asks for its version: whoever asks for more is told.
    __path__ = []

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError("import gen.kernels, not kernels")
