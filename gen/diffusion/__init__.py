"""The mathematics of continuous diffusion: paths, parameterisations, denoisers, the sampling loop, exact worlds."""
