"""Other people's weight files, read as data: safetensors, torch files and pickles. No code in them runs.

A file's content is a tree of mappings, and somewhere in it are one or more state dicts: bare; under tags such as
"model", "ema" or "state_dict"; flat, with a prefix to their names. gen.models.interop.lib.state_dicts finds them. A
folder is one of the Hugging Face kind, whole or in shards, its copy in the hub's cache, or one that accelerate saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gen.config.errors import UserError
from gen.config.pickles import Record, as_tensor, object_state, plain
from gen.config.reading import file_sha256, read_json
from gen.config.spec import Json
from gen.config.torch_file import describe_start, read_torch
from gen.models.interop.lib.state_dicts import State, choose, find_states
from gen.models.interop.lib.yaml_file import read_yaml

__all__ = ["State", "Weights", "read"]

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
SETTINGS = ("args", "config", "cfg", "conf", "hparams", "hyper_parameters")  # where trainings say what they did
SETTING_FILES = ("args.json", "config.yaml", "config.yml", "hparams.yaml")  # and where they do beside the weights


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors of a file or folder.

    Attributes:
        tensors: by name, without what wrappers put into names.
        chosen: their key, such as "ema", or "bare".
        files: sha256 by name of what was read.
        config: config.json beside them, or None.
        folder: where they lie, or None.
        unread: keys of what else was there.
        settings: of the training, in the file or beside it, as JSON values.
        attributes: of a module that was saved whole, by dotted name, and of an "encoder" beside it.
    """

    tensors: State
    chosen: str
    files: Mapping[str, str]
    config: Json | None = None
    folder: Path | None = None
    unread: tuple[str, ...] = field(default=())
    settings: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


def read(
    path: Path,
    wanted: str | None = None,
    key: str | None = None,
    claims: Callable[[Weights], bool] = lambda weights: True,
) -> Weights:
    """Read a file of weights, or a folder of the Hugging Face kind.

    Args:
        path: file or folder; UserError for what is missing, damaged, or no weights.
        wanted: "ema", "model", or None for the average if there is one.
        key: of the state dict to take, such as "ema.0.9999"; None to find it.
        claims: whether weights could be of some origin.
    """
    if wanted not in (None, "ema", "model"):
        raise UserError(f"weights {wanted!r}; allowed: ema, model")
    if not path.exists():
        raise UserError(f"{path} does not exist: give a file of weights, or a folder that diffusers wrote")
    folder = _folder(path, wanted) if path.is_dir() else None
    files = [path] if folder is None else _weight_files(folder)
    config = _config(folder or path.parent)
    content = _merged(files)
    if folder and (others := sorted(folder.glob("custom_checkpoint_*.pkl"))):  # accelerate's, of an average perhaps
        content = {"model": content, **{other.stem: read_torch(other) for other in others}}
        files += others

    def fits(state: State) -> bool:
        return claims(Weights(state, "", {}, config=config))

    found = find_states(content, fits, path)
    if not found:
        raise UserError(f"{path} {_contents(content)}")
    taken = choose(found, wanted, key, path)
    settings = next((content[name] for name in SETTINGS if isinstance(content, Mapping) and name in content), None)
    if not isinstance(plain(settings), dict) and (beside := _settings_file(folder or path)):
        settings = read_json(beside, constants=True) if beside.suffix == ".json" else read_yaml(beside)
        files.append(beside)
    return Weights(
        tensors=taken.tensors,
        chosen=taken.key or "bare",
        files={file.name: file_sha256(file) for file in files},
        config=config,
        folder=folder or path.parent,
        unread=_unread(content, [candidate.key for candidate in found], taken.key),
        settings=plain(settings) if isinstance(plain(settings), dict) else {},
        attributes={**taken.attributes, **_encoder(content)},
    )


def _encoder(content: object) -> Json:
    """Return the numbers and texts of the encoder that EDM2 saves beside its network, as "encoder.scale"."""
    state = object_state(content.get("encoder")) if isinstance(content, Mapping) else None
    kept: Json = {}
    for key, value in (state or {}).items():
        array = as_tensor(value)
        kept[f"encoder.{key}"] = plain(value) if array is None else array.flatten().tolist()
    return {key: value for key, value in kept.items() if value is not None}


def _settings_file(path: Path) -> Path | None:
    """Return the file of a training's settings beside its weights, or above their folder of checkpoints."""
    folder = path if path.is_dir() else path.parent
    above = [folder.resolve().parent] if folder.resolve().name in ("checkpoints", "ckpt", "ckpts") else []
    return next((at / name for at in (folder, *above) for name in SETTING_FILES if (at / name).is_file()), None)


def _contents(content: object) -> str:
    if not isinstance(content, Mapping) or not content:
        what = f"an object of {content.name}" if isinstance(content, Record) else type(content).__name__
        return f"holds {what}, expected tensors by name"
    return f"holds no state dict, but {', '.join(map(str, list(content)[:8]))}"


def _unread(content: object, keys: list[str], taken: str) -> tuple[str, ...]:
    """Return the keys of what was not taken: other state dicts, and other entries at the top."""
    top = [str(key) for key in content] if isinstance(content, Mapping) and taken else []
    beside = [key for key in top if not any(f"{name}.".startswith(f"{key}.") for name in keys)]
    return tuple(key for key in (*keys, *beside) if key not in ("", taken))


def _merged(files: list[Path]) -> Any:
    """Return the contents of files, all shards as one mapping."""
    contents = [_safetensors(file) if file.suffix == ".safetensors" else read_torch(file) for file in files]
    if len(contents) == 1:
        return contents[0]
    whole: Json = {}
    for file, content in zip(files, contents, strict=True):
        if not isinstance(content, Mapping) or set(content) & set(whole):
            raise UserError(f"{file} is no shard: it holds what another shard holds too, or no tensors by name")
        whole |= content
    return whole


def _safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        what = describe_start(path)
        raise UserError(f"{path} is {what or f'damaged, or no safetensors file ({error})'}") from None


# -- folders -----------------------------------------------------------------------------------------------------------


def _folder(path: Path, wanted: str | None) -> Path:
    """Return the folder in which the weights lie: of a pipeline, of a copy in the hub's cache, or the folder itself."""
    if (path / "snapshots").is_dir():
        main = path / "refs" / "main"
        names = [main.read_text().strip()] if main.is_file() else [p.name for p in (path / "snapshots").iterdir()]
        if len(names) != 1 or not (path / "snapshots" / names[0]).is_dir():
            raise UserError(f"{path} is of the hub's cache and holds {len(names)} snapshots: give one of them")
        path = path / "snapshots" / names[0]
    parts = [part + end for part in ("transformer", "unet") for end in ("_ema", "") if wanted != "model" or not end]
    return next((path / part for part in parts if (path / part / "config.json").exists()), path)


def _weight_files(folder: Path) -> list[Path]:
    """Return the files of the weights of a folder: those without a variant's name, or else the only variant."""
    for stem in STEMS:
        for suffix in (".safetensors", ".bin"):
            plain_ones = [folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"]
            variants = [*folder.glob(f"{stem}.*{suffix}"), *folder.glob(f"{stem}{suffix}.index.*.json")]
            whole = [file for file in variants if "-of-" not in file.name]
            files = [file for file in plain_ones if file.is_file()] or sorted(whole)
            if len(files) > 1 and files[0] not in plain_ones:
                raise UserError(f"{folder} holds {', '.join(file.name for file in files)}: give one of these files")
            if files:
                return _shards(files[0]) if files[0].suffix == ".json" else files[:1]
    raise UserError(f"{folder} holds no {STEMS[0]}.safetensors or .bin, nor an index of shards")


def _shards(index: Path) -> list[Path]:
    table = read_json(index)
    named = table.get("weight_map") if isinstance(table, Mapping) else None
    if not isinstance(named, Mapping) or not named:
        raise UserError(f"{index} is no index: it has no weight_map")
    names = sorted({str(name) for name in named.values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index} names {name!r}, which is not in its folder")
    return [index.parent / name for name in names]


def _config(folder: Path) -> Json | None:
    """Return config.json of a folder."""
    file = folder / "config.json"
    if not file.exists():
        return None
    config = read_json(file, constants=True)
    if not isinstance(config, dict):
        raise UserError(f"{file} is no config: it holds {type(config).__name__}")
    return config
