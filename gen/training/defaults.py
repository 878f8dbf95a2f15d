"""Defaults that follow the choice they depend on: what a run's other settings become when one of them is chosen.

path -> parameterisation, training times, weighting, grid, and the model's factor on time; data -> the model's size,
channels, classes and captions, or its ids. What is stated beside the choice stays as stated.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from gen.config.spec import Json, build, by_head, name_of, override, owner_of, with_keys
from gen.config.values import hints_of
from gen.diffusion.path import Flow, NoisePath
from gen.text.tokenizers import id_fields

__all__ = ["follow", "on_path"]

MODELS = ("models", "models.autoencoders")
FOLDERS = {"path": ("diffusion.path", "text.mask_path"), "data": ("data",)}
FOLLOW_PATH = ("times", "critic_times", "weighting", "grid")  # fields of objectives and samplers
TIME_SCALES = ("time_scale", "bandwidth")  # a model's factor on time, by either name


def follow(run: Any, changes: Mapping[str, Any]) -> Json:
    """Return some changes of a run with those that follow from them and are not stated among them.

    Args:
        run: the Run that is changed; None for a new one, of which `changes` are the values.
        changes: by dotted key, as of gen.config.spec.override.

    Raises:
        UserError: for a path or data that cannot be built; data are only looked at if a model is to fit them.
    """
    own, inner = by_head(changes)
    changed = own.keys() | inner.keys()
    path = _chosen(run, "path", own, inner) or Flow()
    data = functools.cache(lambda: _chosen(run, "data", own, inner))
    followed: Json = {}
    if run is not None and isinstance(path, NoisePath) and type(path) is not type(run.path):
        followed = {key: value for key, value in _path_defaults(run, path).items() if not _stated(key, changes)}
    keys = inner.get("model", {})
    if "model" in own or "preset" in keys:
        name = own.get("model", None if run is None else name_of(type(run.model)))
        model, left = with_keys(name, keys)
        if isinstance(model, (str, Mapping)):
            model = _fit_spec(model, data, path)
            followed |= {"model": model, **{f"model.{key}": value for key, value in left.items()}}
            changes = {key: value for key, value in changes.items() if key.partition(".")[0] != "model"}
    elif run is not None and changed & {"data", "path"}:
        ratio = _time_unit(run.path) / _time_unit(path)
        shape = _shape(data()) if "data" in changed else {}
        if (model := _fit_object(run.model, shape, ratio, keys)) != run.model:
            followed["model"] = model
    if "data" in changed and data.cache_info().currsize:  # as looked at: a million files are listed once
        followed["data"] = data()
        changes = {key: value for key, value in changes.items() if key.partition(".")[0] != "data"}
    return {**followed, **changes}


def on_path(thing: Any, path: Any) -> Any:
    """Return an objective or a sampler with the path's own choice for each that it leaves to the path ("natural").

    Args:
        thing: the dataclass; anything else stays as it is.
        path: of the run.
    """
    if not isinstance(path, NoisePath) or not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return thing
    fields = [f for f in dataclasses.fields(thing) if f.init and "operators" not in f.metadata.get("folders", ())]
    values = {f.name: getattr(thing, f.name) for f in fields}  # an operator's `on` is of shapes
    natural = {name: value.on(path) for name, value in values.items() if hasattr(value, "on")}
    return dataclasses.replace(thing, **natural) if natural else thing


def _chosen(run: Any, head: str, own: Json, inner: Mapping[str, Json]) -> Any:
    """Return the part of a run after the changes."""
    old, keys = getattr(run, head, None), inner.get(head, {})
    if head in own:
        spec, keys = with_keys(own[head], keys)
        old = None if spec is None else build(FOLDERS[head], spec)
    return override(old, keys) if keys and dataclasses.is_dataclass(old) and not isinstance(old, type) else old


def _stated(key: str, changes: Mapping[str, Any]) -> bool:
    return any(f"{key}.".startswith(f"{other}.") for other in changes)


def _path_defaults(run: Any, path: NoisePath) -> Json:
    """Return what becomes the default of another kind of path, by dotted key; deeper keys then change that."""
    back: Json = {"parameterisation": build("diffusion.parameterisation", path.natural["parameterisation"])}
    for owner in ("objective", "sampler"):
        thing = getattr(run, owner)
        for field in dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ():
            if field.name in FOLLOW_PATH and (folders := field.metadata.get("folders")):
                default = build(folders, field.default)
                back[f"{owner}.{field.name}"] = default.on(path) if hasattr(default, "on") else default
    return back


def _time_unit(path: Any) -> float:
    return path.time_unit if isinstance(path, NoisePath) else 1.0


def _shape(data: Any) -> Json:
    """Return the fields that a model of these data has."""
    if not hasattr(data, "shape"):  # none, or no data, which the run will refuse
        return {}
    if (tokenizer := getattr(data, "tokenizer", None)) is not None:
        return {**id_fields(tokenizer), "tokenizer": tokenizer, "length": data.shape[0]}
    channels, *rest = data.shape
    fields: Json = {"channels": channels, "classes": data.classes, "vector_width": getattr(data, "vector_width", 0)}
    if len(rest) == 1:  # a signal [C, L]
        return {**fields, "length": rest[0]}
    *frames, height, width = rest  # a picture [C, H, W] or a film [C, T, H, W]
    fields |= {"frames": frames[0]} if frames else {}
    return {**fields, "size": height if height == width else (height, width), **getattr(data, "text_fields", {})}


def _fitting(owner: Any, shape: Json) -> Json:
    """Return the fields of data's shape that a model has; its size only if it can be that."""
    fields = {f.name for f in dataclasses.fields(owner) if f.init} if dataclasses.is_dataclass(owner) else set()
    square = "size" in fields and hints_of(owner)["size"] is int and isinstance(shape.get("size"), tuple)
    return {name: value for name, value in shape.items() if name in fields and not (square and name == "size")}


def _fit_spec(spec: str | Mapping[str, Any], data: Any, path: Any) -> Json:
    """Return a model's spec with the fields that it does not state, from data() and path."""
    owner, given = owner_of(spec, *MODELS)
    fields = {f.name: f for f in dataclasses.fields(owner) if f.init} if dataclasses.is_dataclass(owner) else {}
    preset = owner.preset_fields(given["preset"]) if "preset" in given and hasattr(owner, "preset_fields") else {}
    given = {"name": name_of(owner), **given}
    if "inner" in fields:
        if isinstance(inner := given.get("inner"), (str, Mapping)):
            return {**given, "inner": _fit_spec(inner, data, path)}
        if inner:  # a ready object
            return given
        default = build("models", given).inner
        named: Json = {"name": name_of(type(default)), **{key: given[key] for key in ("preset",) if key in given}}
        known = given.get("preset") in (None, *getattr(default, "presets", ()))
        same = known and build("models", named) == default
        fit = _fit_spec(named, data, path) if same else _fit_object(default, _shape(data()), 1.0, {})
        return {**given, "inner": fit}
    for name in TIME_SCALES:
        if name in fields and name not in given and path is not None:
            designed = preset.get(name, getattr(owner, "time_range", fields[name].default))
            given[name] = designed / _time_unit(path)
    missing = {"size", "channels", "classes", "vocab_size", "text_length"} & fields.keys() - given.keys()
    if missing:
        given |= {name: value for name, value in _fitting(owner, _shape(data())).items() if name not in given}
    return given


def _fit_object(model: Any, shape: Json, ratio: float, stated: Mapping[str, Any]) -> Any:
    """Return a ready model with the shape of other data, and its factor on time multiplied by ratio."""
    fields = {f.name for f in dataclasses.fields(model) if f.init} if dataclasses.is_dataclass(model) else set()
    if "inner" in fields:
        inner = by_head(stated)[1].get("inner", {})
        return dataclasses.replace(model, inner=_fit_object(model.inner, shape, ratio, inner))
    new = _fitting(type(model), shape)
    new |= {name: getattr(model, name) * ratio for name in TIME_SCALES if name in fields and ratio != 1}
    if "length" in new and "tokenizer" in shape:
        new["length"] = max(new["length"], model.length)
    new = {name: value for name, value in new.items() if name not in stated}
    return dataclasses.replace(model, **new) if new else model
