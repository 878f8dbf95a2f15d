"""Engines: how a trained network is evaluated fast. A frozen dataclass with prepare(net, device) -> nn.Module.

What they return is called like the network, has its sites for taps, and equals it within the rounding of its dtype; it
cannot be trained. Where a family's modulations depend on time and class alone, they come from one product, and a
sampling loop takes them all in advance (gen.diffusion.precompute).
"""
