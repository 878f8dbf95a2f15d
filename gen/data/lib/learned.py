"""The data that a model learned, as its checkpoint tells: pictures, or latents of a scale, or something else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Json, find

__all__ = ["latent_of", "latent_parts", "latent_scale", "learned_data", "no_pictures"]


def latent_scale(info: Json | None, folder: Path | None = None) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a checkpoint's latents, [C or 1, 1, 1] or [C, H, W] each: x = (latent - shift) scale.

    Args:
        info: the checkpoint's manifest; UserError for one of a model of images, or whose scale is in another file.
        folder: of the run or the checkpoint, where statistics of every position lie.
    """
    latent = latent_of(info)
    if latent.get("scale") is None:
        raise UserError("this model's samples are images already: there are no latents to decode")
    if latent.get("file") and folder is not None and info is not None:
        tensors = checkpoints.read_tensors(checkpoints.locate(folder), str(latent["file"]), info)
        return tensors["scale"], tensors["shift"]
    if isinstance(latent["scale"], str):
        raise UserError(f"the latents' scale is not known, only where it stands: {latent['scale']}; decode .x yourself")
    pair = (latent["scale"], latent.get("shift", 0.0))
    scale, shift = (torch.tensor(v, dtype=torch.float32).reshape(-1, 1, 1) for v in pair)
    return scale, shift


def latent_of(info: Json | None) -> Json:
    """Return what a checkpoint says of its latents: scale, shift, autoencoder, image_range; {} for other samples.

    Args:
        info: the checkpoint's manifest.
    """
    data = learned_data(info)
    return (info or {}).get("latent") or (data if data.get("name") == "latents" else {})


def latent_parts(source: object, parent: str | None) -> tuple[Json, dict[str, dict[str, Tensor]]]:
    """Return what the checkpoints of a run say of its latents, and the files of tensors that go with it; {} for none.

    Args:
        source: the run's data; those that are a teacher's own samples are as its latents.
        parent: folder of the teacher, or of the weights that the run starts from; None for none.
    """
    own: tuple[Json, dict[str, Tensor]] | None = getattr(source, "latent", None)
    if own is not None:
        about, tensors = own
    elif parent is None or not getattr(source, "generated", False):
        return {}, {}
    else:
        folder = checkpoints.locate(Path(parent))
        info = checkpoints.read(folder, verify=False)
        about = latent_of(info)
        tensors = checkpoints.read_tensors(folder, str(about["file"]), info) if about.get("file") else {}
    return about, {str(about["file"]): tensors} if tensors else {}


def learned_data(info: Json | None) -> Json:
    """Return the spec of the data that a model learned, {} for none.

    A student of pairs learned what its teacher did; the pairs are returned if the teacher is not there.

    Args:
        info: the checkpoint's manifest.
    """
    run = (info or {}).get("run") or {}
    while (run.get("data") or {}).get("name") == "pairs" and (parent := run.get("teacher") or run.get("init")):
        try:
            run = checkpoints.manifest_of(parent)["run"]
        except UserError:
            break
    return run.get("data") or {}


def no_pictures(shape: Sequence[int], data: Json | None = None, latent: bool = False, name: str = "the model") -> str:
    """Return the reason why samples are no pictures in [-1, 1], or "" if they are.

    Args:
        shape: of one sample, (C, H, W), or (C, T, H, W) of a film.
        data: spec of the data that were learned.
        latent: whether they are latents.
        name: of the model, for the message.
    """
    source = (data or {}).get("name", "")
    points = source and ":" not in source and not getattr(find(source, "data"), "pictures", True)
    points = points or (data or {}).get("value_range", ()) is None
    if not latent and not points and len(shape) in (3, 4) and shape[0] in (1, 3):
        return ""
    return (
        f"the samples of {name} are latents or other tensors {list(shape)}, no pictures: an autoencoder decodes latents"
    )
