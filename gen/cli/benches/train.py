"""A training step of a DiT: forward, backward and AdamW, of our network and of diffusers' with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from gen.cli.benches.lib.dit import Nets, forward_flops, specification
from gen.eval.bench import BenchContext, Call, Case, Unavailable
from gen.models.layers.block import Block
from gen.training.optim.adamw import AdamW

__all__ = ["train"]

NEVER = 1e-30  # a learning rate at which float32 weights stay: every step starts from the same ones and costs the same
CPU = "on a CPU compiling takes longer than all of this part"
ROWS = 4  # of the batch at a time in float64, which would not have room for all


def train(context: BenchContext) -> Iterator[Case]:
    """Yield cases of DiT-S/2 on a CPU, XL/2 on a GPU.

    In bfloat16 that is autocast over weights in float32, as gen.training.trainer has it. The step is that of a
    regression on given targets, the same for both sides; optimisers are gen.training.optim's AdamW and, for diffusers'
    model, PyTorch's, fused on a GPU. The gate looks at the loss and at the gradients of the first layer, the last, and
    one in between. MFU takes a step as three forwards.

    Args:
        context: device, dtype and size.
    """
    for size, batch in (("S/2", 2),) if context.quick or not context.cuda else (("XL/2", 64),):
        yield _case(context, size, batch)


def _case(context: BenchContext, size: str, batch: int) -> Case:
    spec = specification(size, context)
    nets = Nets(spec, context)
    steps = _Steps(nets)

    def inputs(seed: int) -> tuple[Tensor, ...]:
        x, t, y = nets.draw(batch, seed)
        return x.float(), t, y, nets.draw(batch, seed + 1_000_000)[0].float()

    def exact(x: Tensor, t: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        net, total = nets.double(), x.new_zeros((), dtype=torch.float64)
        net.requires_grad_().zero_grad(set_to_none=True)
        for i in range(0, batch, ROWS):
            rows = slice(i, i + ROWS)
            out = net(x[rows].double(), t[rows].double(), {"y": y[rows]})
            loss = (out - target[rows]).square().sum() / target.numel()
            loss.backward()
            total += loss.detach()
        return total, *(p.grad for p in _ours_looked_at(net) if p.grad is not None)

    return Case(
        name=f"DiT-{size}{', tiny' if context.quick else ''}, batch {batch}",
        dtype=context.dtype,
        calls=[
            Call("plain", lambda: steps.ours(), ours=True),
            Call("fused", lambda: steps.ours(fused=True), ours=True),
            Call("compiled", lambda: steps.ours(compiled=True), ours=True),
            Call("diffusers eager", lambda: steps.theirs()),
            Call("diffusers compiled", lambda: steps.theirs(compiled=True)),
        ],
        inputs=inputs,
        exact=exact,
        baseline="diffusers eager",
        tolerance_ulps=1024,
        flops=3 * batch * forward_flops(spec),
        rates={"images/s": batch},
        grad=True,
        mfu=True,
    )


class _Steps:
    """The two networks with their optimisers, and the steps that train them."""

    def __init__(self, nets: Nets):
        self.nets, self.context = nets, nets.context

    @cached_property
    def our_net(self) -> tuple[Any, torch.optim.Optimizer]:
        net = self.nets.net.requires_grad_()
        net.pos_embed.requires_grad_(False)
        return net, AdamW(lr=NEVER).build(p for p in net.parameters() if p.requires_grad)

    @cached_property
    def their_net(self) -> tuple[Any, torch.optim.Optimizer]:
        model = self.nets.diffusers(torch.float32).requires_grad_()
        return model, torch.optim.AdamW(model.parameters(), lr=NEVER, weight_decay=0.0, fused=self.context.cuda)

    def ours(self, fused: bool = False, compiled: bool = False) -> Callable[..., tuple[Tensor, ...]]:
        net, optimiser = self.our_net
        called = self._compiled(net) if compiled else net
        blocks = [block for block in net.blocks if isinstance(block, Block)]

        def forward(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            for block in blocks:
                block.fused = fused
            return called(x, t, {"y": y})

        return self._step(forward, optimiser, _ours_looked_at(net))

    def theirs(self, compiled: bool = False) -> Callable[..., tuple[Tensor, ...]]:
        model, optimiser = self.their_net
        called = self._compiled(model) if compiled else model

        def forward(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            out: Tensor = called(x, timestep=t, class_labels=y, return_dict=False)[0]
            return out[:, : self.nets.spec.channels]

        return self._step(forward, optimiser, _theirs_looked_at(model))

    def _compiled(self, net: nn.Module) -> Any:
        if not (self.context.cuda or self.context.quick):
            raise Unavailable(CPU)
        return self.context.compiled(net)

    def _step(
        self, forward: Callable[..., Tensor], optimiser: torch.optim.Optimizer, looked_at: list[nn.Parameter]
    ) -> Callable[..., tuple[Tensor, ...]]:
        """The loss, and the gradients of those parameters."""
        device, dtype = self.context.device.type, self.context.dtype

        def step(x: Tensor, t: Tensor, y: Tensor, target: Tensor) -> tuple[Tensor, ...]:
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                out = forward(x, t, y)
            loss = mse_loss(out.float(), target)
            loss.backward()
            optimiser.step()
            return loss.detach(), *(p.grad for p in looked_at if p.grad is not None)

        return step


def _ours_looked_at(net: Any) -> list[nn.Parameter]:
    middle = net.blocks[len(net.blocks) // 2]
    return [net.x_embedder["proj"].weight, middle.mlp.fc1.weight, net.final_layer.linear.weight]


def _theirs_looked_at(model: Any) -> list[nn.Parameter]:
    middle = model.transformer_blocks[len(model.transformer_blocks) // 2]
    return [model.pos_embed.proj.weight, middle.ff.net[0].proj.weight, model.proj_out_2.weight]
