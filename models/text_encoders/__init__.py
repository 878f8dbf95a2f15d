"""Frozen encoders of text, whose embeddings of captions `gen encode --text` keeps beside latents: one file each.

Each is a dataclass with `load(device)`, which returns a module from captions, a list of B strings, to the embedding of
each token [B, T, D] and a mask, bool [B, T], that is False at padding; its attribute `truncated` counts the captions
that were cut. `identity()` says what decides the bits, as JSON. They are read from a folder on this machine, in the
layout of transformers' save_pretrained; nothing is downloaded.
"""
