"""Feature caches: leave out what need not be computed at every step. Contract: gen.diffusion.contracts.Cache.

policies/ decide at which evaluations to compute, predictors/ what to use otherwise, coordinates/ along what they
extrapolate (gen.samplers.caches.lib.parts); the files of this folder are the published combinations with a site, and
`custom` is any other. Each has one field that turns it off, to the bit: interval = 1, threshold = 0 or keep = 1.
"""
