"""The cost model of engines of several processes: its limits, its order of methods, and its count of operations."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gen.config.errors import UserError
from gen.kernels.sequence_parallel.collectives import Traffic
from gen.kernels.sequence_parallel.patches import OneProcess, edge_bytes, patch_exchange_bytes
from gen.models.dit import DiT
from gen.models.engines.branches import Branches
from gen.models.engines.lib.machine import Machine
from gen.models.engines.lib.parallel_cost import TransformerSize, loop_seconds, predicted_speedup
from gen.models.engines.lib.patched_rows import RowPatchesNet
from gen.models.engines.lib.unet_cost import unet_size
from gen.models.engines.patches import Patches
from gen.models.engines.pipefusion import PipeFusion
from gen.models.engines.sequence import Sequence
from tests.models.test_families import digits, inputs, random_net
from tests.over import over

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


UNETS = [
    ("unet", {}),
    ("unet", {"resampling": "conv_same", "learn_sigma": True, "multipliers": (1, 2, 2)}),
    ("song_unet", {"filter": (1.0, 3.0, 3.0, 1.0), "attention": (8,)}),
    ("edm2", {"attention": (8,)}),
]


class Counting(OneProcess):
    """Parts in one process that count what an inner one would send if each had its own."""

    def __init__(self, parts, part):
        super().__init__(parts, Traffic())
        self.part = part

    def gather(self, h):
        if h.ndim == 5:  # keys and values, which are waited for
            self.traffic.sent += patch_exchange_bytes(self._of(h), self.part, self.parts)
        else:
            self.traffic.sent += (self.parts - 1) * h.nbytes // self.parts
        return h

    def start(self, kv, portion):
        self.traffic.sent += patch_exchange_bytes(self._of(kv), self.part, self.parts, portion)
        return super().start(kv, portion)

    def start_edges(self, h, above, below):
        self.traffic.sent += edge_bytes(self._of(h), self.part, self.parts, above, below)
        return super().start_edges(h, above, below)

    def start_all(self, values):
        self.traffic.sent += (self.parts - 1) * values[0].nbytes
        return super().start_all(values)

    def _of(self, h):
        return h.chunk(self.parts, 1)[self.part]


@torch.no_grad()
@over(case=UNETS)
def test_a_unet_s_operations_and_bytes_are_those_counted(case):
    """By torch's counter of operations, and by what the engine's exchanges send in a synchronous evaluation."""
    name, fields = case
    net = random_net(digits(name, size=16, **fields), dtype=torch.float32)
    x, t, cond = inputs(net)
    x, t, cond = x[:1].float(), t[:1].float(), {key: value[:1] for key, value in cond.items()}
    size = unet_size(net, x, t, cond)
    with FlopCounterMode(display=False) as counter:
        net(x, t, cond)
    assert size.flops() == counter.get_total_flops()
    assert size.flops(1, 4) == pytest.approx(size.whole + (size.flops() - size.whole) / 4)
    assert size.flops(1, 4, 0.5) < size.flops(1, 4)
    for part in range(2):
        exchange = Counting(2, part)
        RowPatchesNet(net, Patches(parts=2, synchronous=True), exchange)(x, t, cond)
        assert exchange.traffic.sent == size.sent(part, 2) + size.output_sent(2)
    assert size.sent(0, 2, 0.3) < size.sent(0, 2) if size.attention else True
    meta = {key: value.to("meta") for key, value in cond.items()}
    assert unet_size(net.to("meta"), x.to("meta"), t.to("meta"), meta) == size


def test_a_unet_s_gain_grows_to_the_number_of_processes_where_exchanges_are_free():
    net = digits("unet", size=16).build()
    size = unet_size(net, torch.zeros(1, 1, 16, 16), torch.zeros(1), {"y": torch.zeros(1, dtype=torch.int64)})
    ideal = size.flops() / size.flops(0, 2)
    assert 1.8 < ideal < 2
    for engine in (Patches(), Patches(synchronous=True)):
        assert predicted_speedup(size, FAST, 50, 2, engine) == pytest.approx(ideal, rel=1e-3)
    gains = [predicted_speedup(size, Machine(1e12, 1e9), 50, 2, Patches(synchronous=only)) for only in (False, True)]
    assert ideal > gains[0] > gains[1]
    assert predicted_speedup(size, FAST, 50, 2, Branches(), branches=2) == pytest.approx(2, rel=1e-3)
    with pytest.raises(UserError, match="the engine 'pipefusion' takes no U-Net; allowed: patches, branches"):
        predicted_speedup(size, FAST, 50, 2, PipeFusion())
    with pytest.raises(UserError, match="has no convolutions: give its TransformerSize"):
        unet_size(digits("mlp").build(), torch.zeros(1, 1, 8, 8), torch.zeros(1), {"y": torch.zeros(1).long()})


MEASURED = {  # on two quiet cores, of 256 and of 1024 tokens; docs/processes.md
    "branches": (Branches(), 1.83, 1.93),
    "patches": (Patches(warmup=0), 1.29, 1.55),
    "portion": (Patches(warmup=0, portion=0.3), 1.26, 1.68),
    "synchronous": (Patches(synchronous=True), 1.24, 1.45),
    "ulysses": (Sequence("ulysses"), 1.16, 1.46),
    "ring": (Sequence("ring"), 1.30, 1.09),
    "2 patches": (PipeFusion(), 1.03, 1.10),
    "8 patches": (PipeFusion(patches=8), 0.80, 1.16),
}
CPU = Machine(1.113e11, 5.87e8, 4.41e-4, launch=2.07e-4, overlap=False, contention=1.09, score=5e-9)
CPUS = {256: CPU, 1024: replace(CPU, bandwidth=7.08e8, latency=4.81e-4, contention=1.046)}


def test_predictions_for_a_cpu_are_within_a_fifth_of_what_was_measured():
    """With the same figures for all engines; what exchanges and the other core cost was measured at either size."""
    for name, (engine, *measured) in MEASURED.items():
        for (tokens, machine), speedup in zip(CPUS.items(), measured, strict=True):
            size = TransformerSize(tokens, 384, 8, 6, state=4 * (2 * math.isqrt(tokens)) ** 2, dtype=torch.float32)
            ours = predicted_speedup(size, machine, 4, 2, engine, branches=1 + (name == "branches"))
            assert ours == pytest.approx(speedup, rel=0.2), f"{name}, {tokens}: {ours}"
