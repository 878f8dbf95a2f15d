"""The cost of a run before it starts: parameters, operations and memory, counted on tensors that hold no numbers.

Networks are built and one update is computed with PyTorch's fake tensors, which have shapes but no memory, so a network
of eight billion parameters is counted in seconds on any machine. The data need not be there.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.alignment import Features
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.net import members, shape_of
from gen.diffusion.noise import Noise
from gen.training.distillation import teacher_run
from gen.training.lora import adapter_tensors
from gen.training.objectives import Batch
from gen.training.run import Run
from gen.training.state import enable, enable_blocks, trainable_parameters

__all__ = ["Cost", "Counter", "Memory", "cost_of"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Saved = tuple[int, int]  # bytes that are kept for a backward pass: whatever the batch, and for each sample
SAMPLES = 11  # of the batch that is counted; a prime, so that few saved values have the shape of a weight


@dataclass(frozen=True)
class Memory:
    """Bytes on one of several GPUs during training, without what CUDA itself takes.

    Attributes:
        weights: parameters and buffers of all networks, a teacher's among them.
        gradients: of the trained parameters.
        buckets: copies of the gradients that replicated networks exchange.
        optimiser: the optimiser's state.
        averages: those that lie on the GPU.
        activations: what the backward pass of a micro-batch needs.
        step: the optimiser's intermediate values.
        accumulates: whether gradients are there while activations are.
    """

    weights: int
    gradients: int
    buckets: int
    optimiser: int
    averages: int
    activations: int
    step: int
    accumulates: bool

    @property
    def peak(self) -> int:
        """The most at one time: either the activations or, once they are used up, the gradients and the step's."""
        kept = self.weights + self.buckets + self.optimiser + self.averages
        backward = self.activations + (self.gradients if self.accumulates else 0)
        return kept + max(backward, self.gradients + self.step)


@dataclass(frozen=True)
class Cost:
    """The cost of the updates of a run.

    Attributes:
        parameters: (trained, frozen) of each role, and of "teacher".
        forward: operations of one evaluation of the sampling network on one sample; a multiplication and an addition
            are two, where papers count one; None for a network that is no denoiser.
        update: operations of one update of the whole batch, forward and backward.
        micro_batch: samples of one pass on one GPU.
        memory: of one GPU, without gradient checkpointing.
        lean: of one GPU, with gradient checkpointing; None for a network that has none.
        notes: what was not counted.
    """

    parameters: Mapping[str, tuple[int, int]]
    forward: int | None
    update: int
    micro_batch: int
    memory: Memory
    lean: Memory | None
    notes: tuple[str, ...] = ()


def cost_of(run: Run, gpus: int = 8) -> Cost:
    """Count what a run's updates take, with no data and no memory.

    Args:
        run: what would be trained.
        gpus: how many share the batch.

    Raises:
        UserError: for a run without an objective, a batch that the GPUs cannot share equally, and what the objective
            and the network refuse.
    """
    if run.objective is None:
        raise UserError("the run has no objective: an imported model needs one to be trained, e.g. --objective denoise")
    share, rest = divmod(run.batch_size, gpus)
    micro = min(run.micro_batch_size or share, share)
    if rest or share % micro:
        raise UserError(f"batch_size = {run.batch_size} is not shared equally by {gpus} GPUs in parts of {micro}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is slow on a CPU, where nothing is computed
        return _counted(run, gpus, micro, share)


def _counted(run: Run, gpus: int, micro: int, share: int) -> Cost:
    run, notes = _without_frozen(replace(run, gradient_checkpointing=False))
    count = Counter(run)
    parameters, (forward, alone, block) = count.parameters(), count.forward()
    update, activations = count.update()
    lean = count.recomputing(activations, alone, block)

    def memory(saved: Saved) -> Memory:
        return _memory(run, count, saved[0] + micro * saved[1], gpus, accumulates=micro < share)

    update = update * run.batch_size // SAMPLES
    less = memory(lean) if lean else None
    return Cost(parameters, forward, update, micro, memory(activations), less, (*notes, *count.notes))


def _without_frozen(run: Run) -> tuple[Run, tuple[str, ...]]:
    """Return the run without the frozen networks whose weights are read from files, and notes."""
    objective: Any = run.objective
    notes: list[str] = []
    own: Any = getattr(run.model, "encoder", None)
    if hasattr(own, "load") and not hasattr(own, "build"):
        run = replace(run, model=replace(run.model, encoder=Blank(own.dim, own.grid)))
        notes.append("the frozen encoder's own passes are not counted")
    if getattr(objective, "perceptual", None) is not None:
        objective = replace(objective, perceptual=None)
        notes.append("the perceptual distance's own passes are not counted")
    encoder = getattr(objective, "encoder", None)
    if encoder is not None and not getattr(encoder, "reads", None):
        given: Any = Blank(encoder.dim, encoder.grid)
        if not hasattr(run.model, "latent_channels"):  # a denoiser, beside whose data features may be stored
            spec = {"name": "stored", "dim": encoder.dim, "grid": encoder.grid, "cls": hasattr(objective, "cls_weight")}
            given = build("models.encoders", spec)
        objective = replace(objective, encoder=given)
        notes.append("the encoder's own passes are not counted")
    return replace(run, objective=objective), tuple(notes)


@dataclass(frozen=True)
class Blank:
    """A frozen encoder that is not computed: an Encoder whose tokens are zeros.

    Attributes:
        dim, grid, cls: see gen.diffusion.alignment.Encoder, and gen.models.encoders.stored.
    """

    dim: int
    grid: int
    cls: bool = False

    def load(self, device: torch.device | str = "cpu") -> nn.Module:
        """Return the module."""
        return _Zeros(self)


class _Zeros(nn.Module):
    def __init__(self, spec: Blank) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, images: Tensor) -> Features:
        return Features(images.new_zeros(len(images), self.spec.grid**2, self.spec.dim), None)


class Counter:
    """The networks of a run as fake tensors, and what one update takes.

    Args:
        run: what would be trained.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.notes, self.alone = run, list[str](), False
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of copies, which look for the memory that there is none of
            self.teacher = self._teacher() if run.teacher else None
            net = run.model.build()
            enable_blocks(run, net)
            self.nets = {role: part.train() for role, part in self._objective.roles(net, self.teacher).items()}
        self.net = next(iter(self.nets.values()))
        self.shape = members(self.net).state_shape or run.model.shape

    @property
    def _objective(self) -> Any:
        return self.run.objective

    def _teacher(self) -> Denoiser:
        run, folder = self.run, Path(str(self.run.teacher))
        there = folder.is_dir() and checkpoints.manifest_of(folder)
        parent = teacher_run(folder) if there else run
        model = getattr(parent.model, "inner", parent.model) if not there else parent.model
        if not there:
            self.notes.append(f"{folder} is not there: the teacher is taken to be a network like the student's")
        net = model.build().eval().requires_grad_(False)
        return Denoiser(net, parent.path, parent.parameterisation)

    def parameters(self) -> dict[str, tuple[int, int]]:
        """Return (trained, frozen) by role."""
        nets = self.nets | ({"teacher": self.teacher.net} if self.teacher else {})
        counts = {}
        for role, net in nets.items():
            trained = sum(p.numel() for p in trainable_parameters(net).values())
            counts[role] = trained, sum(p.numel() for p in net.parameters()) - trained
        return {role: numbers for role, numbers in counts.items() if sum(numbers)}

    def batch(self) -> Batch:
        """Return a small batch of what the data would give; its numbers do not matter, only its shapes."""
        run, noise, cond = self.run, Noise(tuple(range(SAMPLES))), dict[str, Tensor]()
        encoder = getattr(run.objective, "encoder", None)
        if (vocabulary := getattr(run.model, "vocab_size", None)) is not None:
            allowed = set(range(min(vocabulary, 8))) - {run.model.mask_token_id, *run.model.eos_token_ids}
            return Batch(torch.full((SAMPLES, run.model.length), min(allowed)), {}, noise, noise)
        if run.model.classes:
            cond["y"] = torch.zeros(SAMPLES, dtype=torch.int64)
        if encoder is not None:
            cond["features"] = torch.zeros(SAMPLES, encoder.grid**2 + encoder.cls, encoder.dim)
        if width := getattr(run.model, "vector_width", 0):
            cond["vector"] = torch.zeros(SAMPLES, width)
        return Batch(
            torch.zeros(SAMPLES, *(shape_of(run.model) or ())),
            cond,
            noise,
            noise,
            step=getattr(run.objective, "gan_start", 0),
        )

    def denoisers(self) -> dict[str, Denoiser]:
        """Return every role's network as the trainer hands it to the objective."""
        run = self.run
        roles = {role: Denoiser(net, run.path, run.parameterisation) for role, net in self.nets.items()}
        return roles if self.teacher is None else {**roles, "teacher": self.teacher}

    def forward(self) -> tuple[int | None, Saved, int]:
        """Return the operations of one evaluation on one sample, what it saves, and the most of that in one block.

        The first is None for a network that is no denoiser.
        """
        saved = _Kept(self.nets)
        hooks = [hook for block in self._blocks() for hook in saved.watch(block)]
        with _operations() as counter, saved:
            try:
                self._evaluate(self.batch())
            except UserError:  # an autoencoder
                return None, (0, 0), 0
        for hook in hooks:
            hook.remove()
        return counter.get_total_flops() // SAMPLES, saved.sizes(), saved.largest_block

    def _blocks(self) -> list[nn.Module]:
        return [module for module in self.net.modules() if hasattr(module, "gradient_checkpointing")]

    def _evaluate(self, batch: Batch) -> Tensor:
        x = batch.x if hasattr(self.run.model, "vocab_size") else torch.zeros(SAMPLES, *self.shape)
        with self._autocast():
            if hasattr(self.run.model, "vocab_size"):
                return self.net(x)
            return self.net(x, torch.full((SAMPLES,), 0.5), batch.cond)

    def update(self) -> tuple[int, Saved]:
        """Return the operations of an update, and the bytes that are saved for the backward pass: fixed, per sample."""
        try:
            return self._passes(self._losses())
        except RuntimeError as error:  # what only numbers could tell, as which rows a mask leaves
            name, why = type(self.run.objective).__name__, type(error).__name__
            self.notes.append(
                f"{name} cannot be followed without numbers ({why}): only the network's own forward and backward pass "
                "are counted"
            )
            self.alone = True
            return self._passes(self._losses())

    def recomputing(self, update: Saved, alone: Saved, block: int) -> Saved | None:
        """Return what an update saves with gradient checkpointing; None for a network that has none.

        It is to what it saves without as that of one evaluation is. From here on the networks compute with it.

        Args:
            update: what an update saves without.
            alone: what one evaluation saves without.
            block: the most of that in one block, which its recomputation takes; 0 if blocks are not called as modules.
        """
        if not alone[1] or not enable(self.net, "gradient_checkpointing"):
            return None
        blocks = len(self._blocks())
        _, (fixed, each), _ = self.forward()
        block = max(block, (alone[1] - each) // blocks)
        return min(fixed, update[0]), update[1] * (each + block) // alone[1]

    def _losses(self) -> Iterator[Callable[[], Tensor | None]]:
        """Yield functions that compute the next loss; None when there is none."""
        if self.alone:
            return iter([lambda: self._evaluate(self.batch()).float().square().mean()])
        running = iter(self._objective(self.denoisers(), self.batch()))

        def following() -> Tensor | None:
            with self._autocast():
                part = next(running, None)
            return None if part is None else part[1]

        return itertools.repeat(following)

    def _passes(self, losses: Iterator[Callable[[], Tensor | None]]) -> tuple[int, Saved]:
        """Compute losses and their gradients; return the operations, and the most that one of the losses saves."""
        largest = (0, 0)
        with _operations() as counter:
            for following in losses:
                saved = _Kept(self.nets)
                with saved:
                    loss = following()
                if loss is None:
                    break
                largest = max(largest, saved.sizes(), key=sum)
                loss.backward()
                self._drop_gradients()
        return counter.get_total_flops(), largest

    def _drop_gradients(self) -> None:
        for net in self.nets.values():
            for parameter in net.parameters():
                parameter.grad = None

    def _autocast(self) -> Any:
        dtype = DTYPES.get(self.run.precision)
        return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """The storages that a forward pass keeps for the backward pass, beside the parameters themselves.

    Attributes:
        largest_block: bytes of one sample that the inner values of one block take, at most.
    """

    def __init__(self, nets: Mapping[str, nn.Module]) -> None:
        weights = [p for net in nets.values() for p in net.parameters()]
        self._own = {p.untyped_storage()._cdata for p in weights}
        self._shapes = {tuple(sorted(p.shape)) for p in weights}
        self._fixed, self._batch, self.largest_block = dict[int, int](), dict[int, int](), 0
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:  # autocast's copy of a weight does not depend on the batch
            cast = tensor.dtype != torch.float32 and tuple(sorted(tensor.shape)) in self._shapes
            (self._fixed if cast else self._batch)[storage._cdata] = storage.nbytes()
        return tensor

    def sizes(self) -> Saved:
        """Return the bytes that do not depend on the batch, and those of one sample."""
        return sum(self._fixed.values()), sum(self._batch.values()) // SAMPLES

    def watch(self, block: nn.Module) -> list[Any]:
        """Measure what a block's inner values take; return the hooks that do."""
        began = list[int]()

        def before(*_: object) -> None:
            began.append(self.sizes()[1])

        def after(*_: object) -> None:
            self.largest_block = max(self.largest_block, self.sizes()[1] - began.pop())

        return [block.register_forward_pre_hook(before), block.register_forward_hook(after)]


def _operations() -> FlopCounterMode:
    """Return a counter of products, convolutions and attention, which also knows attention on the CPU."""
    aten = torch.ops.aten
    attention: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


def _memory(run: Run, count: Counter, activations: int, gpus: int, accumulates: bool) -> Memory:
    """Return the memory of one GPU."""
    parts = gpus if run.shard else 1
    trained = [p for net in count.nets.values() for p in trainable_parameters(net).values()]
    gradients = sum(p.nbytes for p in trained) // parts
    nets = [_tensors(net) for net in count.nets.values()]
    averages = map(adapter_tensors, nets) if run.lora else nets
    outer = 0 if run.outer is None else 2 * sum(p.nbytes for p in trained)  # outer weights and their velocity
    on_gpu = 0 if run.ema_device == "cpu" else len(run.ema)
    return Memory(
        weights=_bytes(*nets) // parts + (_bytes(_tensors(count.teacher.net)) if count.teacher else 0),
        gradients=gradients,
        buckets=gradients if gpus > 1 and not run.shard and run.outer is None else 0,
        optimiser=int(_state_bytes(run) * sum(p.numel() for p in trained)) // parts + outer,
        averages=on_gpu * _bytes(*averages) // parts,
        activations=activations,
        step=gradients,
        accumulates=accumulates,
    )


def _tensors(net: nn.Module) -> dict[str, Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _bytes(*nets: Mapping[str, Tensor]) -> int:
    """Return the bytes of tensors, which networks may share."""
    return sum({id(tensor): tensor.nbytes for net in nets for tensor in net.values()}.values())


def _state_bytes(run: Run) -> float:
    """Return the bytes of an optimiser's state for each parameter, as its first step leaves them."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = torch.ones_like(parameter)
    optimiser = run.optim.build([{"params": [parameter], "scale": 1.0}])
    optimiser.step()
    state = optimiser.state[parameter].values()
    return sum(value.nbytes for value in state if isinstance(value, Tensor)) / parameter.numel()
