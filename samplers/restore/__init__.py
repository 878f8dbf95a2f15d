"""Restoration with a prior that was never trained for it, where no guide says it: whole loops of their own.

    volume   DiffusionMBIR: volumes, by a prior of slices and total variation between them

A plug-in is a frozen dataclass with `restore(denoise, y, operator, shape, noise, cond=None) -> x`: y = A x + noise of
an operator of gen.operators, x of `shape` (B, C, H, W), `noise` with a seed for each row.
"""
