"""Files of reference statistics: those of ADM, pytorch-fid, clean-fid, EDM, EDM2, MeanFlow, CMMD, and our own.

| file | keys |
|---|---|
| ADM (guided-diffusion) .npz | mu, sigma of pool3; mu_s, sigma_s of spatial features; arr_0: pictures for neighbours |
| pytorch-fid, clean-fid, EDM .npz | mu, sigma; clean-fid's _kid.npz feats |
| MeanFlow .npz | ref_mu, ref_sigma |
| EDM2 .pkl | {"fid": {mu, sigma}, "fd_dinov2": {mu, sigma}}, read as data, never unpickled |
| CMMD .npy | features [M, D] |
| `gen statistics` .npz | mu, sigma, mu_s, sigma_s, and "gen": extractor, number and digest of the pictures |

Nothing but our own says by which extractor it was computed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.formats import NEWEST, check_format
from gen.config.pickles import as_tensor
from gen.config.reading import file_sha256, parse_json
from gen.config.spec import Json
from gen.config.torch_file import read_torch
from gen.config.writing import replacing
from gen.eval.arrays import NpyRows, array_names, open_array
from gen.eval.image_sets import Images
from gen.eval.metrics.lib.moments import Moments

__all__ = ["Statistics", "is_statistics", "read_statistics", "write_statistics"]

KEYS = {"features": (("mu", "sigma"), ("ref_mu", "ref_sigma")), "spatial": (("mu_s", "sigma_s"),)}
EDM2 = {"dinov2": "fd_dinov2", "": "fid"}  # beginning of an extractor's name -> key
ABOUT = "gen"  # our own key
MAX_WIDTH = 16384  # of features: a covariance of more would take 2 GB
MAX_ABOUT = 2**22  # bytes of our own key


@dataclass(frozen=True, eq=False)
class Statistics:
    """The content of a file of statistics, each part for what it is for.

    Attributes:
        path: the file.
        moments: of features and of spatial features.
        features: of the reference images themselves, [M, D]; None without.
        images: pictures for what compares neighbours, which need not be those of the moments; None without.
        about: extractor, n, shape and digest of the pictures, where the file is one of ours; {} else.
        fingerprint: digest of the file.
    """

    path: Path
    moments: Mapping[str, Moments]
    features: Tensor | None = None
    images: Images | None = None
    about: Json = field(default_factory=dict)
    fingerprint: str = ""

    def assumed(self, extractor: str, sha256: str, stated: str | None = None) -> str:
        """Return what is assumed of the extractor of these statistics, "" if the file says it.

        Args:
            extractor: name of the one that samples are measured with.
            sha256: of its weights.
            stated: name of the one that the user says these were computed with.

        Raises:
            UserError: if it is another one.
        """
        own = self.about.get("extractor", {})
        known = (own.get("name"), own.get("sha256")) if own else (stated or extractor, sha256)
        if stated and not own and extractor.startswith(f"{stated} "):  # of which the first word is the plug-in's
            known = (extractor, sha256)
        if known != (extractor, sha256):
            theirs, ours = (f"{name} {str(digest)[:8]}".rstrip() for name, digest in (known, (extractor, sha256)))
            raise UserError(
                f"{self.path} was computed by {theirs}, the samples' features are of {ours}: not comparable"
            )
        if own or stated:
            return "" if own else f"computed by {stated}, as was stated"
        return f"computed by {extractor}: the file does not say by which"


def is_statistics(path: Path) -> bool:
    """Return whether a file holds statistics, beside or instead of pictures.

    Args:
        path: any path.
    """
    if path.suffix == ".npz" and path.is_file():
        return bool({"mu", "ref_mu", "feats", ABOUT} & set(array_names(path)))
    if path.suffix == ".npy" and path.is_file():
        rows = NpyRows(path)
        return len(rows.shape) == 2 and rows.dtype.kind == "f"
    return path.suffix == ".pkl" and path.is_file()


def read_statistics(path: Path, extractor: str = "") -> Statistics:
    """Read a file of statistics.

    Args:
        path: the file.
        extractor: name of the one that is used, which chooses among those of an EDM2 file.

    Raises:
        UserError: for what is none, or not finite, or no covariance.
    """
    sha256 = file_sha256(path)
    if path.suffix == ".npy":
        return Statistics(path, {}, torch.from_numpy(_array(NpyRows(path), path)), fingerprint=sha256)
    if path.suffix == ".pkl":
        return Statistics(path, _edm2(path, extractor), fingerprint=sha256)
    names = array_names(path)
    about = _about(path) if ABOUT in names else {}
    moments = {}
    for kind, pairs in KEYS.items():
        for pair in pairs:
            if set(pair) <= set(names):
                mean, covariance = (torch.from_numpy(_array(NpyRows(path, name), path)) for name in pair)
                moments[kind] = _moments(path, mean, covariance)
    features = torch.from_numpy(_array(NpyRows(path, "feats"), path)) if "feats" in names else None
    images = open_array(path, labelled=False) if "arr_0" in names else None
    return Statistics(path, moments, features, images, about, sha256)


def write_statistics(path: Path, moments: Mapping[str, Moments], about: Json) -> None:
    """Write a reference file that pytorch-fid, clean-fid, ADM's and EDM's evaluators read too.

    Args:
        path: an .npz file; replaced in one step.
        moments: of features and, if the extractor has them, of spatial features.
        about: extractor (name, sha256), n, shape, fingerprint and data of the pictures.
    """
    arrays: dict[str, Any] = {ABOUT: np.array(json.dumps({"format": NEWEST["statistics"], **about}, allow_nan=False))}
    for kind, ((mean, covariance), *_) in KEYS.items():
        if kind in moments:
            arrays |= {mean: moments[kind].mean.numpy(), covariance: moments[kind].covariance.numpy()}
    with replacing(path) as partial:
        np.savez(partial, **arrays)


def _about(path: Path) -> Json:
    """Return what a file of ours says of itself."""
    text = NpyRows(path, ABOUT)
    if text.shape or text.dtype.kind != "U" or text.dtype.itemsize > MAX_ABOUT:
        raise UserError(f"{path}: {ABOUT} is no text of ours")
    about = parse_json(str(np.load(path, allow_pickle=False)[ABOUT]), path)
    if isinstance(about, dict):
        check_format(about, NEWEST["statistics"], path)
    if not isinstance(about, dict) or not isinstance(about.get("extractor"), dict):
        raise UserError(f"{path}: {ABOUT} names no extractor")
    return about


def _array(rows: NpyRows, path: Path) -> np.ndarray:
    """Return a whole array of statistics; UserError for one that is none."""
    if rows.dtype.kind != "f" or len(rows.shape) not in (1, 2) or (rows.shape[-1] > MAX_WIDTH and len(rows.shape) == 2):
        raise UserError(f"{path}: {rows.dtype} {list(rows.shape)} is no mean, covariance or set of features")
    return rows.read(range(len(rows)))


def _moments(path: Path, mean: Tensor, covariance: Tensor) -> Moments:
    try:
        return Moments.of_covariance(mean, covariance)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _edm2(path: Path, extractor: str) -> dict[str, Moments]:
    """Return the moments of one extractor, of those that an EDM2 pickle holds."""
    held = read_torch(path)
    key = next(key for start, key in EDM2.items() if extractor.startswith(start))
    found = held.get(key) if isinstance(held, Mapping) else None
    if not isinstance(found, Mapping) or not {"mu", "sigma"} <= set(found):
        there = ", ".join(map(str, held)) if isinstance(held, Mapping) else type(held).__name__
        raise UserError(f"{path} has no {key} with mu and sigma; it holds {there}")
    mean, covariance = (as_tensor(found[name]) for name in ("mu", "sigma"))
    if mean is None or covariance is None:
        raise UserError(f"{path}: mu and sigma of {key} are no arrays of numbers")
    return {"features": _moments(path, mean, covariance)}
