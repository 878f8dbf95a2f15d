"""The cost model of engines of several processes: its limits, its order of methods, and its count of operations."""

import pytest
import torch
from torch import nn

from gen.models.dit import DiT
from gen.models.engines.branches import Branches
from gen.models.engines.lib.parallel_cost import Machine, TransformerSize, loop_seconds, predicted_speedup
from gen.models.engines.patches import Patches
from gen.models.engines.pipefusion import PipeFusion
from gen.models.engines.sequence import Sequence

SIZE = TransformerSize(tokens=4096, width=1152, depth=28, heads=16, state=4 * 128 * 128)
FAST, SLOW = Machine(1e14, 1e18), Machine(1e14, 1e9)


def test_operations_are_twice_the_weights_of_a_token():
    net = DiT.preset("S/2").build()
    layers = [m for b in net.blocks for m in (b.attn, b.mlp) for m in m.modules() if isinstance(m, nn.Linear)]
    size = TransformerSize(256, 384, 12, 6)
    assert size.flops(256, 0) == sum(2 * 256 * layer.weight.numel() for layer in layers)
    q = torch.empty(1, 6, 256, 64)
    assert size.flops(256, 256) - size.flops(256, 0) == 12 * 2 * 2 * q.numel() * 256  # q k^T, and the average of v


def test_free_exchanges_divide_the_work():
    sequences = Sequence("ring"), Sequence("ulysses"), Sequence("usp", 2)
    for engine in (Patches(synchronous=True), Patches(), *sequences):
        assert predicted_speedup(SIZE, FAST, 50, 4, engine) == pytest.approx(4, rel=1e-3)
    assert predicted_speedup(SIZE, FAST, 50, 4, Patches(portion=0.3)) > 4  # fewer keys
    assert predicted_speedup(SIZE, FAST, 50, 2, Branches(), branches=2) == pytest.approx(2, rel=1e-3)
    assert predicted_speedup(SIZE, FAST, 50, 2, Branches()) == 1  # nothing to share out
    assert predicted_speedup(SIZE, SLOW, 50, 1, Patches()) == 1


def test_a_pipeline_that_runs_empty_saves_less_than_processes():
    """M patches take the time of M + N - 1, and synchronous steps that of one process; blocks may not divide."""
    assert predicted_speedup(SIZE, FAST, 50, 4, PipeFusion(synchronous=True)) == pytest.approx(1, rel=1e-3)
    for patches in (4, 16):
        steps = 1 + 49 * (patches + 3) / (4 * patches)
        engine = PipeFusion(patches=patches)
        assert predicted_speedup(SIZE, FAST, 50, 4, engine) == pytest.approx(50 / steps, rel=1e-3)
    seconds = loop_seconds(SIZE, FAST, 2, 3, PipeFusion(patches=1)) / loop_seconds(SIZE, FAST, 1)
    assert seconds == pytest.approx(1 + 3 * 10 / 28, rel=1e-3)  # of 28 blocks the slowest has 10


def test_a_pipeline_gains_on_links_where_nothing_else_does():
    slow = Machine(1e14, 1e9)
    gains = [predicted_speedup(SIZE, slow, 50, 4, engine) for engine in (PipeFusion(patches=16), Patches(), Sequence())]
    assert gains[0] > 2 * max(gains[1:]) and max(gains[1:]) < 1


def test_what_travels_less_or_meanwhile_is_faster_on_a_slow_link():
    engines = Patches(portion=0.3), Patches(), Patches(synchronous=True)
    gains = [predicted_speedup(SIZE, Machine(1e14, 2e10), 50, 4, engine) for engine in engines]
    assert gains == sorted(gains, reverse=True)
    assert gains[1] > 1.2 * gains[2]
    assert predicted_speedup(SIZE, SLOW, 50, 2, Branches(), branches=2) > 1.9
    late = predicted_speedup(SIZE, Machine(1e14, 2e10), 50, 4, Patches(warmup=20))
    assert gains[2] < late < gains[1]


def test_seconds_of_patches_in_a_pipeline_by_hand():
    """Two stages of a layer each, two patches of four tokens: three turns, of which one waits for the first hop."""
    size, machine = TransformerSize(8, 4, 2, 1, state=6), Machine(1e4, 1e2, 0.1)
    patch, whole = 4 * 4 * (24 * 4 + 4 * 8) / 1e4, 2 * 8 * 4 * (24 * 4 + 4 * 8) / 1e4
    hop, output = 4 * 4 * 2 / 1e2 + 0.1, 6 * 2 / 1e2 + 0.1
    first, later = whole + 8 * 4 * 2 / 1e2 + 0.1 + output, patch + hop + 2 * max(patch, hop) + output
    assert loop_seconds(size, machine, 3, 2, PipeFusion()) == pytest.approx(first + 2 * later)


def test_seconds_of_a_synchronous_step_by_hand():
    """Two processes, one layer: half the operations, and k, v and the output of half of the tokens, in bfloat16."""
    size, machine = TransformerSize(8, 4, 1, 1), Machine(1e3, 1e2, 0.5)
    work = 4 * 4 * (24 * 4 + 4 * 8) / 1e3
    assert loop_seconds(size, machine, 3, 2, Patches(synchronous=True)) == pytest.approx(
        3 * (work + (4 * 4 * 2 * 2 / 1e2 + 0.5) + (4 * 4 * 2 / 1e2 + 0.5))
    )
