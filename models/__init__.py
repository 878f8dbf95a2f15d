"""Denoisers: one file per family, each a frozen dataclass with build() -> nn.Module.

The network is called net(x, t, cond, *, s=None, tap=None) and returns a tensor like x; net.null(cond) is the
unconditional condition. layers/ holds what families share.
"""

if __name__ != "gen.models":
    raise ImportError("import gen.models, not models")
