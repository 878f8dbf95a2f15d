"""A guide's two evaluations on two processes are those of one process, whatever the guide, the network or the cache."""

import pytest
import torch
import torch.distributed as dist

from gen.config.errors import UserError
from gen.models.dit import DiT
from gen.models.engines.branches import Branches
from tests.models.branch_shares import CASES, N, compare, pipeline_of
from tests.ranks import spread

SENT = {name: both * N * 64 * 4 for name, (_, both) in CASES.items()} | {"unet": 7 * N * 64 * 4}


@pytest.mark.slow
def test_two_processes_give_the_samples_of_one(tmp_path):
    """The bytes are those of one x of float32 for each evaluation with two branches."""
    ranks = spread("tests.models.branch_shares:everything", 2, tmp_path)
    for name in (*SENT, "sd15", "pixart", "loaded"):
        alone = ranks[0][f"{name} alone"]
        for rank in ranks:
            torch.testing.assert_close(rank[f"{name} samples"], alone, rtol=1e-6, atol=1e-6)
            assert torch.equal(rank[f"{name} samples"], ranks[0][f"{name} samples"])
            assert int(rank[f"{name} sent"]) == SENT.get(name, (4 if name == "loaded" else 3) * alone.nbytes), name


@pytest.mark.slow
def test_halves_of_several_processes_are_those_of_one_process(tmp_path):
    """Where a guide's interval leaves evaluations alone, too: the halves then go on with one output."""
    ranks = spread("tests.models.branch_shares:halves", 4, tmp_path)
    names = [name.removesuffix(" alone") for name in ranks[0] if name.endswith(" alone")]
    assert len(names) == 13
    for name in names:
        for rank in ranks:
            assert torch.equal(rank[f"{name} samples"], ranks[0][f"{name} samples"]), name
        torch.testing.assert_close(ranks[0][f"{name} samples"], ranks[0][f"{name} alone"], rtol=1e-4, atol=1e-5)


def test_one_process_is_the_network_to_the_bit(tmp_path):
    with pytest.raises(UserError, match="'branches' needs processes: start them with torchrun"):
        Branches().prepare(DiT.preset("digits").build())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", world_size=1, rank=0)
    try:
        plain = pipeline_of("dit")
        shared = plain.prepared("branches")
        for name in ("cfg", "apg", "probe"):
            found = compare(plain, shared, CASES[name][0], name)
            assert torch.equal(found[f"{name} samples"], found[f"{name} alone"])
            assert found[f"{name} sent"] == 0
    finally:
        dist.destroy_process_group()
