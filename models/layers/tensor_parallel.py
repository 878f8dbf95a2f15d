"""Tensor parallelism of text models through torch's DTensor plans (Megatron-LM, Shoeybi et al. 2019)."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from gen.config.errors import UserError
from gen.models.layers.experts import Mixture

__all__ = ["ExpertParallel", "parallelize_text"]


class ExpertParallel(ParallelStyle):
    """Each process has an equal part of the experts, and adds theirs to the sum over all processes."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def shard(name: str, module: Any, mesh: DeviceMesh) -> None:
            for key, weight in list(module.named_parameters(recurse=False)):
                part = distribute_tensor(weight, mesh, [Shard(0)])
                module.register_parameter(key, nn.Parameter(part, requires_grad=weight.requires_grad))
                module.shared_out, module.first = True, mesh.get_local_rank() * (len(weight) // mesh.size())

        def add_up(module: nn.Module, output: Tensor, mesh: DeviceMesh) -> Tensor:
            partial = DTensor.from_local(output, mesh, [Partial()], run_check=False)
            return partial.redistribute(placements=[Replicate()]).to_local()

        return distribute_module(module, device_mesh, shard, output_fn=cast(Any, add_up))


def parallelize_text(net: Any, mesh: DeviceMesh) -> None:
    """Share the weights of a TextNet out over processes: heads, channels, experts, and ids of an untied head.

    Norms and routers are in every process, which all compute the same logits from the same tokens.

    Args:
        net: the network, which is changed; its weights may be on the meta device.
        mesh: of one dimension.

    Raises:
        UserError: for heads, channels or experts that the processes do not divide; nothing is changed then.
    """
    spec, count, mixtures = net.spec, mesh.size(), [b.mlp for b in net.blocks if isinstance(b.mlp, Mixture)]
    sizes = {"heads": spec.heads, "heads of keys and values": spec.key_heads}
    for block in net.blocks:
        sizes |= {} if block.mlp in mixtures else {"channels of the SwiGLU": block.mlp.w1.out_features}
    for mixture in mixtures:
        sizes["experts"] = len(mixture.experts.w1)
        sizes |= {} if mixture.shared is None else {"channels of the shared expert": mixture.shared.w1.out_features}
    uneven = [f"{size} {name}" for name, size in sizes.items() if size % count]
    if uneven:
        raise UserError(f"tensor_parallel: {count} processes do not divide {', '.join(uneven)}")
    swiglu = {"w1": ColwiseParallel(), "w3": ColwiseParallel(), "w2": RowwiseParallel()}
    for block in net.blocks:
        plan: dict[str, ParallelStyle] = {f"attn.{name}": ColwiseParallel() for name in ("q", "k", "v")}
        plan["attn.o"] = RowwiseParallel()
        if not isinstance(block.mlp, Mixture):
            plan |= {f"mlp.{name}": style for name, style in swiglu.items()}
        else:
            plan["mlp.experts"] = ExpertParallel()
            plan |= {f"mlp.shared.{name}": style for name, style in swiglu.items() if block.mlp.shared is not None}
        parallelize_module(block, mesh, plan)
    if net.head is not None:
        ends = {
            "embed": RowwiseParallel(input_layouts=Replicate()),
            "head": ColwiseParallel(output_layouts=Replicate()),
        }
        parallelize_module(net, mesh, ends)
