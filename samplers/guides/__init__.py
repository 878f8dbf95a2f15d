"""Guides: rules that turn a denoiser into another one, for one sampling loop. Contract: gen.diffusion.contracts.Guide.

Scale 1 is the conditional model and 0 the unconditional one; outside its interval only the conditional network runs.
"""

OTHER_NAMES = {
    "AdaptiveProjectedGuidance": "apg",
    "ClassifierFreeGuidance": "cfg",
    "ClassifierFreeZeroStarGuidance": "cfg_zero",
    "SkipLayerGuidance": "skip_layers",
}
