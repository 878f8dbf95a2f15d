"""Restoration by a prior that was never trained for it: samples that agree with a measurement y = A x + noise.

    exact, pigdm, dps, ddnm, diffpir   any solver, with a prediction that is moved towards the measurement
    sdedit                             a first guess, noised and denoised
    repaint                            what is known put in at every level, with jumps back up
    flow_dps                           a flow's x0 moved towards the measurement, its eps towards fresh noise
    pnp_flow, red_diff                 estimates: plug-and-play steps, and optimisation under a denoiser
    d_flow                             the noise whose sample agrees with the measurement
    ddrm                               a step for each singular direction
    volume                             DiffusionMBIR: volumes, by slices and total variation between them
    red_psm                            RED-PSM: films of few measurements a frame, by a product of low rank

A plug-in is a frozen dataclass with `restore`; contract: lib.restorer.Restorer.
"""
