"""Evaluation records: JSON that says what was measured and how. Reading and checking them needs no torch."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gen.config.errors import UserError

__all__ = ["SCHEMA", "check", "collect", "comparability", "identity", "number", "sampler_text"]

SCHEMA = 1
PROTOCOL = ("schema", "reference", "extractor", "n", "rounding", "labels")
NUMBERS = (
    ("nfe",),
    ("n",),
    ("seed",),
    ("params",),
    ("floor", "n"),
    *((group, name, part) for group in ("metrics", "floor") for name in ("fid", "kid") for part in ("value", "se")),
    *((group, name, "value") for group in ("metrics", "floor") for name in ("accuracy", "nearest", "fid_train")),
    *(("speed", name) for name in ("images_per_second", "ms_per_image", "p10", "p90", "peak_mb")),
    *(("cache", name) for name in ("full", "evaluations", "fraction", "equal_steps", "memory_mb")),
    *(("cache", name, part) for name in ("c", "ratio", "speedup") for part in ("value", "low", "high")),
    *(("cache", "drift", name) for name in ("rmse", "se", "psnr")),
    ("cache", "map", "steps"),
)
WORDS = ("label", "run", "rounding", "labels", "device", "date", "command", "comparability")
PARTS = ("reference", "extractor", "sampler", "metrics", "floor", "speed", "cache")
OPTIONAL = ("sampler", "floor", "speed", "cache", "device", "date", "command")
REQUIRED = (("nfe",), ("n",), ("metrics", "fid", "value"), ("metrics", "fid", "se"))

Record = Mapping[str, Any]


def comparability(record: Record) -> str:
    """The hash that the rows of one table share: reference, extractor, number of samples, rounding, labels."""
    return _hash({key: record[key] for key in PROTOCOL})


def identity(record: Record) -> str:
    """The hash that names a record's file: repeating an evaluation replaces its record."""
    return _hash({key: record[key] for key in ("comparability", "run", "label", "checkpoint", "sampler", "seed")})


def number(record: Record, *keys: str) -> float | None:
    """The number at a path of keys; None if there is none."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def check(record: Any, where: str) -> Record:
    """The record itself. UserError, naming `where`, if it is none or its key is not that of its content."""
    if not isinstance(record, Mapping) or record.get("schema") != SCHEMA:
        schema = record.get("schema") if isinstance(record, Mapping) else type(record).__name__
        raise UserError(f"{where} is no evaluation record of schema {SCHEMA}: it is {schema!r}")
    missing = [key for key in (*PROTOCOL, "label", "run", "comparability") if key not in record]
    missing += [".".join(keys) for keys in REQUIRED if number(record, *keys) is None]
    if missing:
        raise UserError(f"{where} is no complete evaluation record: it lacks {', '.join(missing)}")
    for key in (*WORDS, *PARTS):
        kind = str if key in WORDS else Mapping
        given = record.get(key)
        if not isinstance(given, kind) and not (given is None and key in OPTIONAL):
            raise UserError(f"{where}: {key} is {given!r}, expected {'text' if key in WORDS else 'an object'}")
    data, shape = record["reference"].get("data"), record["reference"].get("shape")
    if not isinstance(data, Mapping) or not isinstance(shape, (list, type(None))):
        raise UserError(f"{where}: reference.data and .shape are {data!r} and {shape!r}, expected an object and a list")
    for keys in NUMBERS:
        value: object = number(record, *keys)
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):  # type: ignore[arg-type]
            raise UserError(f"{where}: {'.'.join(keys)} is {value!r}, expected a finite number")
    if record["comparability"] != comparability(record):
        raise UserError(f"{where}: the comparability key {record['comparability']!r} does not belong to its content")
    drawn = (record.get("cache") or {}).get("map")
    if drawn is not None and not _is_map(drawn):
        raise UserError(f"{where}: cache.map is not a picture, the names of its rows, and the number of its columns")
    for picture in (record.get("strip"), (record.get("floor") or {}).get("strip")):
        if picture is not None and not _is_png(picture):
            raise UserError(f"{where}: a strip of samples is no PNG in base64")
    return record


def collect(sources: Any) -> list[Record]:
    """The records of: records, .json files, run folders (their eval/*.json), .toml lists, or several of these.

    A list is a TOML file of tables [[entry]] with `path`, relative to the list, and optionally `label`, a new name. A
    path may be another list, but none that leads back. The same record twice counts once. Raises UserError, naming the
    source, for what is none of these.
    """
    found: list[Record] = []
    for record in _walk(sources):
        if record not in found:
            found.append(record)
    if not found:
        raise UserError("no evaluation records: give run folders that were evaluated, or the records themselves")
    return found


def sampler_text(record: Record) -> str:
    """The sampler in a few words: "heun, 8 steps, cfg(scale=1.5)". Grids are named unless they are linear."""
    sampler = record.get("sampler") or {}
    words = [_spec_text(sampler.get("solver"))]
    if sampler.get("steps") is not None:
        words.append(f"{sampler['steps']} step{'' if sampler['steps'] == 1 else 's'}")
    grid = _spec_text(sampler.get("grid"))
    words += [f"{grid} grid" if grid and not grid.startswith("linear") else ""]
    words += [_spec_text(sampler.get("guide")), _cache_text(sampler.get("cache"))]
    engine = sampler.get("engine")
    words += [str(engine["about"]) if isinstance(engine, Mapping) and "about" in engine else _spec_text(engine)]
    return ", ".join(word for word in words if word)


def _walk(source: Any, within: tuple[Path, ...] = ()) -> Iterable[Record]:
    """The records of a source; `within` are the lists that led to it."""
    if isinstance(source, Mapping):
        yield check(source, f"the record {str(source.get('label', '?'))!r}")
    elif not isinstance(source, (str, Path)):
        for one in source:
            yield from _walk(one, within)
    elif (path := Path(source)).is_dir():
        files = sorted((path / "eval").glob("*.json"))
        if not files:
            raise UserError(f"{path} holds no evaluations; first: gen evaluate {path}")
        yield from _walk(files)
    elif path.suffix == ".toml":
        yield from _listed(path, within)
    else:
        yield check(_load(path), str(path))


def _listed(path: Path, within: tuple[Path, ...]) -> Iterable[Record]:
    if path.resolve() in within:
        raise UserError(f"{path}: this list leads back to itself; a path names records, run folders or other lists")
    content = _load(path)
    entries = content.get("entry", [])
    if set(content) - {"entry"} or not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: a list of entries has tables [[entry]] and nothing else, it has {', '.join(content)}")
    for entry in entries:
        if not isinstance(entry, dict):
            raise UserError(f"{path}: an entry is {entry!r}, expected a table [[entry]] with path and label")
        unknown = set(entry) - {"path", "label"}
        if unknown or "path" not in entry:
            raise UserError(f"{path}: an entry has path and label, this one has {', '.join(sorted(entry))}")
        for key, value in entry.items():
            if not isinstance(value, str):
                raise UserError(f"{path}: {key} is {value!r}, expected text")
        for record in _walk(path.parent / entry["path"], (*within, path.resolve())):
            yield {**record, "label": entry["label"]} if "label" in entry else record


def _load(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:  # of the decoder, JSON or TOML
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def _spec_text(spec: Any) -> str:
    if not isinstance(spec, Mapping):
        return "" if spec is None else str(spec)
    hidden = ("name", "times", "sha256") if spec.get("name") == "searched" else ("name",)
    rest = ", ".join(f"{key}={value}" for key, value in spec.items() if key not in hidden and value is not None)
    return f"{spec.get('name')}({rest})" if rest else str(spec.get("name"))


def _cache_text(spec: Any) -> str:
    """A cache's name and numbers; of its parts the names, and nothing of its coordinate, its sites and its masks."""
    if not isinstance(spec, Mapping):
        return _spec_text(spec)
    short = {key: value.get("name") if isinstance(value, Mapping) else value for key, value in spec.items()}
    told = {k: v for k, v in short.items() if k != "coordinate" and v != "" and not isinstance(v, (list, tuple))}
    return _spec_text(told)


def _is_map(drawn: Any) -> bool:
    if not isinstance(drawn, Mapping) or not isinstance(drawn.get("sites"), list) or "steps" not in drawn:
        return False
    return all(isinstance(site, str) for site in drawn["sites"]) and _is_png(drawn.get("png"))


def _is_png(text: Any) -> bool:
    try:
        return base64.b64decode(text, validate=True).startswith(b"\x89PNG\r\n\x1a\n")
    except (ValueError, TypeError):
        return False


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
