"""Feature caches: what need not be computed at every step of a sampling loop.

A cache is a frozen dataclass with start(steps) -> run. The run is a tap with a place (gen.diffusion.tap.ContextualTap):
the loop tells it before every evaluation which step, stage and branch this is, so nothing ever counts calls, and one
cache serves any number of loops. `run.report()` says what was computed. when/ decides at which evaluations, what/ what
to put in place of what is not computed, along/ in which coordinate; the files of this folder are the published
combinations with a site, and `custom` is any other. Each has one field that turns it off, to the bit: interval = 1,
threshold = 0 or keep = 1. Those with a method `calibrated(report)` first need a run that computes everything and
measures.
"""
