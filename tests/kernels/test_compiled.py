"""Triton's kernels compiled for sm_90 without one: they compile and fit, spill almost nothing, use tensor cores."""

import pytest
import torch

pytest.importorskip("triton")

from gen.kernels.backends import attention_triton, norm_triton, selective_scan_triton
from gen.kernels.backends.attention_triton import split
from tests.kernels.sm90 import SHARED, arguments, compiled

FLOAT, HALF = torch.float32, torch.bfloat16
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Compiled anew each time, and nothing left behind."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def dot(dtype):
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[dtype]


def fits(kernel, given, warps=4, stages=2, cores=False):
    made = compiled(kernel, given, warps, stages)
    assert made["shared"] <= SHARED
    assert made["stack"] <= 8, f"{made['stack']} bytes spilled"  # two words do no harm
    assert made["wgmma"] > 0 or not cores


def attention(name, dtype, dim, ruled):
    from gen.kernels.backends import attention_kernels

    kernel, (d0, d1) = getattr(attention_kernels, name), split(dim)
    size = attention_triton.sizes(dtype, name != "forward")
    constants = {"D": dim, "D0": d0, "D1": d1, "RULED": ruled, "DOT": dot(dtype), **size}
    constants |= {"PRECISION": "ieee", "WIDTH": d0 if d1 == 0 else 2 * d0}
    pointers = dict.fromkeys(("LEVEL", "REACH", "OWN", "TILES", "WHOLE", "SOME"), torch.int32)
    pointers |= dict.fromkeys(("LSE", "DOTS"), FLOAT)
    given = arguments(kernel, dtype, constants, pointers, ("scale",))
    fits(kernel, given, size["num_warps"], size["num_stages"], cores=dtype != FLOAT and name != "row_dots")


def test_attention_of_dit_xl():
    attention("forward", HALF, 72, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["forward", "backward_dkv", "backward_dq", "row_dots"])
@pytest.mark.parametrize("dim", [32, 40, 64, 72, 96, 128])
@pytest.mark.parametrize("ruled", [True, False])
@DTYPES
def test_attention(name, dtype, dim, ruled):
    attention(name, dtype, dim, ruled)


@pytest.mark.slow
@pytest.mark.parametrize("d", [384, 1152, 4096])
@pytest.mark.parametrize("per_token", [True, False])
@DTYPES
def test_norm(dtype, d, per_token):
    from gen.kernels.backends import norm_kernels as kernels

    size = norm_triton.sizes(d)
    sums = () if per_token else ("DGATE", "DSCALE", "DSHIFT")
    pointers = dict.fromkeys(("MEAN", "RSTD", "DGAIN", *sums), FLOAT)
    for gated in (True, False):
        constants = {**size, "ROWS": norm_triton.ROWS, "GATED": gated, "GAINED": True, "RMS": False}
        for kernel in (kernels.forward, kernels.backward):
            given = arguments(kernel, dtype, constants | {"PER_TOKEN": per_token}, pointers, ("eps",))
            fits(kernel, given, size["num_warps"])


@pytest.mark.slow
@DTYPES
def test_statistics(dtype):
    from gen.kernels.backends import statistics_kernels as kernels

    names = ("NUMBER", "TOP", "NEXT", "LSE", "ENTROPY", "LOG", "DTOP", "DNEXT", "DLSE", "DENTROPY")
    pointers = {"INDEX": torch.int32, "BEST": torch.int64, "SECOND": torch.int64, **dict.fromkeys(names, FLOAT)}
    for kernel, warps in ((kernels.scan, 4), (kernels.join, 1), (kernels.backward, 4)):
        fits(kernel, arguments(kernel, dtype, {"BLOCK": 2048, "SPLITS": 16}, pointers), warps)


@pytest.mark.slow
@DTYPES
def test_activations(dtype):
    from gen.kernels.backends import activation_kernels as kernels

    constants = {"ROWS": 8, "COLUMNS": 256, "BIASED": True}
    for name in kernels.__all__:
        kernel = getattr(kernels, name)
        fits(kernel, arguments(kernel, dtype, constants, dict.fromkeys(("DBIAS", "DA", "DB"), FLOAT)))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 72, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_attention(dtype, dim):
    from gen.kernels.backends import linear_attention_kernels as kernels

    width = 1 << (dim - 1).bit_length()
    constants = {"KD": width, "VE": width, "BT": 64, "DOT": dot(dtype), "PRECISION": "ieee"}
    pointers = dict.fromkeys(("TOP", "TOTAL", "STATE", "LSE", "DOTS"), FLOAT)
    for kernel in (kernels.states, kernels.gradients):
        fits(kernel, arguments(kernel, dtype, constants, pointers), warps=8, cores=True)


@pytest.mark.slow
@DTYPES
def test_selective_scan(dtype):
    from gen.kernels.backends import selective_scan_kernels as kernels

    pointers = dict.fromkeys(("A", "KEPT", "DA", "DB", "DC", "STATES"), FLOAT)
    for kernel in (kernels.forward, kernels.backward):
        fits(kernel, arguments(kernel, dtype, selective_scan_triton.sizes(16), pointers))
