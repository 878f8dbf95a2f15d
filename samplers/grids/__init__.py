"""Grids: the times that a sampling loop visits. Contract: gen.diffusion.contracts.Grid."""
