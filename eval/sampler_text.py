"""A sampler in a few words, of the spec that a record has for it."""

from __future__ import annotations

from collections.abc import Mapping

from gen.config.spec import Json

__all__ = ["sampler_text"]


def sampler_text(sampler: Json) -> str:
    """Say a sampler in a few words: "heun, 8 steps, cfg(scale=1.5)". Grids are named unless they are linear.

    Args:
        sampler: spec, as a record has it; of a cache's parts the names alone are said.
    """
    words = [_spec_text(sampler.get("solver"))]
    if sampler.get("steps") is not None:
        words.append(f"{sampler['steps']} step{'' if sampler['steps'] == 1 else 's'}")
    grid = _spec_text(sampler.get("grid"))
    words += [f"{grid} grid" if grid and grid != "linear" else ""]
    words += [_spec_text(sampler.get("guide")), _cache_text(sampler.get("cache"))]
    engine = sampler.get("engine")
    words += [str(sampler.get("dtype") or "")]
    words += [str(engine["about"]) if isinstance(engine, Mapping) and "about" in engine else _spec_text(engine)]
    return ", ".join(word for word in words if word)


def _spec_text(spec: object) -> str:
    if not isinstance(spec, Mapping):
        return "" if spec is None else str(spec)
    hidden = ("name", "times", "sha256") if spec.get("name") == "searched" else ("name",)
    own = {key: value for key, value in spec.items() if key not in hidden and value is not None}
    rest = ", ".join(f"{key}={_spec_text(value)}" for key, value in own.items())
    return f"{spec.get('name')}({rest})" if rest else str(spec.get("name"))


def _cache_text(spec: object) -> str:
    """Return a cache's name and numbers; of its parts the names, and nothing of its coordinate, sites and masks."""
    if not isinstance(spec, Mapping):
        return _spec_text(spec)
    short = {key: value.get("name") if isinstance(value, Mapping) else value for key, value in spec.items()}
    return _spec_text(
        {k: v for k, v in short.items() if k != "coordinate" and v != "" and not isinstance(v, (list, tuple))}
    )
