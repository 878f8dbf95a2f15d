"""Coordinates along which predictors extrapolate. Contract: gen.samplers.caches.lib.parts.Coordinate."""
