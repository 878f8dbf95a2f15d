"""Adapters by peft: a network learns by a few numbers beside its layers, which alone are stored.

The network that they were trained on lies in the folder run.init, which gen.load reads, too, and adds them up; or it
was given as an object, as it is to gen.load. Its weights never change: an initialisation that peft pairs with changed
weights W - s B0 A0 is a second, frozen adapter -s B0 A0 here, so that the adapters alone fit the original ones.
Adapters are float32 at least.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import MissingDependency, UserError, nearest
from gen.config.fields import check_fields
from gen.training.adapter_layers import NORMS, NormalisedLoRA, normalises, row_norms, subtract_from_weight
from gen.training.data_start import Losses, eva_directions, gradient_batches

__all__ = ["LoRA", "adapted", "adapted_copy", "adapter_tensors", "by_layer", "merged", "saved_tensors"]

A, B = "lora_A.default.weight", "lora_B.default.weight"
MAGNITUDE = "lora_magnitude_vector.default.weight"
OWN = re.compile(r"(.+)\.((?:lora|lokr|miss)_\w+\.(?:default|start)(?:\.weight)?)")  # layer, tensor of its adapter
MOVED = ("pissa", "olora", "lora_ga")  # initialisations that begin anywhere: the network begins at W - s B0 A0


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters W + alpha / rank B A of linear layers (Hu et al. 2021, arXiv 2106.09685), and their relatives.

    Every method and initialisation begins with the network as it is.

    Attributes:
        rank: of the product, at least 1.
        alpha: positive; None for the rank, a factor of 1 of "lora"; "miss" has none.
        targets: patterns (fnmatch) of the names of the layers that get one, or of their last parts, such as "q", "k"
            and "v", "attn.o" or "blocks.1?.mlp.*"; convolutions among them get one, too, by lora, rslora, dora and
            lokr. () for every linear layer but the head.
        dropout: share of an adapter's inputs that are dropped in training; "lokr" has none.
        method: "lora"; "rslora", alpha / sqrt(rank) for alpha / rank (Kalajdzievski 2023, arXiv 2312.03732); "dora",
            the norm of each row of the weight apart from its direction (Liu et al. 2024, arXiv 2402.09353); "lokr", a
            Kronecker product (Yeh et al. 2023, arXiv 2309.14859); "miss", one matrix that blocks of inputs share, once
            called Bone (Kang & Yin 2024, arXiv 2409.15371). A layer that normalises its own weight, as all of EDM2 do,
            takes the first two: rows of W + |W_i| scale B A, which it normalises.
        init: of A and B. "default" is the method's own: for LoRA uniform A and B = 0; "gaussian", normal A and B = 0;
            "orthogonal", B A = 0 by orthogonal rows, of even rank (as peft describes it); "pissa", the largest singular
            vectors of W (Meng et al. 2024, arXiv 2404.02948); "olora", the QR decomposition of W (Büyükakyüz 2024,
            arXiv 2406.01775); by the first batches of the run "eva", the principal directions of a layer's inputs and
            B = 0 (Paischer et al. 2024, arXiv 2410.07170, without moving ranks between layers), and "lora_ga", the
            singular vectors of the gradient of W (Wang et al. 2024, arXiv 2407.05000). A layer that is too small for
            these two begins as by "default".
        factor: of "lokr", the sides of the first, whole factor of its product where they divide those of the weight;
            None for the sides nearest below the square roots of the weight's.
    """

    rank: int = 16
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    method: Literal["lora", "rslora", "dora", "lokr", "miss"] = "lora"
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga"] = "default"
    factor: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, rank="[1, 1000000]", alpha="(0, inf)", dropout="[0, 1)", factor="[2, inf)")
        own_start = self.method in ("lokr", "miss") and self.init != "default"
        if own_start:
            raise UserError(f"lora: init = {self.init!r} is not for method = {self.method!r}")
        if self.init == "orthogonal" and self.rank % 2:
            raise UserError(f"lora: init = 'orthogonal' with rank = {self.rank}; allowed: an even rank")
        if self.method == "miss" and self.alpha is not None:
            raise UserError("lora: method = 'miss' has no alpha: leave it out")
        if self.method == "lokr" and self.dropout:
            raise UserError("lora: method = 'lokr' has no dropout: leave it out")
        if self.method != "lokr" and self.factor is not None:
            raise UserError(f"lora: method = {self.method!r} has no factor, which is of 'lokr': leave it out")

    @property
    def scale(self) -> float:
        """Factor of B A."""
        own = self.rank if self.alpha is None else self.alpha
        return own / (self.rank**0.5 if self.method == "rslora" else self.rank)

    def layers(self, net: nn.Module) -> list[str]:
        """Return the names of the layers of a network that get an adapter.

        Args:
            net: the network.

        Raises:
            UserError: if there are none, or none for one of the targets.
        """
        of = {
            name: module
            for name, module in net.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d)) or normalises(module)
        }
        linear = [name for name, module in of.items() if _is_linear(module)]
        if not of:
            raise UserError(f"lora: {type(net).__name__} has no linear layers and no plain convolutions to adapt")
        if not self.targets:
            return [name for name in linear if name != "head"]
        whole = self.method != "miss" and self.init in ("default", "gaussian")
        known = [name for name, module in of.items() if (whole and getattr(module, "groups", 1) == 1) or name in linear]
        chosen = set[str]()
        for target in self.targets:
            names = [name for name in known if fnmatch(f".{name}", f"*.{target}")]
            if not names:
                ends = dict.fromkeys(end for name in known for end in (name, name.rpartition(".")[2]))
                what = "linear layer or convolution" if whole else "linear layer"
                raise UserError(f"lora.targets: no {what} is called {target!r}. {nearest(target, ends)}")
            chosen.update(names)
        return [name for name in known if name in chosen]

    @property
    def reads_data(self) -> bool:
        """Whether the adapters begin where the first batches say."""
        return self.init in ("eva", "lora_ga")

    def fits(self, layer: Any) -> bool:
        """Return whether a linear layer is large enough for an initialisation by data.

        Args:
            layer: the layer.
        """
        out, inner = layer.weight.shape
        return inner > self.rank if self.init == "eva" else min(out, inner) >= 2 * self.rank

    def check_layers(self, layers: Mapping[str, Any]) -> None:
        """Raise UserError for layers that cannot have such an adapter.

        Args:
            layers: by name.
        """
        own = [name for name, layer in layers.items() if normalises(layer)]
        plain = self.method in ("lora", "rslora") and self.init in ("default", "gaussian") and not self.dropout
        if own and (len(own) < len(layers) or not plain):
            raise UserError(f"lora: {own[0]} normalises its own weight; allowed there: method lora or rslora, init "
                            "default or gaussian, no dropout, and no layers of other kinds beside it")  # fmt: skip
        if self.init in ("pissa", "olora") and any(layer.weight.dtype == torch.float64 for layer in layers.values()):
            raise UserError(f"lora: init = {self.init!r} decomposes weights in float32, and these are float64; "
                            "allowed: a float32 network, or another init")  # fmt: skip
        narrow = next((name for name, layer in layers.items() if self._is_narrow(layer)), None)
        if narrow is not None:
            raise UserError(f"lora: method = 'miss' with rank = {self.rank}, and {narrow} has fewer inputs; allowed: a "
                            f"rank up to {layers[narrow].in_features}, or targets without it")  # fmt: skip

    def _is_narrow(self, layer: Any) -> bool:
        """Return whether a layer has fewer inputs than "miss" needs."""
        return self.method == "miss" and layer.in_features < self.rank

    def config(self, names: list[str], **changes: Any) -> Any:
        """Return peft's configuration of the adapters of some layers; MissingDependency without peft.

        Args:
            names: of the layers.
            changes: fields of peft's that differ.
        """
        try:
            from peft import EvaConfig, LoKrConfig, LoraConfig, LoraGAConfig, MissConfig
        except ImportError:
            raise MissingDependency("lora needs peft: pip install 'gen-diffusion[lora]'") from None
        alpha: Any = self.rank if self.alpha is None else self.alpha
        if self.method == "miss":
            return MissConfig(r=self.rank, miss_dropout=self.dropout, target_modules=names)
        if self.method == "lokr":
            return LoKrConfig(r=self.rank, alpha=alpha, target_modules=names, decompose_factor=self.factor or -1)
        init: Any = True if self.init == "default" else self.init
        given: dict[str, Any] = {
            "lora_alpha": alpha,
            "lora_dropout": self.dropout,
            "init_lora_weights": init,
            "use_rslora": self.method == "rslora",
            "use_dora": self.method == "dora",
            **changes,
        }
        if given["init_lora_weights"] == "eva":
            given["eva_config"] = EvaConfig(rho=1.0)
        elif given["init_lora_weights"] == "lora_ga":
            given["lora_ga_config"] = LoraGAConfig()
        return LoraConfig(r=self.rank, target_modules=names, **given)


def adapted(given: nn.Module, lora: LoRA | None, losses: Losses = ()) -> nn.Module:
    """Return the network, changed in place: all of it frozen, with adapters that are trained.

    Args:
        given: the network.
        lora: the adapters; None for none: the network stays as it is.
        losses: of the network on the first batches, see gen.training.first_losses, for an initialisation by data; ()
            for adapters that are read from a checkpoint next.

    Raises:
        MissingDependency: without peft.
        UserError: for targets that the network has not, and for a network with adapters of others.
    """
    if lora is None:
        return given
    others = [
        one
        for module in given.modules()
        if hasattr(module, "base_layer")
        for one in getattr(module, "active_adapters", ())
    ]
    if others:
        raise UserError(f"lora: the network has adapters already ({', '.join(dict.fromkeys(others))}): add them to its "
                        "weights first, pipe.fuse_lora() and pipe.unload_lora_weights(), or unload them")  # fmt: skip
    names = lora.layers(given)
    layers = {name: given.get_submodule(name) for name in names}
    lora.check_layers(layers)
    config = lora.config(names)
    net: Any = given
    if normalises(layers[names[0]]):
        net.requires_grad_(False)
        for name, layer in layers.items():
            net.set_submodule(name, NormalisedLoRA(layer, lora.rank, lora.scale, lora.init == "gaussian"))
    else:
        _inject(net, lora, config, layers, losses)
    for name, parameter in net.named_parameters():
        if OWN.fullmatch(name):  # 16 bits would round small updates away
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    net.adapted = True  # gen.training.state stores its adapters alone
    return given


def _inject(net: Any, lora: LoRA, config: Any, layers: Mapping[str, Any], losses: Losses) -> None:
    """Give layers of a network, by name, their adapters."""
    from peft import inject_adapter_in_model

    directions: dict[str, Tensor] = {}
    fit = [name for name, layer in layers.items() if losses and lora.fits(layer)]
    if fit and lora.init == "eva":
        directions = eva_directions(net, lora.config(fit), losses)
    elif fit:
        gradient_batches(net, lora.config(fit), losses)
    weights: dict[str, Any] = {name: layer.weight.data for name, layer in layers.items()} if lora.init in MOVED else {}
    for name, weight in weights.items():  # others may share it, and peft changes it
        layers[name].weight.data = weight.clone()
    inject_adapter_in_model(config, net.requires_grad_(False))
    for name, weight in weights.items():
        layers[name].weight.data = weight
    for name, rows in directions.items():
        net.get_submodule(name).lora_A["default"].weight.data.copy_(rows)
    if weights:
        _subtract_start(net, lora, list(layers))


def _subtract_start(net: Any, lora: LoRA, names: list[str]) -> None:
    """Keep as the frozen adapter "start" what the adapter "default" begins with, and take it off.

    It is one more adapter of alpha < 0; for DoRA, whose norms are those of the sum, the weight reads as less of it.
    """
    own, dora = float(lora.rank if lora.alpha is None else lora.alpha), lora.method == "dora"
    config = lora.config(names, lora_dropout=0.0, init_lora_weights=True, use_dora=False)
    for name in names:
        layer = net.get_submodule(name)
        layer.update_layer("start", lora.rank, lora_alpha=-own, config=config)
        layer.set_adapter(["default"] if dora else ["default", "start"])
        for part in (layer.lora_A, layer.lora_B):
            part["start"].weight = nn.Parameter(part["default"].weight.detach().clone(), requires_grad=False)
        if dora:
            subtract_from_weight(layer, lora.scale)


def _is_linear(layer: Any) -> bool:
    """Return whether a layer is a linear map of channels; of those that normalise their weight also a 1 x 1 kernel."""
    return isinstance(layer, nn.Linear) or (normalises(layer) and layer.weight[0].numel() == layer.weight.shape[1])


def adapted_copy(net: nn.Module) -> nn.Module:
    """Return a copy of a network; of one with adapters these alone are copied, beside the same weights and buffers.

    Args:
        net: any; `adapted` gives adapters.
    """
    named = itertools.chain(net.named_parameters(), net.named_buffers())
    adapters = getattr(net, "adapted", False)
    shared: dict[int, Any] = {id(one): one for name, one in named if adapters and not OWN.fullmatch(name)}
    return copy.deepcopy(net, shared)


def adapter_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of adapters, by name; all of a network that has none.

    Args:
        tensors: a network's state.
    """
    own = {name: tensor for name, tensor in tensors.items() if OWN.fullmatch(name)}
    return own or dict(tensors)


@torch.no_grad()
def merged(base: Mapping[str, Tensor], adapters: Mapping[str, Tensor], lora: LoRA) -> dict[str, Tensor]:
    """Return the state of a network with its adapters added in, in float32 at least, then rounded to its own dtype.

    Args:
        base: the state without adapters.
        adapters: their tensors, as of `adapter_tensors`.
        lora: the adapters.

    Raises:
        UserError: for adapters of another network.
    """
    out = dict(base)
    for name, parts in by_layer(adapters):
        weight = base.get(f"{name}.weight")
        if weight is None:
            raise UserError(f"the adapter of {name} does not fit the network that run.init holds")
        wide = torch.promote_types(weight.dtype, torch.float32)
        try:
            whole = _with_adapter(
                weight.to(wide), {key: part.to(weight.device, wide) for key, part in parts.items()}, lora
            )
        except (RuntimeError, KeyError, ValueError):  # other shapes or tensors
            raise UserError(f"the adapter of {name} does not fit the network that run.init holds") from None
        out[f"{name}.weight"] = whole.to(weight.dtype)
    return out


def by_layer(adapters: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the name of each layer with an adapter, and the adapter's tensors by their own names.

    Args:
        adapters: as of `adapter_tensors`.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapters.items():
        if match := OWN.fullmatch(name):
            layers.setdefault(match[1], {})[match[2]] = tensor
    yield from layers.items()


def saved_tensors(adapters: Mapping[str, Tensor], lora: LoRA) -> dict[str, Tensor]:
    """Return adapters by the names that peft and diffusers store, of alpha = rank: the factor is in B.

    Those of an initialisation that is subtracted have twice the rank: [B, -B0] [A; A0].

    Args:
        adapters: as of `adapter_tensors`.
        lora: the adapters.

    Raises:
        UserError: for a method that diffusers does not load.
    """
    if lora.method in ("lokr", "miss"):
        raise UserError(f"method = {lora.method!r} is not one that diffusers loads; allowed: lora, rslora, dora")
    out = dict[str, Tensor]()
    for name, parts in by_layer(adapters):
        down, up = parts[A], lora.scale * parts[B]
        if lora.init in MOVED:
            down = torch.cat([down, parts[A.replace("default", "start")]])
            up = torch.cat([up, -lora.scale * parts[B.replace("default", "start")]], 1)
        out |= {f"{name}.lora_A.weight": down.contiguous(), f"{name}.lora_B.weight": up.contiguous()}
        if lora.method == "dora":
            out[f"{name}.lora_magnitude_vector.weight"] = parts[MAGNITUDE].contiguous()
    return out


def _with_adapter(weight: Tensor, parts: Mapping[str, Tensor], lora: LoRA) -> Tensor:
    """Return the weight of one layer with its adapter added in."""
    if lora.method in ("lora", "rslora", "dora"):
        delta = lora.scale * parts[B].flatten(1) @ parts[A].flatten(1)
        if lora.init in MOVED:
            delta = delta - lora.scale * parts[B.replace("default", "start")] @ parts[A.replace("default", "start")]
        if NORMS in parts:
            delta = parts[NORMS][:, None] * delta
        whole = weight + delta.view_as(weight)
        if lora.method == "dora":
            whole = whole * (parts[MAGNITUDE].flatten() / row_norms(whole)).view(-1, *[1] * (weight.ndim - 1))
        return whole
    from peft import inject_adapter_in_model

    out, inner, *kernel = weight.shape
    layer: Any = nn.Conv2d(inner, out, kernel, bias=False) if kernel else nn.Linear(inner, out, bias=False)  # type: ignore[arg-type]
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    alone: Any = inject_adapter_in_model(lora.config(["layer"]), nn.ModuleDict({"layer": layer}))
    alone.load_state_dict({f"layer.{key}": part for key, part in parts.items()} | {"layer.base_layer.weight": weight})
    alone["layer"].merge()
    merged_weight: Tensor = alone["layer"].get_base_layer().weight.detach()
    return merged_weight
