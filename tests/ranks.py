"""A function run by several processes that form a gloo group, and the tensors that each of them returns.

The function lives in a module that the processes can import, and takes and returns what `spread` says. The processes
meet through a file, so there is no port that another program could have.
"""

import importlib
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from gen.training.distributed import shutdown

ROOT = Path(__file__).resolve().parents[1]


def spread(worker, count, folder, timeout=120, **environ):
    """[{name: tensor} of rank 0, 1, ...] of the function "module:name" without arguments, in such an environment."""
    folder.mkdir(parents=True, exist_ok=True)
    code = [sys.executable, "-m", "tests.ranks", worker, str(folder), str(count)]
    said = [folder / f"rank-{rank}.txt" for rank in range(count)]
    ranks = []
    for rank, path in enumerate(said):
        with path.open("w") as errors:
            ranks.append(subprocess.Popen([*code, str(rank)], cwd=ROOT, env=environment(**environ), stderr=errors))
    end = time.monotonic() + timeout
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            assert time.monotonic() < end, f"{worker}: not done after {timeout} s"
            time.sleep(0.02)
    finally:
        for rank in ranks:  # one that failed leaves the others waiting
            rank.kill()
            rank.wait()
    wrong = [path.read_text() for rank, path in zip(ranks, said, strict=True) if rank.returncode > 0]
    assert all(rank.returncode == 0 for rank in ranks), wrong or [rank.returncode for rank in ranks]
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(count)]


def environment(**changes):
    """One thread to a process, and none of a launcher's variables."""
    ours = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    strange = ("ACCELERATE_", "FSDP_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")
    return {k: v for k, v in os.environ.items() if not k.startswith(strange)} | ours | changes


def main(worker, folder, count, rank):
    torch.set_num_threads(1)
    module, _, name = worker.partition(":")
    where = {"init_method": f"file://{folder}/meeting", "world_size": int(count), "rank": int(rank)}
    dist.init_process_group("gloo", **where)
    tensors = getattr(importlib.import_module(module), name)()
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, Path(folder) / f"rank-{rank}.safetensors")
    dist.barrier()
    shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
