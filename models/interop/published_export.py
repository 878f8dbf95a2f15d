"""Export to published formats: a file that `gen import --from ORIGIN` reads back to the same model, to the bit."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from gen.config.errors import UserError
from gen.config.spec import Json, find, name_of, names, spec_of
from gen.config.writing import replacing
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.net import unwrap
from gen.models.interop.checkpoints import FOLDER
from gen.models.interop.lib.inferred import Conversion, Origin
from gen.models.interop.weights import read
from gen.pipeline import load

__all__ = ["export_published"]

FOLDERS = ("diffusers", "unet2d")  # which are more than a file
CONVENTIONS = ("path", "parameterisation")
TRAINING = ("dropout", "lr_scale")  # fields that change nothing once a model is trained


def export_published(run: str | Path, out: str | Path, origin: str, *, weights: str | None = None) -> Json:
    """Write a model's weights as an origin publishes them, and return the spec that imports them again.

    What an origin keeps in another file, RAE's stat.pt, is written beside it as STEM-FIELD.pt, which the spec names.
    The file is read back before it gets its name, so that what an origin cannot say is refused and never lost.

    Args:
        run: folder of a run or of one checkpoint.
        out: the new file, .pt or .safetensors.
        origin: a name of gen.models.interop.public but diffusers, whose folder is another thing.
        weights: label of an average, or "raw"; None for the first average.

    Raises:
        UserError: in one line, for a model that no file of the origin can be; then nothing is written.
    """
    out, known = Path(out), [name for name in names(FOLDER) if name != "diffusers"]
    if origin not in known:
        raise UserError(f"no file of {origin!r} can be written; allowed: diffusers, {', '.join(known)}")
    if out.exists() or out.suffix not in (".pt", ".safetensors"):
        raise UserError(f"{out}: give a new file that ends in .pt or .safetensors")
    f: Any = getattr(load(run, weights), "denoiser", None)
    if not isinstance(f, Denoiser):
        raise UserError(f"{run} is no network for images, and only those are published as {', '.join(known)}")
    owner, spec = find(origin, FOLDER), unwrap(f.net).spec
    unseen = {field.name for field in dataclasses.fields(owner)}  # what weights do not show
    ours = {**vars(f.path), **vars(spec)}
    try:
        chosen: Any = owner(**{name: value for name, value in ours.items() if name in unseen})
    except UserError as error:
        unlabelled = "classes" in unseen and not ours.get("classes", 1)
        reason = "it has no labels, and models there always take one" if unlabelled else error
        raise UserError(f"{run}, a {type(spec).__name__}, cannot be a file of {origin}: {reason}") from None
    state = {name: value.detach().cpu().clone() for name, value in f.net.state_dict().items()}
    more: dict[str, Json] = chosen.beside(state) if hasattr(chosen, "beside") else {}
    beside = {field: out.with_name(f"{out.stem}-{field}.pt") for field in more}
    if there := [str(file) for file in beside.values() if file.exists()]:
        raise UserError(f"{', '.join(there)} is there already, which would be written beside {out}")
    with ExitStack() as stack:
        partial, written = stack.enter_context(replacing(out)), dict[str, str]()
        for field, content in more.items():
            file = stack.enter_context(replacing(beside[field]))
            torch.save(content, file)
            written[field] = str(file)
        if out.suffix == ".pt":
            torch.save(getattr(chosen, "publish", dict)(state), partial)
        else:
            from safetensors.torch import save_file

            save_file(state, partial)
        _check_same(f, state, dataclasses.replace(chosen, **written), partial, run)
    return spec_of(dataclasses.replace(chosen, **{field: str(file) for field, file in beside.items()}))


def _check_same(f: Denoiser, state: dict[str, torch.Tensor], origin: Origin, file: Path, run: str | Path) -> None:
    """Raise UserError unless the file is read as this very model."""
    name, spec = name_of(type(origin)), unwrap(f.net).spec
    try:
        back: Conversion = origin.read(read(file, claims=origin.claims), None)
    except UserError as error:
        kind = type(spec).__name__
        raise UserError(f"{run}, a {kind}, cannot be a file of {name}: {str(error).replace(str(file), 'it')}") from None
    theirs, ours = spec_of(back.run.model), spec_of(spec)
    fields = [key for key in ours if key not in TRAINING and ours[key] != theirs.get(key)]
    differing = [f"{key} {ours[key]!r} (there {theirs.get(key)!r})" for key in fields]
    pairs = {key: (getattr(f, key), getattr(back.run, key)) for key in CONVENTIONS}
    differing += [f"{key} {spec_of(a)} (there {spec_of(b)})" for key, (a, b) in pairs.items() if a != b]
    if differing:
        raise UserError(f"{run} cannot be a file of {name}, which does not say {', '.join(differing)}")
    if back.tensors.keys() != state.keys() or not all(torch.equal(back.tensors[k], v) for k, v in state.items()):
        raise UserError(f"{run} cannot be a file of {name}: its weights would come back otherwise")
