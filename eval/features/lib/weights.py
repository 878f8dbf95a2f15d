"""Files of an extractor's weights: read as data, whatever their format, and never fetched."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import MissingDependency, UserError
from gen.config.pickles import as_tensor, module_state
from gen.config.reading import file_sha256, package_file
from gen.config.torch_file import describe_start, read_torch

__all__ = ["check_shapes", "check_suffix", "read_state", "required_file", "tensors_sha256"]


DEPTH = 8  # of mappings within mappings


def check_suffix(path: Path) -> str:
    """Return a file's sha256; UserError if its name ends in -XXXXXXXX, as torch.hub has it, and it begins otherwise.

    Args:
        path: the file.
    """
    sha256 = file_sha256(path)
    named = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if named and not sha256.startswith(named[1]):
        raise UserError(f"{path} has sha256 {sha256[:16]}..., its name says {named[1]}: it is damaged, fetch it again")
    return sha256


def read_state(path: str | Path, wanted: str) -> tuple[dict[str, Tensor], str]:
    """Read a state dict from safetensors, torch.save or TorchScript; nothing in the file is run.

    Args:
        path: the file; MissingDependency if it is not there.
        wanted: what it should hold and where that comes from, for errors.

    Returns:
        Tensors by name, dotted where mappings are nested, and the file's sha256.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise MissingDependency(f"{path} is not there: it should hold {wanted}")
    sha256 = check_suffix(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path), sha256
        except SafetensorError as error:
            what = describe_start(path) or f"damaged, or no safetensors file ({error})"
            raise UserError(f"{path} is {what}; expected {wanted}") from None
    content = read_torch(path)
    content = module_state(content) or content
    while isinstance(content, Mapping) and isinstance(inner := content.get("state_dict"), Mapping):
        content = inner
    state = dict(_tensors(content))
    if not state:
        raise UserError(f"{path} holds no tensors by name; expected {wanted}")
    return state, sha256


def _tensors(content: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested mappings with their dotted names."""
    for name, item in content.items() if isinstance(content, Mapping) else ():
        if (tensor := as_tensor(item)) is not None:
            yield f"{prefix}{name}", tensor
        elif prefix.count(".") < DEPTH:
            yield from _tensors(item, f"{prefix}{name}.")


def check_shapes(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: object) -> None:
    """Raise UserError unless a state dict has exactly these names and shapes, and finite numbers.

    Args:
        state: tensors by name.
        shapes: expected, by name.
        source: of the tensors, for errors.
    """
    for what, names in (("misses", shapes.keys() - state.keys()), ("has besides", state.keys() - shapes.keys())):
        if names:
            few = ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")
            raise UserError(f"{source} is of another network: it {what} {len(names)} tensors ({few})")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise UserError(f"{source} is of another network: {name} is {list(state[name].shape)}, not {list(shape)}")
        if not bool(torch.isfinite(state[name]).all()):
            raise UserError(f"{source} is damaged: {name} holds numbers that are not finite")


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, shapes and float32 numbers, which is the same for every format of file.

    Args:
        state: tensors by name.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{list(tensor.shape)}".encode())
        raw: Any = tensor.reshape(-1).numpy()
        digest.update(raw)
    return digest.hexdigest()


def required_file(package: str, inner: str, install: str) -> Path:
    """Return the path of a file within an installed package, which is not imported.

    Args:
        package: its import name.
        inner: path within it.
        install: how to install it, for MissingDependency.
    """
    file = package_file(package, inner)
    if file is None:
        raise MissingDependency(f"{inner} of the package {package} is not there: {install}")
    return file
