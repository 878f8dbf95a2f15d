"""A network whose blocks multiply in eight bits, by torchao, and how far it is from the network that it was."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import unwrap
from gen.diffusion.tap import Tap
from gen.models.energy import EnergyNet
from gen.models.engines.compiled import Compiled
from gen.models.engines.lib.prepared import Dtype, Prepared, choose_dtype
from gen.models.layers.patch import MODULATION
from gen.training.low_precision import block_linears, torchao

__all__ = ["Quantised", "quantised"]


class Quantised(Prepared):
    """A prepared network that compares itself with the plain one at its evaluations 1, 2, 4, 8, ...

    Attributes:
        plain: a copy of the network as it was, until it has been compared often enough; then None.
        drifts: |ours - plain| / |plain| over the batch, of each comparison.
        rounds: whether activations are rounded, which have no gradient then.
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype, about: str, compared: int, rounds: bool):
        super().__init__(net, dtype, about)
        self.name, self.engine = self.about, about.split()[0]
        self.compared, self.calls, self.rounds = compared, 0, rounds
        self.drifts: list[float] = []
        self.register_state_dict_post_hook(_plain_parts)  # type: ignore[no-untyped-call]
        self.plain: nn.Module | None = None
        if rounds and any(isinstance(module, EnergyNet) for module in self.modules()):
            raise self._without_gradient("and this network is a gradient")
        if compared:
            self.plain = copy.deepcopy(unwrap(net)).eval().requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        if self.rounds and x.requires_grad and torch.is_grad_enabled():
            raise self._without_gradient("which this guide or loss needs")
        out = super().forward(x, t, cond, s=s, tap=tap)
        self.calls += 1
        if self.plain is not None and self.calls & (self.calls - 1) == 0:
            with torch.no_grad():
                whole = out if tap is None else super().forward(x, t, cond, s=s)  # a cache's errors are its own
                exact = self.plain(x, t, {k: v for k, v in cond.items() if k != MODULATION}, s=s)
            self._compare(whole.detach(), exact)
        return out

    def _compare(self, out: Tensor, exact: Tensor) -> None:
        self.drifts.append(float((out - exact).double().norm() / exact.double().norm()))
        self.about = f"{self.name}; {max(self.drifts):.2g} from plain, the most of {len(self.drifts)} evaluations"
        if len(self.drifts) == self.compared:
            self.plain = None

    def _without_gradient(self, why: str) -> UserError:
        return UserError(f"the engine {self.engine!r} rounds activations: they have no gradient, {why}; "
                         "take int8_weights, or an engine without 8 bits")  # fmt: skip


def _plain_parts(net: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    """Replace torchao's tensors in a state dict by the plain ones that they consist of."""
    for name, value in list(state.items()):
        if hasattr(value, "__tensor_flatten__"):
            del state[name]
            state |= {f"{name}.{part}": getattr(value, part) for part in value.__tensor_flatten__()[0]}


def quantised(
    net: nn.Module, device: torch.device | str, engine: str, config: Any, dtype: Dtype, compared: int, rounds: bool
) -> Quantised:
    """Return a copy of a network, ready on the device, with its blocks' linear layers in eight bits.

    On a GPU it is compiled: torchao's operations are many small ones otherwise.

    Args:
        net, device: to prepare.
        engine: its name.
        config: function of torchao's module "quantization" and the dtype that returns one of its configurations.
        dtype: of all else, see `choose_dtype`.
        compared: how many evaluations are compared with the plain network's.
        rounds: whether activations are rounded, too.

    Raises:
        UserError: where no layer can be in eight bits (gen.training.low_precision); MissingDependency without torchao.
    """
    chosen, why = choose_dtype(dtype, device, net)
    library = torchao("quantization")
    prepared = Quantised(net, chosen, f"{engine} ({why})", compared, rounds).to(device)
    layers = block_linears(prepared.inner)
    library.quantize_(prepared.inner, config(library, chosen), filter_fn=lambda _, name: name in layers)
    if torch.device(device).type == "cuda":
        Compiled().compile(prepared, device)
    return prepared
