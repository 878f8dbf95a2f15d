"""Guides: frozen objects that turn a denoiser into another one, f' = guide(f, times), for one walk down a grid of
times.

Scale 1 is the conditional model and 0 the unconditional one; outside its interval only the conditional network runs.
"""
