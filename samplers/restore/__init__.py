"""Restoration by a prior that was never trained for it: samples that agree with a measurement y = A x + noise.

    exact, pigdm, dps, ddnm, diffpir   any solver, with a prediction that is moved towards the measurement
    sdedit                             a first guess, noised and denoised
    repaint                            what is known put in at every level, with jumps back up
    ddrm                               a step for each singular direction
    volume                             DiffusionMBIR: volumes, by slices and total variation between them
    red_psm                            RED-PSM: films of few measurements a frame, by a product of low rank

A plug-in is a frozen dataclass with `restore`; contract: lib.restorer.Restorer.
"""
