"""The mathematics of continuous diffusion: what this wing offers, with the module that defines it.

    The forward process      NoisePath (Flow, VP, DDPM, Trig, GVP, EDM), Prediction                         path
    A network's output       Parameterisation (X0, Eps, V, Velocity, Score, EDMPrecond)         parameterisation
    Networks                 the contract Net, of a NetSpec; members, unwrap                                 net
    Autoencoders             the contracts Autoencoder, AutoencoderNet; Posterior, Statistics        autoencoder
    Denoisers                the contract DenoiserLike; Denoiser, CountingDenoiser                      denoiser
    Inside a network         the contracts Tap, ContextualTap; FeatureRecorder, Skip ...                     tap
    Sampling                 integrate; the contracts Solver, Grid, Guide, Cache             sampling, contracts
    Training                 Times, Weighting                                                   times, weighting
    Random numbers           Noise, sample_seeds, training_noise, derive                                   noise
    Exact worlds             Gaussian, GaussianStages, Mixture                                            worlds
    Pyramids of stages       Decomposition (Laplacian, Haar, Cosine)                              decomposition
    Feature alignment        the contract Encoder; Projector, negative_cosine ...                      alignment

Time runs from t = 0 (data) to t = t1 (noise), everywhere.
"""

from gen.diffusion.contracts import Cache, Grid, Guide, Solver
from gen.diffusion.denoiser import Cond, CountingDenoiser, Denoiser, DenoiserLike
from gen.diffusion.net import Net, NetSpec, members, unwrap
from gen.diffusion.noise import Noise, derive, sample_seeds, training_noise
from gen.diffusion.parameterisation import Parameterisation
from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import ContextualTap, Tap
from gen.diffusion.times import Times
from gen.diffusion.weighting import Weighting
from gen.diffusion.worlds import Gaussian, Mixture

__all__ = [
    "Cache", "Cond", "ContextualTap", "CountingDenoiser", "Denoiser", "DenoiserLike", "Gaussian", "Grid", "Guide",
    "Mixture", "Net", "NetSpec", "Noise", "NoisePath", "Parameterisation", "Prediction", "Solver", "Tap", "Times",
    "Weighting", "derive", "integrate", "members", "sample_seeds", "training_noise", "unwrap",
]  # fmt: skip
