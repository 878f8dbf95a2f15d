"""Compile a Triton kernel for an H100 or H200 where there is none, and count what came out."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import torch

NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}
NAMES[torch.int64] = "*i64"
SHARED = 227 * 1024  # bytes that one block of threads may have


def arguments(kernel, dtype, constants, pointers=None, floats=()):
    """Every parameter's kind by its name: constants; pointers, upper case, to `dtype` if not said; floats; integers."""
    pointers = pointers or {}
    return {
        name: ("constexpr", constants[name])
        if name in constants
        else pointers.get(name, dtype)
        if name.isupper()
        else "fp32"
        if name in floats
        else "i32"
        for name in kernel.arg_names
    }


def compiled(kernel, given, warps=4, stages=2):
    """`given` as `arguments` makes it; pointers and integers count as multiples of 16, as a launch would find them.

    Returns a dict: shared (bytes), registers, stack (bytes spilled), wgmma (products on tensor cores).
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, aligned = {}, {}, {}
    for i, (name, kind) in enumerate(given.items()):
        if isinstance(kind, tuple):
            signature[name], constants[name] = kind
        else:
            signature[name] = NAMES.get(kind, kind)
            if kind != "fp32":
                aligned[(i,)] = [["tt.divisibility", 16]]
    target, options = GPUTarget("cuda", 90, 32), {"num_warps": warps, "num_stages": stages}
    made = triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True)
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout))
    return {
        "shared": made.metadata.shared,
        "registers": int(found["REG"]),
        "stack": int(found["STACK"]) + int(found["LOCAL"]),
        "wgmma": len(re.findall(r"wgmma\.mma_async", made.asm["ptx"])),
    }
