"""Models on Hugging Face's hub: fetched by a name with its revision, put there by `gen push`; nothing else connects.

Only what a checkpoint's manifest names, and records, are fetched: safetensors and JSON, verified by their sha256. A
model that was fetched is a folder whose name says from where and of which commit; naming the commit needs no network
a second time.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gen.config import checkpoints
from gen.config.errors import MissingDependency, UserError, shown
from gen.config.reading import read_json
from gen.config.spec import Json, sealed
from gen.config.writing import write_json

__all__ = ["PREFIX", "check_repository", "local_folder", "upload", "write_weights"]

PREFIX = "hf:"
KINDS = (".safetensors", ".json")
COMMIT, RECORD = r"[0-9a-f]{40}", r"eval/[\w.-]+\.json"
REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def local_folder(name: str | Path) -> Path:
    """Return the folder of a model: the path itself, or that of what is fetched for "hf:owner/name@revision".

    Args:
        name: a path, or a name on the hub, whose revision is a commit, a tag or a branch; what a tag or branch stands
            for is printed.

    Raises:
        UserError: for a name without revision, and for what cannot be fetched or is no model of gen's.
    """
    if not str(name).startswith(PREFIX):
        return Path(name)
    repository, at, revision = str(name).removeprefix(PREFIX).partition("@")
    check_repository(repository)
    if not at or not revision:
        raise UserError(
            f"{name} names no revision, and what a branch holds may change: give {PREFIX}{repository}@COMMIT, or a tag "
            "or branch, such as @main, whose commit is printed"
        )
    kept = sorted(_cache().glob(f"{repository.replace('/', '--')}@*"))
    where = f", or {kept[-1]}, the folder of the one that is here" if kept else ""
    offline = f". A commit that was fetched before needs no network: {PREFIX}{repository}@ and its 40 hex digits{where}"
    with _one_line(str(name), offline):
        commit = (
            revision if re.fullmatch(COMMIT, revision) else _hub().HfApi().model_info(repository, revision=revision).sha
        )
        folder = _cache() / f"{repository.replace('/', '--')}@{commit[:12]}"
        if not folder.is_dir():
            _fetch(repository, commit, folder)
    if commit != revision:
        print(f"{name} is commit {commit}: {PREFIX}{repository}@{commit} is always that one", file=sys.stderr)
    return folder


def check_repository(name: str) -> None:
    """Raise UserError for what is no name of a repository.

    Args:
        name: "owner/name".
    """
    if not re.fullmatch(REPOSITORY, name) or "--" in name or ".." in name:
        raise UserError(f"{shown(name)} is no name on the hub; allowed: owner/name of letters, digits, -, _ and .")


def write_weights(checkpoint: Path, out: Path) -> Json:
    """Copy a checkpoint without the state of its training.

    Args:
        checkpoint: its folder; every byte is verified.
        out: a new folder.

    Returns:
        The manifest that was written.

    Raises:
        UserError: for files that nobody could fetch again.
    """
    manifest = checkpoints.read(checkpoint)
    files = {name: about for name, about in manifest["files"].items() if not name.startswith("state/")}
    if other := [name for name in files if not name.endswith(KINDS)]:
        raise UserError(f"{checkpoint} holds {', '.join(other)}: on the hub only safetensors and JSON are read")
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint / name, out / name)
    kept = sealed({key: value for key, value in {**manifest, "files": files}.items() if key != "sha256"})
    write_json(out / "manifest.json", kept)
    return kept


def upload(folder: Path, repository: str, public: bool) -> str:
    """Upload a folder's files in one commit, and return the name by which `gen.load` fetches it.

    Args:
        folder: all of it is uploaded; files of the same names are replaced, others stay.
        repository: "owner/name", which is created if it is not there.
        public: whether a new one can be seen by everyone; it is private otherwise. An old one stays as it is.
    """
    with _one_line(f"{PREFIX}{repository}"):
        api = _hub().HfApi()
        api.create_repo(repository, private=not public, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by gen push")
    return f"{PREFIX}{repository}@{commit.oid}"


def _fetch(repository: str, commit: str, folder: Path) -> None:
    """Fetch a model into a folder that is not there, or leave nothing."""
    hub = _hub()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
        given: Any = {"revision": commit, "local_dir": partial}
        there = {file.rfilename for file in hub.HfApi().model_info(repository, revision=commit).siblings}
        if "manifest.json" not in there:
            raise UserError(
                f"{PREFIX}{repository}@{commit} holds no model of gen's (no manifest.json); of published weights "
                "download the files, and gen import them"
            )
        manifest = read_json(Path(hub.hf_hub_download(repository, "manifest.json", **given)))
        named = manifest.get("files") if isinstance(manifest, dict) else None
        wanted = [name for name in there if name in (named or ()) or re.fullmatch(RECORD, name)]
        for name in sorted(name for name in wanted if name.endswith(KINDS)):
            hub.hf_hub_download(repository, name, **given)
        shutil.rmtree(Path(partial, ".cache"), ignore_errors=True)
        checkpoints.read(Path(partial))
        Path(partial).chmod(0o755)
        Path(partial).rename(folder)
        Path(partial).mkdir()  # for the context, which removes it


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingDependency(f"the hub needs its package ({error}): pip install 'gen-diffusion[hub]'") from None
    return huggingface_hub


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gen", "hub")


@contextmanager
def _one_line(name: str, advice: str = "") -> Iterator[None]:
    """Turn what the package raises into one line, with some advice at its end."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # networks, rights, missing names: the package raises anything
        why = " ".join(str(error).split())
        raise UserError(f"{name} cannot be reached ({type(error).__name__}: {shown(why, 300)}){advice}") from error
