"""A pipeline of diffusers from a folder on this machine: nothing is downloaded, unpickled or run from it."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from gen.config.errors import MissingDependency, UserError, nearest, shown
from gen.config.reading import read_json

__all__ = ["INDEX", "open_pipeline"]

INDEX = "model_index.json"
LIBRARIES = ("diffusers", "transformers")  # whose classes a folder may name; and modules of diffusers.pipelines
WEIGHTS = (".safetensors", ".safetensors.index.json")
HALF = ".fp16"  # before the suffix of weights that were saved as a variant
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5", ".onnx")


def open_pipeline(folder: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Any:
    """Load a pipeline as DiffusionPipeline.save_pretrained wrote it.

    The folder decides which classes of diffusers and transformers are built, and no more: names of other packages, code
    that lies in it, and weights that are no safetensors are refused before anything is loaded.

    Args:
        folder: with a model_index.json.
        dtype: of weights and computation; None for float32.
        device: of all parts.

    Raises:
        UserError: for a folder that is none, or holds what is not followed.
        MissingDependency: without diffusers or transformers.
    """
    _check_folder(folder)
    diffusers = _package("diffusers")
    libraries = _check(folder, diffusers)
    given: dict[str, Any] = {} if dtype is None else {"torch_dtype": dtype}
    given |= {} if (variant := _variant(folder)) is None else {"variant": variant}
    with _quiet(libraries):
        try:
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, **given
            )
        except Exception as error:  # of any kind: it depends on which part of the folder is wrong
            raise UserError(f"{folder}: diffusers cannot load it ({shown(str(error), 300)})") from error
    return pipe.to(device)


def _package(name: str) -> Any:
    """Return diffusers or transformers."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(
            f"pipelines of diffusers need {name} ({error}): pip install 'gen-diffusion[diffusers]' transformers"
        ) from None


def _check(folder: Path, diffusers: Any) -> list[Any]:
    """Refuse a folder that is no pipeline, or that names or holds what would be run; return the packages it needs."""
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} is no pipeline of diffusers: it holds no {INDEX}")
    index = read_json(folder / INDEX)
    kind = index.get("_class_name") if isinstance(index, dict) else None
    owner: Any = getattr(diffusers, kind, None) if isinstance(kind, str) else None
    if not (isinstance(owner, type) and issubclass(owner, diffusers.DiffusionPipeline)):
        raise UserError(f"{folder}: its class {shown(kind)} is no pipeline of diffusers {diffusers.__version__}")
    if getattr(owner, "_load_connected_pipes", False):
        raise UserError(f"{folder}: a {kind} is joined from folders that would be downloaded; load it yourself")
    parts = {name: value for name, value in index.items() if isinstance(value, list)}
    code = [file for place in (folder, *(folder / name for name in parts)) for file in sorted(place.glob("*.py"))]
    if code:
        raise UserError(f"{code[0]} is code, and nothing of a folder is run: load the pipeline yourself, and give it")
    libraries = {"diffusers": diffusers}
    for name, value in parts.items():
        library, part = value if len(value) == 2 else ("", value)
        if library is None and part is None:
            continue
        if library in LIBRARIES:
            libraries.setdefault(library, _package(library))
        known = libraries.get(library) or getattr(diffusers.pipelines, str(library), None)
        if known is None or not isinstance(getattr(known, str(part), None), type):
            raise UserError(
                f"{folder}: its {name} is {shown(value)}; a folder may name classes of {' and '.join(LIBRARIES)} "
                "alone. Load the pipeline yourself, and give it as an object"
            )
        _check_weights(folder / name)
    return list(libraries.values())


def _check_weights(part: Path) -> None:
    """Refuse weights that would be unpickled."""
    files = [file.name for file in part.glob("*")] if part.is_dir() else []
    if any(name.endswith(WEIGHTS) for name in files):
        return
    if pickles := sorted(name for name in files if name.endswith(PICKLES)):
        raise UserError(
            f"{part / pickles[0]} is no safetensors file, and others are not read: pipe.save_pretrained(...) of "
            "diffusers writes safetensors"
        )


def _check_folder(folder: Path) -> None:
    """Refuse a path that is no folder."""
    if folder.is_dir():
        return
    beside = [path.name for path in folder.parent.glob("*") if path.is_dir()] if folder.parent.is_dir() else []
    raise UserError(f"{folder} is no folder. {nearest(folder.name, beside)}" if beside else f"{folder} is no folder")


def _variant(folder: Path) -> str | None:
    """Return the word in the weights' names, "fp16", where a part has no others; None for plain names."""
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        names = [file.name for file in part.glob("*.safetensors")]
        if names and all(name.removesuffix(".safetensors").partition("-0")[0].endswith(HALF) for name in names):
            return HALF.removeprefix(".")
    return None


@contextlib.contextmanager
def _quiet(libraries: Iterable[Any]) -> Iterator[None]:
    """Leave out the bars and hints of loading."""
    loggers = [library.utils.logging for library in libraries]
    before = [logging.get_verbosity() for logging in loggers]
    bars = [logging.is_progress_bar_enabled() for logging in loggers]
    for logging in loggers:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logging, level, bar in zip(loggers, before, bars, strict=True):
            logging.set_verbosity(level)
            if bar:
                logging.enable_progress_bar()
