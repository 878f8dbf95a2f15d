"""Peak memory of a block-diffusion training step by the length of a text, each case in a process of its own.

python scripts/bench_text_memory.py                      # 4096, 8192 and 16384 tokens, a few minutes of one core
python scripts/bench_text_memory.py --dense 4096 8192    # beside a mask of N x N

Memory is the largest sum of all tensors' bytes that live at one time of the step, the network's left out.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout

import argparse
import subprocess
import time
import weakref
from dataclasses import replace
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.kernels.attention import attention
from gen.models.layers import text as layers
from gen.models.text import Text
from gen.text.mask_path import LogLinear
from gen.training.objectives import Batch
from gen.training.objectives.bd3 import BD3
from gen.training.state import enable

MODEL = Text(width=128, depth=4, heads=4, qk_norm=True, block_size=16)


class Memory(TorchDispatchMode):
    """The bytes of all tensors that operations return within, as long as they live, and their peak."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return out

    def freed(self, key, size):
        self.known.remove(key)
        self.bytes -= size


def step(net, length):
    """Compute loss and gradients of one text; return the seconds of the processor that took."""
    x = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(0))
    batch = Batch(x, {"length": torch.tensor([length])}, training_noise(0, 0, [0]))
    began = time.process_time()
    _, loss, _ = next(iter(BD3()({"net": Denoiser(net, LogLinear(), None)}, batch)))
    loss.backward()
    return time.process_time() - began


def measure(length, dense, recomputed):
    """Print the peak in MiB, and the seconds of a step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = replace(MODEL, length=length).build()
    if recomputed:
        enable(net, "gradient_checkpointing")
    kernel = attention.only("dense") if dense else attention
    with mock.patch.object(layers, "attention", kernel), Memory() as memory:
        seconds = step(net, length)
    print(memory.peak / 2**20, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="*", default=[4096, 8192, 16384])
    parser.add_argument("--dense", type=int, nargs="*", default=[], help="lengths that are measured with a dense mask")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        length, dense, recomputed = map(int, args.case)
        measure(length, bool(dense), bool(recomputed))
        return
    print("| tokens | mask | gradient checkpointing | MiB | processor s |\n|---|---|---|---|---|")
    for dense, lengths in ((False, args.lengths), (True, args.dense)):
        for length in lengths:
            for recomputed in (False, True):
                command = [sys.executable, __file__, "--case", str(length), str(int(dense)), str(int(recomputed))]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
                mask, kept = "N x N" if dense else "rule", "yes" if recomputed else "no"
                print(f"| {length} | {mask} | {kept} | {float(out[0]):.0f} | {float(out[1]):.1f} |", flush=True)


if __name__ == "__main__":
    main()
