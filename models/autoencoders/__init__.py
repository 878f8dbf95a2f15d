"""Autoencoders of latents: one file each, a frozen dataclass with load(device) -> nn.Module.

The module has encode(image) and decode(latent), between images [B, 3, H, W] in [-1, 1] and latents [B, C, h, w] as the
autoencoder itself scales them; what a denoiser scales and shifts on top of that is in its checkpoint. Pretrained
ones are read from a folder on this machine; nothing is downloaded.

`gen encode` keeps what moments(image) returns, if the module has it: {"mean", "logvar"} of a normal distribution of
latents, or {"latents"}; else those of encode. Its image_range, (-1, 1) without one, is that of the images inside. The
dataclass may have identity() -> dict of JSON values, by which latents know it: {"class", "config", "sha256"} of the
weights; else the class, its fields and the loaded weights stand for it.
"""
