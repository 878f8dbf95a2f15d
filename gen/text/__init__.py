"""Masked diffusion of text: mask paths, predictors, the decoding loop and its parts, exact joint distributions."""
