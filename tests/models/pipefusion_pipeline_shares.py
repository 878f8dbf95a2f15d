"""What each process of tests/models/test_pipefusion_pipelines.py computes."""

import torch
import torch.distributed as dist

from gen.models.engines.pipefusion import PipeFusion
from gen.models.interop.pipelines.blocks import BlockStream
from tests.models import pipeline_shares
from tests.models.pipeline_shares import loop, network_of

FAMILIES = [name for name in pipeline_shares.FAMILIES if name != "sd15"]


def everything():
    found, rank = {}, dist.get_rank()
    for name in FAMILIES:
        net, x, t, cond = network_of(name)
        ours, sizes = PipeFusion(warmup=1).prepare(net), []
        first, network = ours.blocks[0], ours.network

        def tokens(block, args, kwargs, sizes=sizes):
            sizes.append(BlockStream(block).read(args, kwargs).nbytes)

        def output(module, args, out, sizes=sizes):
            sizes.append(out[0].nbytes)

        handles = first.register_forward_pre_hook(tokens, with_kwargs=True), network.register_forward_hook(output)
        found[f"{name} outputs"] = torch.stack(loop(ours, x, t, cond))
        for handle in handles:
            handle.remove()
        found[f"{name} sent"] = torch.tensor([ours.traffic.sent, sum(sizes[rank::2])])
        if rank == 0:
            parts = PipeFusion(warmup=1, parts=2).prepare(net)
            found[f"{name} one process"] = torch.stack(loop(parts, x, t, cond))
    return found
