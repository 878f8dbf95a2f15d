"""The machine, as results and remembered measurements name it, and the folder of what the user's cache remembers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

__all__ = ["cache_folder", "compiler_obstacle", "processor"]

FLAGS = ("avx", "amx", "fma", "sse4", "sve", "asimd", "bf16", "vnni")  # instruction sets that matrix products use


def processor() -> dict[str, Any]:
    """Return vendor, family, model, stepping and instruction sets of the CPU, as far as the system says.

    Names repeat: "AMD EPYC" is many generations, and their ceilings differ more than twofold.
    """
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines() if file.is_file() else []
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = {"vendor": "vendor_id", "family": "cpu family", "model": "model", "stepping": "stepping"}
    sets = fields.get("flags", fields.get("Features", "")).split()
    named = [flag for flag in sorted(sets) if any(part in flag for part in FLAGS)]
    return {**{key: fields.get(name) for key, name in known.items()}, "flags": named}


def cache_folder(name: str) -> Path:
    """Return a folder of gen in XDG_CACHE_HOME, or else in ~/.cache.

    Args:
        name: of the folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gen" / name


def compiler_obstacle() -> str | None:
    """Return the reason why torch.compile cannot compile for this machine's CPU, or None."""
    able = any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
    return None if able else "compiling for a CPU needs a C++ compiler, and there is none"
