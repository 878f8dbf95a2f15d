"""Frozen encoders of text, whose embeddings of captions `gen encode --text` keeps beside latents: one file each.

Each is a dataclass with `load(device)`, which returns a module from captions, a list of B strings, to tensors by their
key of cond: "text" [B, T, D], the embedding of each token; "text_mask", bool [B, T], False at padding; and "pooled"
[B, P], one vector for all of a caption, where the encoder has one. The module's attribute `truncated` counts the
captions that were cut. `identity()` says what decides the bits, as JSON. They are read from a folder on this machine,
in the layout of transformers' save_pretrained; nothing is downloaded.
"""
