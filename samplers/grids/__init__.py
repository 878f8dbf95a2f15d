"""Grids: the times that a sampling loop visits. Contract: gen.diffusion.contracts.Grid."""

OTHER_NAMES = {  # of diffusers' options timestep_spacing and use_..._sigmas, and of k-diffusion: docs/coming-from.md
    "get_sigmas_exponential": "exponential",
    "get_sigmas_karras": "karras",
    "leading": "timesteps",
    "linspace": "timesteps",
    "trailing": "timesteps",
}
