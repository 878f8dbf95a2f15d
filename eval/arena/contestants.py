"""The models of an arena: folders of pictures, in which the same name is the same prompt or noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gen.config.errors import UserError

__all__ = ["MEDIA_TYPES", "Contestant", "contestants"]

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


@dataclass(frozen=True)
class Contestant:
    """A model's pictures.

    Attributes:
        name: of the model.
        pictures: file of each picture by its name, which the other models' pictures of the same prompt have too.
    """

    name: str
    pictures: dict[str, Path]


def contestants(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Contestant]:
    """List the pictures that all folders have.

    Pictures belong together by their path in the folder without its suffix; if no path is in all folders, by their
    position in the order of paths, which needs as many pictures in each.

    Args:
        folders: of .png, .jpg or .webp files at any depth; at least two.
        names: of the models; the folders' names by default.

    Raises:
        UserError: for a folder without pictures, two models of one name, or pictures that cannot be matched.
    """
    names = [folder.resolve().name for folder in folders] if names is None else list(names)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if len(folders) < 2 or len(names) != len(folders) or twice or not all(names):
        problem = f"the name {twice[0]!r} twice" if twice else f"{len(folders)} folders and {len(names)} names"
        raise UserError(f"{problem}; an arena needs two or more models, each with a name of its own")
    found = [_pictures(folder) for folder in folders]
    shared = set(found[0]).intersection(*found[1:])
    if not shared:
        if len({len(pictures) for pictures in found}) > 1:
            counts = ", ".join(f"{len(pictures)} in {folder}" for pictures, folder in zip(found, folders, strict=True))
            raise UserError(
                f"no picture's name is in all folders, and they have different numbers of pictures: {counts}"
            )
        found = [{f"{i:06d}": file for i, file in enumerate(pictures.values())} for pictures in found]
        shared = set(found[0])
    return [
        Contestant(name, {key: pictures[key] for key in sorted(shared)})
        for name, pictures in zip(names, found, strict=True)
    ]


def _pictures(folder: Path) -> dict[str, Path]:
    """Return a folder's pictures by their path without suffix, in the order of paths."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder of pictures")
    pictures: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in MEDIA_TYPES and file.is_file():
            key = file.relative_to(folder).with_suffix("").as_posix()
            if key in pictures:
                raise UserError(f"{folder} holds {pictures[key].name} and {file.name}; allowed: one of a name")
            pictures[key] = file
    if not pictures:
        raise UserError(f"{folder} holds no pictures ({', '.join(MEDIA_TYPES)})")
    return pictures
