"""Frozen encoders that denoisers are aligned with: one file each, a gen.diffusion.alignment.Encoder.

Each loads a module from images [B, C, H, W] in [-1, 1] to gen.diffusion.alignment.Features, without gradients.
Pretrained ones are read from a folder on this machine, in the layout of transformers' save_pretrained; nothing is
downloaded.
"""
