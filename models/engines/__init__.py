"""Engines: how a trained network is evaluated fast; one file each.

An engine is a frozen dataclass with prepare(net, device) -> nn.Module. The result is called like the network, has its
sites for taps, equals it within the rounding of its dtype, and cannot be trained. Any gen.diffusion.net.Net will do; a
dtype other than float32 is used only if the network names it in `compute_dtypes`. If the modulations of a family depend
on time and class alone, they come from one product, and a sampling loop takes them all in advance
(gen.diffusion.precompute).
"""
