"""The sources of `gen throughput`: a run, a pipeline of diffusers, or a function of the user's."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from gen.cli.sample import loaded, refuse_sampler_options, sampler_options
from gen.config.errors import MissingDependency, UserError, shown
from gen.config.reading import read_json
from gen.config.spec import find
from gen.eval.speed_table import Workload

__all__ = ["workload"]

LIBRARIES = ("diffusers", "transformers")  # of a pipeline's parts; others would be code of the folder's


def workload(args: argparse.Namespace) -> Workload:
    """Return the workload that the options of `gen throughput` name.

    Args:
        args: parsed.

    Raises:
        UserError: for a source that is none of these.
    """
    if ":" in args.source and not Path(args.source).exists():
        refuse_sampler_options(args, f"{args.source} is no run")
        return _function(args.source, args.device)
    folder = Path(args.source)
    return _pipeline(folder, args) if (folder / "model_index.json").exists() else _run(folder, args)


def _function(name: str, device: str) -> Workload:
    function = find(name)
    run = function() if inspect.isclass(function) else function
    if not callable(run):
        raise UserError(f"{name} is {type(run).__name__}, and cannot be called with a number of images")
    params = sum(p.numel() for p in run.parameters()) if isinstance(run, torch.nn.Module) else None
    return Workload(name, run, device, params)


def _run(folder: Path, args: argparse.Namespace) -> Workload:
    args.run = folder
    pipeline = loaded(args)
    how = {key: value for key, value in sampler_options(args, pipeline).items() if value is not None}

    def run(n: int) -> object:
        return pipeline.sample(n, seed=args.seed, batch_size=n, **how)

    return Workload(str(folder), run, args.device, pipeline.params)


def _pipeline(folder: Path, args: argparse.Namespace) -> Workload:
    """Return a pipeline of diffusers as it is called: decoding and conversion to pictures included."""
    refuse_sampler_options(args, f"{folder} is a pipeline of diffusers'", ("steps", "guidance_scale"))
    pipe = _load(folder, args.device)
    accepts = inspect.signature(pipe.__call__).parameters
    networks = [part for name in ("unet", "transformer", "prior") if (part := getattr(pipe, name, None)) is not None]
    rows: list[int] = []

    def count(module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = given[0] if given else named.get("hidden_states", named.get("sample"))
        rows.append(len(x))  # type: ignore[arg-type]

    for network in networks:
        network.register_forward_pre_hook(count, with_kwargs=True)
    how = {} if args.steps is None else {"num_inference_steps": args.steps}
    if args.guidance_scale is not None:
        how["guidance_scale"] = args.guidance_scale

    def run(n: int) -> object:
        rows.clear()
        pipe(**how, **_inputs(n, accepts, args.prompt))
        return SimpleNamespace(nfe=sum(rows) / n if networks else None)

    params = sum(p.numel() for network in networks for p in network.parameters())
    return Workload(f"{folder} ({type(pipe).__name__})", run, args.device, params or None)


def _inputs(n: int, accepts: Any, prompt: str) -> dict[str, Any]:
    """Return the arguments by which a pipeline makes n images."""
    if "class_labels" in accepts:
        return {"class_labels": [i % 10 for i in range(n)]}
    if "prompt" in accepts:
        return {"prompt": [prompt] * n}
    if "batch_size" in accepts:
        return {"batch_size": n}
    raise UserError(f"the pipeline takes {', '.join(accepts)}: none of class_labels, prompt and batch_size")


def _load(folder: Path, device: str) -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingDependency(
            f"this folder needs diffusers ({error}): pip install 'gen-diffusion[diffusers]'"
        ) from None
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name") if isinstance(index, dict) else None
    owner = getattr(diffusers, kind, None) if isinstance(kind, str) and kind.endswith("Pipeline") else None
    parts = [part for part in index.values() if isinstance(part, list)] if owner else []
    foreign = [part for part in parts if part[:1] not in ([None], *([library] for library in LIBRARIES))]
    if owner is None or foreign:
        raise UserError(f"{folder} is no pipeline of diffusers' own classes: {shown(foreign[0] if foreign else kind)}")
    pipe = owner.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
