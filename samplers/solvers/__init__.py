"""Solvers: frozen rules for one step from time t to s. Contract: gen.diffusion.sampling.Solver.

A file holds one solver, first in `__all__`; tests/test_every.py then measures its order on an exact mixture, counts its
evaluations, and checks that a sample does not depend on its batch.
"""

OTHER_NAMES = {  # of diffusers and k-diffusion: docs/coming-from.md
    "CogVideoXDDIMScheduler": "ddim",
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ancestral",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp",
    "DPMSolverSinglestepScheduler": "dpmpp_single",
    "EDMEulerScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "ancestral",
    "EulerDiscreteScheduler": "euler",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "LCMScheduler": "renoise",
    "PNDMScheduler": "pndm",
    "UniPCMultistepScheduler": "unipc",
    "sample_dpm_adaptive": "adaptive",
    "sample_dpmpp_2m": "dpmpp",
    "sample_dpmpp_2m_sde": "dpmpp_sde",
    "sample_dpmpp_3m_sde": "dpmpp_sde",
    "sample_euler": "euler",
    "sample_euler_ancestral": "ancestral",
    "sample_heun": "heun",
}
