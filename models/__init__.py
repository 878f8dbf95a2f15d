"""Denoisers: one file per family, each a frozen dataclass (the spec) with build() -> nn.Module (the network).

Every network keeps the contract gen.diffusion.net.Net: net(x, t, cond, *, s=None, tap=None) returns a tensor like x,
and net.null(cond) is the unconditional condition. Families inherit gen.models.layers.family, those shaped like DiT
gen.models.layers.patch, and networks that wrap another (energy, flow_map, reparameterised, pruned, cooperative)
gen.models.layers.wrapper. A network of one's own needs none of these bases.

layers/ has the shared parts, engines/ fast evaluation, encoders/ and autoencoders/ frozen networks of other tasks,
interop/ other libraries' weights and networks.
"""

if __name__ != "gen.models":
    raise ImportError("import gen.models, not models")
