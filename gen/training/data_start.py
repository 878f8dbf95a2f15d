"""Beginnings of adapters by the first batches of a run: EVA and LoRA-GA, by peft."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError

__all__ = ["Losses", "eva_directions", "gradient_batches"]

Losses = Sequence[Callable[[], Tensor]]
PASSES = 400  # of EVA, batch by batch, until each layer's directions stay


def eva_directions(net: nn.Module, config: Any, losses: Losses) -> dict[str, Tensor]:
    """Return the first principal directions [rank, inputs] of each layer's inputs, by name (EVA, arXiv 2410.07170).

    Args:
        net: not yet adapted.
        config: peft's.
        losses: see gen.training.first_losses.

    Raises:
        UserError: if they do not settle.
    """
    from peft import get_eva_state_dict

    passes = 0

    def forward(_net: nn.Module, k: Tensor) -> None:
        nonlocal passes
        passes += 1
        if passes > PASSES:
            raise UserError(
                f"lora.init = 'eva': the inputs of some layers have no {config.r} settled directions; allowed: a lower "
                "rank, larger batches, or targets without the layers of times and labels"
            )
        losses[int(k)]()

    found: dict[str, Tensor] = get_eva_state_dict(
        net, [torch.tensor(k) for k in range(len(losses))], peft_config=config, forward_fn=forward,
        prepare_model_inputs_fn=None, prepare_layer_inputs_fn=_rows, show_progress_bar=False,
        gather_distributed_inputs=False,
    )  # fmt: skip
    return found


def _rows(given: Any, _model: object, _name: str) -> Tensor:
    """Return the inputs of a layer as rows."""
    x: Tensor = given[0] if isinstance(given, tuple) else given
    return x.reshape(-1, x.shape[-1])


def gradient_batches(net: nn.Module, config: Any, losses: Losses) -> None:
    """Leave the gradient of each layer's weight for peft's LoRA-GA (arXiv 2407.05000).

    Args:
        net: not yet adapted.
        config: peft's.
        losses: see gen.training.first_losses.
    """
    from peft.tuners.lora import preprocess_loraga

    def backward() -> None:
        for loss in losses:
            loss().backward()

    with warnings.catch_warnings():  # of hooks on layers whose inputs need no gradient
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        preprocess_loraga(net, config, backward)
    for parameter in net.parameters():
        parameter.grad = None
