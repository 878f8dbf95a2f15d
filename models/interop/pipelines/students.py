"""Students of a pipeline's network: what they are trained on, and their adapters as the pipeline loads them.

The whole way is in docs/coming-from-diffusers.md.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import Spec, build
from gen.data.lib.tensors import content_hash
from gen.diffusion.contracts import Guide, Solver
from gen.diffusion.denoiser import Cond, Denoiser
from gen.diffusion.net import members
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.sampling import integrate
from gen.models.interop.pipelines.families import plain_module
from gen.training.lora import saved_tensors
from gen.training.run import run_from

__all__ = ["Rows", "load_adapters", "save_adapters", "teacher_samples"]

WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for
COMPONENTS = {"inner.": ("unet", "transformer"), "low.": ("transformer_2",)}  # of a PipelineNet, in a pipeline


class Rows:
    """A data set of rows: x, conditions, and perhaps the noise that a teacher made x of.

    Attributes:
        tensors: [N, ...] by name, "x" among them.
        fingerprint: of their content.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        lengths = {len(tensor) for tensor in tensors.values()}
        if len(lengths) != 1 or "x" not in tensors:
            raise UserError(f"rows: {', '.join(f'{k} {list(v.shape)}' for k, v in tensors.items())}; allowed: x and "
                            "others with as many rows")  # fmt: skip
        self.tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        parts: Iterator[str | Tensor] = itertools.chain.from_iterable(self.tensors.items())
        self.fingerprint = content_hash(*parts)

    def __len__(self) -> int:
        return len(self.tensors["x"])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: tensor[i] for name, tensor in self.tensors.items()}


@torch.no_grad()
def teacher_samples(
    f: Denoiser,
    cond: Cond,
    times: Tensor,
    solver: Solver | Spec = "dpmpp",
    guide: Guide | Spec | None = None,
    *,
    seed: int = 0,
    batch_size: int = 8,
    pairs: bool = False,
) -> Rows:
    """Sample a teacher for each row of a condition: data for its students.

    Args:
        f: the teacher, whose network says the shape of one x.
        cond: tensors [N, ...].
        times: the loop's grid.
        solver, guide: objects, names or specs.
        seed: of the noise.
        batch_size: samples at a time.
        pairs: keep the unit noise of each sample, which reflow and its like learn from, as "noise".
    """
    stepping: Solver = build("samplers.solvers", solver)
    guided = f if guide is None else build("samplers.guides", guide)(f, times)
    some = next(iter(cond.values()))
    seeds, rows = sample_seeds(seed, len(some)), []
    for first in range(0, len(some), batch_size):
        part = {key: value[first : first + batch_size] for key, value in cond.items()}
        noise = Noise(tuple(seeds[first : first + batch_size]))
        unit = noise.normal("start", members(f.net).state_shape or ()).to(some.device)
        x = integrate(guided, f.path.start(unit, times[0]), times, stepping, cond=part, noise=noise)
        rows.append({"x": x, **part} | ({"noise": unit} if pairs else {}))
    return Rows({key: torch.cat([row[key] for row in rows]) for key in rows[0]})


def save_adapters(run: str | Path, pipe: Any, out: str | Path, weights: str | None = None) -> Path:
    """Write the adapters of a run so that `pipe.load_lora_weights(out)` of diffusers loads them.

    Args:
        run: folder of a run that trained adapters of a PipelineNet, or of one of its checkpoints.
        pipe: the pipeline, for the name of its network; None for the one in the folder that the run names.
        out: the folder to write, made if it is not there.
        weights: label of an average, or "raw"; None for the first average, or "raw" without.

    Returns:
        The file.

    Raises:
        UserError: for a run without adapters, with adapters of a method that diffusers does not load, or of another
            network.
    """
    from safetensors.torch import save_file

    checkpoint = checkpoints.locate(Path(run))
    info = checkpoints.read(checkpoint)
    trained = run_from(info["run"], run)
    if trained.lora is None:
        raise UserError(f"{run} has no adapters: it trained all weights of its network")
    if pipe is None:
        if not hasattr(trained.model, "prompted"):
            raise UserError(f"{run} was not trained beside the pipeline of a folder: give the pipeline")
        pipe = trained.model.prompted.pipe
    label = weights or (trained.ema[0].label if trained.ema else "raw")
    file = f"{info['role']}.safetensors" if label == "raw" else f"{info['role']}-{label}.safetensors"
    if file not in info["files"]:
        raise UserError(f"{run} has no weights {label!r}")
    own = saved_tensors(checkpoints.read_tensors(checkpoint, file, info), trained.lora)
    tensors = {_component(name, pipe): tensor for name, tensor in own.items()}
    for name, tensor in tensors.items():
        _check_fits(name, tensor, pipe)
    path = Path(out)
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    return path / WEIGHTS


def load_adapters(pipe: Any, adapters: Sequence[tuple[str | Path, float]]) -> None:
    """Load adapters into a pipeline, each with a factor, by `pipe.load_lora_weights` and `pipe.set_adapters`.

    Args:
        pipe: changed in place.
        adapters: pairs of a folder as of `save_adapters`, or a .safetensors file, and a factor. They are called by the
            name of the folder or of the file.

    Raises:
        UserError: for a folder without such a file, for names that are equal, and for adapters that do not fit.
    """
    files = [(Path(one) / WEIGHTS if Path(one).is_dir() else Path(one), factor) for one, factor in adapters]
    names = [(file.parent.name if file.name == WEIGHTS else file.stem).replace(".", "-") for file, _ in files]
    if not files:
        return
    for file, _ in files:
        if not file.is_file() or file.suffix != ".safetensors":
            raise UserError(f"adapters: {file} is not there; allowed for a pipeline: folders as save_adapters writes "
                            "them of a run (with a " + WEIGHTS + "), or .safetensors files")  # fmt: skip
    if len(set(names)) < len(names) or not hasattr(pipe, "load_lora_weights"):
        why = "takes no adapters" if len(set(names)) == len(names) else "needs another name for each of its adapters"
        raise UserError(f"adapters: a {type(pipe).__name__} {why}: {', '.join(names)}")
    for (file, _), name in zip(files, names, strict=True):
        try:
            with warnings.catch_warnings():  # of more than one, which is meant
                warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
                pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name, local_files_only=True)
        except (ValueError, RuntimeError, KeyError) as error:
            why = str(error).partition("\n")[0]
            raise UserError(f"adapters: {file} does not fit a {type(pipe).__name__}: {why}") from None
        if not any(name in there for there in pipe.get_list_adapters().values()):  # which diffusers but logs
            raise UserError(f"adapters: {file} is of no network of a {type(pipe).__name__}")
    pipe.set_adapters(names, [factor for _, factor in files])


def _check_fits(name: str, tensor: Tensor, pipe: Any) -> None:
    """Raise UserError for a tensor of an adapter that belongs to no layer of a pipeline's network."""
    component, _, rest = name.partition(".")
    layer, part = rest.rsplit(".", 2)[:2]
    module = dict(plain_module(getattr(pipe, component)).named_modules()).get(layer)
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    own, theirs = (tensor.shape[1:], slice(1, None)) if part == "lora_A" else (tensor.shape[:1], slice(1))
    if weight is None or weight.shape[theirs] != own:
        has = "none of that name" if weight is None else f"one of {list(weight.shape)}"
        raise UserError(f"the adapters are of another network than the {component} of this {type(pipe).__name__}: "
                        f"{part} of {layer} is {list(tensor.shape)}, and it has {has}")  # fmt: skip


def _component(name: str, pipe: Any) -> str:
    """Return a tensor's name in a pipeline of one in a PipelineNet."""
    for prefix, components in COMPONENTS.items():
        if name.startswith(prefix):
            component = next((c for c in components if getattr(pipe, c, None) is not None), None)
            if component is not None:
                return f"{component}.{name.removeprefix(prefix)}"
    raise UserError(f"{name} is of no network of a {type(pipe).__name__}")
