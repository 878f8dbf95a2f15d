"""How a denoiser becomes samples.

solvers/ (one step), guides/ (denoiser -> denoiser), grids/ (which times).
"""

if __name__ != "gen.samplers":
    raise ImportError("import gen.samplers, not samplers")
