"""The autoencoder that a folder, a name or a spec stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gen.config.errors import UserError
from gen.config.spec import build, find, names

__all__ = ["autoencoder_spec", "build_autoencoder"]


def autoencoder_spec(given: object) -> object:
    """Return a spec, or whatever else was given, with a folder as the spec of what a run or diffusers saved there.

    Args:
        given: a folder, a name, a spec or an object.
    """
    if not isinstance(given, (str, Path)) or not str(given) or not Path(given).is_dir():
        return given
    ours = any((Path(given) / name).exists() for name in ("run.json", "manifest.json", "checkpoints"))
    return {"name": "trained" if ours else "diffusers", "folder": str(given)}


def build_autoencoder(given: object) -> Any:
    """Return the dataclass that loads an autoencoder.

    Args:
        given: the folder of one in diffusers' layout, or of a run that trained one; a name of gen.models.autoencoders,
            a spec, or an object with load().

    Raises:
        UserError: for anything else.
    """
    known = [name for name in names("models.autoencoders") if hasattr(find(name, "models.autoencoders"), "load")]
    if isinstance(spec := autoencoder_spec(given), (str, Path)) and str(spec) not in known and ":" not in str(spec):
        raise UserError(
            f"the autoencoder {str(spec)!r} is no folder; allowed: a folder, or a spec of {', '.join(known)}"
        )
    coder = build("models.autoencoders", spec)
    if not hasattr(coder, "load"):
        raise UserError(f"autoencoder = {given!r}; allowed: a folder, a name, a spec, or an object with load()")
    return coder
