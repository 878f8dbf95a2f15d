"""Operations of networks, each with an exact reference and with fast back ends that may refuse a call.

torch and triton only. A folder is one idea. Its `__init__` lists what is public; op.py has the ops, which check their
arguments and complete them to a call (call.py) for the back ends; reference.py has their formulas in float64; the other
files are the back ends, Triton's in triton_kernels.py and triton_launch.py:

    activation              swiglu, gelu_tanh, rational
    attention               attention, packed_attention, and the mask rules
    gated_linear_attention  gated_linear_attention
    linear                  linear, pack
    linear_attention        linear_attention
    linear_scan             linear_scan
    long_convolution        long_convolution
    norm                    modulated_norm, gated_residual, gated_residual_norm
    rope                    norm_rope
    s4d                     s4d_kernel
    selective_scan          selective_scan
    sequence_parallel       ulysses_attention, ring_attention, lasp2_attention over several processes
    short_convolution       short_convolution
    ssd                     ssd
    statistics              token_statistics

An op is imported from its folder, as in `from gen.kernels.attention import attention`: `gen.kernels.attention` is
always the folder, never the op, which may have the same name. dispatch.py chooses the back end of a call, and its
`explain` prints why.
"""

if __name__ != "gen.kernels":
    # transformers looks for a package of this name and asks for its version; any other name is an error.
    __path__ = []

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError("import gen.kernels, not kernels")
