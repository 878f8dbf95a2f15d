"""Settings that a training wrote beside its weights: the path, the meaning of the output, the model's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.diffusion.parameterisation import Eps, Parameterisation, Score, Velocity
from gen.diffusion.path import GVP, VP, Flow, NoisePath
from gen.models.interop.lib.inferred import SD_VAE
from gen.models.interop.weights import Weights

__all__ = ["check_model", "grid_spec", "model_name", "said", "said_number", "transport", "vae_latent"]

PATHS: Mapping[str, NoisePath] = {"linear": Flow(), "gvp": GVP(), "cosine": GVP(), "vp": VP()}
PREDICTIONS = {"velocity": "velocity", "v": "velocity", "noise": "noise", "score": "score"}


def said(weights: Weights, *keys: str) -> Any:
    """Return the first of some settings that is there, in the section nearest to the top; None without any.

    Args:
        weights: the file's.
        *keys: names of the setting.
    """
    sections: list[Mapping[str, Any]] = [weights.settings]
    for section in sections:  # which grows
        sections += [value for value in section.values() if isinstance(value, Mapping)]
    found = [section[key] for key in keys for section in sections if section.get(key) is not None]
    return found[0] if found else None


def said_number(weights: Weights, key: str) -> int | None:
    """Return a setting that is a whole number; None without one, or for a list of several.

    Args:
        weights: the file's.
        key: name of the setting.
    """
    found = said(weights, key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def transport(weights: Weights, toward: Any, allowed: tuple[str, ...]) -> tuple[NoisePath, Parameterisation]:
    """Return the path and the parameterisation of SiT and its descendants; those of the linear velocity by default.

    Args:
        weights: the file's.
        toward: direction of the velocity, "data" or "noise".
        allowed: predictions that the origin knows; UserError for another one.
    """
    path, kind = str(said(weights, "path_type") or "linear").lower(), said(weights, "prediction") or "velocity"
    prediction = PREDICTIONS.get(str(kind).lower())
    if path not in PATHS or prediction not in allowed:
        raise UserError(
            f"the file's settings: path_type {path}, prediction {kind}; "
            f"allowed: {', '.join(PATHS)} with {', '.join(allowed)}"
        )
    outputs = {"velocity": Velocity(toward=toward), "noise": Eps(), "score": Score()}
    return PATHS[path], outputs[prediction]


def grid_spec(grid: Json, path: NoisePath, parameterisation: Parameterisation) -> Json:
    """Return a linear grid's spec that starts below t1 where the output does not determine the data at t1, as SiT does.

    Args:
        grid: the spec.
        path, parameterisation: the model's.
    """
    late = not isinstance(parameterisation, Velocity) and not isinstance(path, VP)
    return grid | ({"start": 0.999} if late else {})


def ode_plan(path: NoisePath, parameterisation: Parameterisation) -> Json:
    """Return a sampler's spec for the ODE that SiT integrates: to the data, or to 0.001 where it ends there.

    Args:
        path, parameterisation: the model's.
    """
    if isinstance(parameterisation, Velocity) and not isinstance(path, VP):
        return {"solver": "rk4", "steps": 62, "grid": {"name": "linear"}}
    adaptive: Json = {"name": "adaptive", "rtol": 1e-4, "atol": 1e-5}
    return {"solver": adaptive, "steps": 1, "grid": {"name": "linear", "stop": 0.001}}


def model_name(weights: Weights) -> str | None:
    """Return the family that the settings name, such as "SiT" of "SiT-XL/2"; None if they name none.

    Args:
        weights: the file's.
    """
    name = said(weights, "model_type", "model")
    family = name.partition("-")[0] if isinstance(name, str) else None
    known = family if family in ("DiT", "SiT", "LightningDiT") else None
    return known or ("SiT" if "path_type" in weights.settings else None)


def check_model(weights: Weights, expected: str) -> None:
    """Raise UserError if the settings name another family.

    Args:
        weights: the file's.
        expected: the family, such as "DiT".
    """
    named = model_name(weights)
    if named not in (None, expected):
        raise UserError(f"the file's settings are of a {named}, not of a {expected}: give --from {named.lower()}")


def vae_latent(weights: Weights) -> Json:
    """Return how latents of Stable Diffusion's autoencoder become images, by the autoencoder that the settings name.

    Args:
        weights: the file's.
    """
    vae = said(weights, "vae")
    return SD_VAE | ({"autoencoder": f"stabilityai/sd-vae-ft-{vae}"} if vae in ("ema", "mse") else {})
