"""Autoencoders of latents: one file each, a frozen dataclass with load(device) -> nn.Module.

The module has encode(image) and decode(latent), between images [B, 3, H, W] in [-1, 1] and latents [B, C, h, w] as the
autoencoder itself scales them; what a denoiser scales and shifts on top of that is in its checkpoint. Pretrained
ones are read from a folder on this machine; nothing is downloaded.
"""
