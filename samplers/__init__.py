"""Samplers: solvers (one step), grids (times), guides (denoiser -> denoiser), feature caches, schedule search.

And, for text, decoding policies, block schedules, KV plans, stopping rules.
"""

if __name__ != "gen.samplers":
    raise ImportError("import gen.samplers, not samplers")
