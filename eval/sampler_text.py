"""A sampler in a few words: names, steps, and the options that are not the default ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

from gen.config.spec import Json, find, names, spec_of

__all__ = ["sampler_text"]


def sampler_text(sampler: Json) -> str:
    """Say a sampler in a few words: "heun, 8 steps, cfg(scale=1.5)". Grids are named unless they are linear.

    Options that have their default are left out, but for the first of a guide or a cache, its strength; of a cache's
    parts all but the names.

    Args:
        sampler: spec, as a record has it.
    """
    words = [_spec_text(sampler.get("solver"), "samplers.solvers")]
    if sampler.get("steps") is not None:
        words.append(f"{sampler['steps']} step{'' if sampler['steps'] == 1 else 's'}")
    grid = _spec_text(sampler.get("grid"), "samplers.grids")
    words += [f"{grid} grid" if grid and grid != "linear" else ""]
    words += [_spec_text(sampler.get("guide"), "samplers.guides", True), _cache_text(sampler.get("cache"))]
    engine = sampler.get("engine")
    words += [str(sampler.get("dtype") or "")]
    about = engine.get("about") if isinstance(engine, Mapping) else None
    words += [str(about) if about else _spec_text(engine, "models.engines")]
    return ", ".join(word for word in words if word)


def _spec_text(spec: object, folder: str, strength: bool = False) -> str:
    """Return a plug-in's name, with the options that differ; `strength` shows its first one always."""
    if not isinstance(spec, Mapping):
        return "" if spec is None else str(spec)
    name = str(spec.get("name"))
    hidden = ("name", "times", "sha256") if name == "searched" else ("name",)
    own = {key: value for key, value in spec.items() if key not in hidden}
    usual = _defaults(folder, name) if own else {}
    first = next(iter(usual), "") if strength else ""
    rest = [key for key, value in own.items() if key == first or value != usual.get(key)]
    words = ", ".join(f"{key}={_spec_text(own[key], folder) or None}" for key in rest)
    return f"{name}({words})" if words else name


def _cache_text(spec: object) -> str:
    """Return a cache's name and numbers; of its parts the names, and nothing of its coordinate, sites and masks."""
    if not isinstance(spec, Mapping):
        return _spec_text(spec, "samplers.caches")
    short = {key: value.get("name") if isinstance(value, Mapping) else value for key, value in spec.items()}
    return _spec_text(
        {k: v for k, v in short.items() if k != "coordinate" and v != "" and not isinstance(v, (list, tuple))},
        "samplers.caches",
        strength=True,
    )


@functools.cache
def _defaults(folder: str, name: str) -> Json:
    """Return the default options of a plug-in of gen, as specs have them; {} for any other name, whose code never runs.

    The plug-in is imported, and torch with it: only where a record has options, so that most pages need none.
    """
    if name not in names(folder):
        return {}
    known: Json = {}
    for field in dataclasses.fields(find(name, folder)):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is not dataclasses.MISSING:
            plain = dataclasses.is_dataclass(value) and not isinstance(value, type)
            known[field.name] = spec_of(value) if plain else list(value) if isinstance(value, tuple) else value
    return known
