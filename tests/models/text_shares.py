"""What each process of tests/models/test_tensor_parallel.py computes."""

import contextlib
import io
import os
from pathlib import Path

import torch

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.models.text import Text

PROMPTS = [[1, 2, 3], [7], [5, 9, 9, 2, 4]]


def tokens():
    return torch.randint(0, 60, (3, 21), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def everything():
    """Logits, texts, and the share of the numbers that this process has, of every model in a folder."""
    out = {}
    for folder in sorted(Path(os.environ["RUNS"]).iterdir()):
        exact, pipeline = (gen.load(folder, tensor_parallel=2, dtype=dtype) for dtype in ("float64", None))
        out[f"{folder.name} logits"] = exact.net(tokens())
        made = pipeline.generate(PROMPTS, 12, stopping_rules=())
        out[f"{folder.name} texts"] = torch.cat([d.text(i) for d in made.decoded for i in range(len(d.nfe))])
        parts = [getattr(p, "to_local", lambda p=p: p)() for p in pipeline.net.parameters()]
        out[f"{folder.name} share"] = torch.tensor(sum(p.numel() for p in parts) / pipeline.params)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert (
                main(["decode", str(folder), "--prompt", "3 1 4", "--gen-length", "6", "--tensor-parallel", "2"]) == 0
            )
        out[f"{folder.name} said"] = torch.tensor([ord(c) for c in said.getvalue()], dtype=torch.int64)
    out["refused"] = torch.tensor([refusal(how) for how in (ODD, {"tensor_parallel": 3}, {"max_memory": {}})])
    return out


ODD = {"heads": 3}


def refusal(how):
    """Whether it is refused in one line."""
    try:
        if how is ODD:
            from torch.distributed.device_mesh import init_device_mesh

            Text(width=24, heads=3, depth=1).build().parallelize(init_device_mesh("cpu", (2,)))
        else:
            gen.load(next(Path(os.environ["RUNS"]).iterdir()), **{"tensor_parallel": 2, **how})
    except UserError as error:
        return "\n" not in str(error)
    return False
