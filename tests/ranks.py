"""A function run by several processes that form a gloo group, and the tensors that each of them returns.

The function lives in a module that the processes can import, and takes and returns what `spread` says. The processes
meet through a file, so there is no port that another program could have. They are forked from a server that has
imported what most of them need, once for all tests: imports take longer than most functions.
"""

import importlib
import os
import time
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from gen.training.distributed import shutdown

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = ["torch.distributed.fsdp", "accelerate", "gen.training.trainer", "tests.ranks"]
LAUNCHERS = ("ACCELERATE_", "FSDP_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_")  # variables of theirs


def spread(worker, count, folder, timeout=120, fresh=False, **environ):
    """[{name: tensor} of rank 0, 1, ...] of the function "module:name" without arguments, in such an environment.

    fresh: they import everything themselves, for what reads the environment when it is imported, as Triton does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = get_context("spawn" if fresh else "forkserver")
    context.set_forkserver_preload(IMPORTED)
    given = [(worker, folder, count, rank, environment(**environ)) for rank in range(count)]
    ranks = [context.Process(target=main, args=args) for args in given]
    end = time.monotonic() + timeout
    try:
        with patch.dict(os.environ, environment(**environ)):  # of the server, if it starts now
            for rank in ranks:
                rank.start()
        while any(rank.exitcode is None for rank in ranks) and not any(rank.exitcode for rank in ranks):
            assert time.monotonic() < end, f"{worker}: not done after {timeout} s"
            time.sleep(0.02)
    finally:
        for rank in ranks:  # one that failed leaves the others waiting
            rank.kill()
            rank.join()
    said = [said_by(folder, rank).read_text() for rank in range(count) if ranks[rank].exitcode > 0]
    assert all(rank.exitcode == 0 for rank in ranks), said or [rank.exitcode for rank in ranks]
    return [load_file(folder / f"rank-{rank}.safetensors") for rank in range(count)]


def said_by(folder, rank):
    """The file of what a process writes to stderr."""
    return folder / f"rank-{rank}.txt"


def environment(**changes):
    """One thread to a process, and none of a launcher's variables."""
    ours = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(ROOT)}
    return {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHERS)} | ours | changes


def main(worker, folder, count, rank, environ):
    """Be one of the processes; the environment of the server is that of the test that wanted it first."""
    with said_by(folder, rank).open("w") as errors:
        os.dup2(errors.fileno(), 2)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    module, _, name = worker.partition(":")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", world_size=count, rank=rank)
    tensors = getattr(importlib.import_module(module), name)()
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / f"rank-{rank}.safetensors")
    dist.barrier()
    shutdown()


def as_launched():
    """Set what a launcher tells each process."""
    rank = str(dist.get_rank())
    count, there = str(dist.get_world_size()), {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, **there}
