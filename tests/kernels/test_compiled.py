"""Triton's kernels compiled for sm_90 without one: they compile and fit, spill almost nothing, use tensor cores."""

import pytest
import torch

pytest.importorskip("triton")

from gen.kernels.attention import triton_launch as attention_triton
from gen.kernels.attention.triton_launch import split
from gen.kernels.norm import triton_launch as norm_triton
from gen.kernels.rope import triton_launch as rope_triton
from gen.kernels.selective_scan import triton_launch as selective_scan_triton
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


def attention(name, dtype, dim, ruled, group=1, masked=False):
    from gen.kernels.attention import triton_kernels as attention_kernels

    kernel, (d0, d1) = getattr(attention_kernels, name), split(dim)
    size = attention_triton.sizes(dtype, name != "forward", masked)
    constants = {"D": dim, "D0": d0, "D1": d1, "GROUP": group, "RULED": ruled, "MASKED": masked, "DOT": dot(dtype)}
    constants |= {"PRECISION": "ieee", "WIDTH": d0 if d1 == 0 else 2 * d0, **size} | ({} if masked else {"MASK": None})
    pointers = dict.fromkeys(("LEVEL", "REACH", "SEGMENT_K", "SEGMENT_Q", "TILES", "FULL", "PARTIAL"), torch.int32)
    pointers |= {"MASK": "*i8", **dict.fromkeys(("LSE", "DOTS"), FLOAT)}
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
@pytest.mark.parametrize("name", ["forward", "backward_dkv", "backward_dq"])
@pytest.mark.parametrize("dim", [64, 72, 128])
@pytest.mark.parametrize(("group", "masked"), [(1, True), (7, False), (7, True)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_attention_of_shared_heads_and_masks(name, dtype, dim, group, masked):
    attention(name, dtype, dim, False, group, masked)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 72, 128])
@pytest.mark.parametrize(("normed", "turned"), [(True, True), (True, False), (False, True)])
@DTYPES
def test_norm_rope(dtype, dim, normed, turned):
    from gen.kernels.rope import triton_kernels as kernels

    size = rope_triton.sizes(dim)
    pointers = dict.fromkeys(("COS", "SIN", "DGAIN"), FLOAT)
    for split_pairs in (True, False):
        constants = {"NORMED": normed, "ROTATED": turned, "SPLIT": split_pairs, "TILES": rope_triton.TILES, **size}
        for kernel in (kernels.forward, kernels.backward):
            fits(kernel, arguments(kernel, dtype, constants, pointers, ("eps",)), size["num_warps"])


@pytest.mark.slow
@pytest.mark.parametrize("d", [384, 1152, 4096])
@pytest.mark.parametrize("per_token", [True, False])
@DTYPES
def test_norm(dtype, d, per_token):
    from gen.kernels.norm import triton_kernels as kernels

    size = norm_triton.sizes(d)
    sums = () if per_token else ("DGATE", "DSCALE", "DSHIFT")
    pointers = dict.fromkeys(("MEAN", "RSTD", "DGAIN", *sums), FLOAT)
    for gated in (True, False):
        constants = {**size, "ROWS": norm_triton.ROWS, "GATED": gated, "GAINED": True, "RMS": False}
        for kernel in (kernels.forward, kernels.backward):
            given = arguments(kernel, dtype, constants | {"PER_TOKEN": per_token}, pointers, ("eps",))
            fits(kernel, given, size["num_warps"])
    constants = {**size, "ROWS": norm_triton.ROWS, "PER_TOKEN": per_token}
    for kernel in (kernels.gated, kernels.gated_backward):
        fits(kernel, arguments(kernel, dtype, constants, pointers), size["num_warps"])


@pytest.mark.slow
@DTYPES
def test_statistics(dtype):
    from gen.kernels.statistics import triton_kernels as kernels

    names = ("NUMBER", "TOP", "NEXT", "LSE", "ENTROPY", "LOG", "DTOP", "DNEXT", "DLSE", "DENTROPY")
    pointers = {"INDEX": torch.int32, "BEST": torch.int64, "SECOND": torch.int64, **dict.fromkeys(names, FLOAT)}
    for kernel, warps in ((kernels.scan, 4), (kernels.join, 1), (kernels.backward, 4)):
        fits(kernel, arguments(kernel, dtype, {"BLOCK": 2048, "SPLITS": 16}, pointers), warps)


@pytest.mark.slow
@DTYPES
def test_activations(dtype):
    from gen.kernels.activation import triton_kernels as kernels

    constants = {"ROWS": 8, "COLUMNS": 256, "BIASED": True}
    for name in kernels.__all__:
        kernel = getattr(kernels, name)
        fits(kernel, arguments(kernel, dtype, constants, dict.fromkeys(("DBIAS", "DA", "DB"), FLOAT)))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 72, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_linear_attention(dtype, dim):
    from gen.kernels.linear_attention import triton_kernels as kernels

    width = 1 << (dim - 1).bit_length()
    constants = {"KD": width, "VE": width, "BT": 64, "DOT": dot(dtype), "PRECISION": "ieee"}
    pointers = dict.fromkeys(("TOP", "TOTAL", "STATE", "LSE", "DOTS"), FLOAT)
    for kernel in (kernels.states, kernels.gradients):
        fits(kernel, arguments(kernel, dtype, constants, pointers), warps=8, cores=True)


@pytest.mark.slow
@pytest.mark.parametrize("way", [(False, False), (True, True)])
@DTYPES
def test_selective_scan(dtype, way):
    from gen.kernels.selective_scan import triton_kernels as kernels

    pointers = dict.fromkeys(("A", "KEPT", "DA", "DB", "DC", "STATES"), FLOAT) | {"ORDER": torch.int64}
    constants = {"ORDERED": way[0], "REVERSE": way[1], **selective_scan_triton.sizes(16)}
    for kernel in (kernels.forward, kernels.backward):
        fits(kernel, arguments(kernel, dtype, constants, pointers))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p"), [(16, 64), (64, 64), (128, 64), (128, 128)])
@DTYPES
def test_ssd(dtype, n, p):
    from gen.kernels.ssd import triton_kernels as kernels
    from gen.kernels.ssd import triton_launch as ssd_triton

    size = ssd_triton.sizes(dtype, n, p)
    pointers = dict.fromkeys(("HIGH", "LOW", "DC", "PAST", "DDELTA", "DB", "NEXT", "WITHIN"), FLOAT)
    for name in kernels.__all__:
        kernel = getattr(kernels, name)
        given = arguments(kernel, dtype, {**size, "DOT": dot(dtype), "PRECISION": "ieee"}, pointers)
        fits(kernel, given, size["num_warps"], cores=dtype != FLOAT)


@pytest.mark.slow
@pytest.mark.parametrize("ways", [1, 2, 4])
def test_s4d(ways):
    from gen.kernels.s4d import triton_kernels as kernels
    from gen.kernels.s4d import triton_launch as s4d_triton

    size = s4d_triton.sizes(ways)
    for kernel in (kernels.forward, kernels.backward):
        fits(kernel, arguments(kernel, FLOAT, size, {"RATE": "*fp64", "TURN": "*fp64"}), size["num_warps"])


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 32, 256])
@pytest.mark.parametrize("both", [True, False])
@DTYPES
def test_long_convolution(dtype, both, batch):
    from gen.kernels.long_convolution import triton_kernels as kernels
    from gen.kernels.long_convolution import triton_launch as convolution_triton

    size = convolution_triton.sizes(dtype, batch)
    constants = {**size, "BOTH": both, "DOT": dot(dtype), "PRECISION": "ieee"}
    for kernel, more in (
        (kernels.convolve, {"MIRRORED": False}),
        (kernels.convolve, {"MIRRORED": True}),
        (kernels.correlate, {}),
    ):
        given = arguments(kernel, dtype, constants | more, {"PARTS": FLOAT})
        fits(kernel, given, size["num_warps"], cores=dtype != FLOAT)


@pytest.mark.slow
@pytest.mark.parametrize("way", [(False, False), (True, True)])
@DTYPES
def test_short_convolution(dtype, way):
    from gen.kernels.short_convolution import triton_kernels as kernels
    from gen.kernels.short_convolution import triton_launch as short_convolution_triton

    size = short_convolution_triton.sizes(4)
    constants = {**size, "ORDERED": way[0], "REVERSE": way[1]}
    for kernel in (kernels.forward, kernels.backward):
        given = arguments(kernel, dtype, constants, {"ORDER": torch.int64, "PARTS": FLOAT})
        fits(kernel, given, size["num_warps"])
