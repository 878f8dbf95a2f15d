"""Guides: frozen objects that turn a denoiser into another one, f' = guide(f, times), for one walk down a grid of
times.

Scale 1 is the conditional model and 0 the unconditional one; outside its interval only the conditional network runs.
A guide may name the options in use that need a whole sampling loop (`loop_options`: part of its steps, momentum): a
distiller evaluates its teacher at single times and refuses them.
"""
