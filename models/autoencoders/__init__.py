"""Autoencoders of latents: one file each, a frozen dataclass that keeps the contract gen.diffusion.autoencoder.

`trained` and `diffusers` have load(device) -> Autoencoder, for --autoencoder; the others are networks to be trained,
build() -> AutoencoderNet, and the folder of such a run is an autoencoder.
"""
