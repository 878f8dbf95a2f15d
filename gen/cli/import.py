"""Import published weights: those of a DiT, a SiT, and many others, a DiT folder of diffusers, or text.

gen import DiT-XL-2-256x256.pt --from dit --out runs/dit; gen.load("runs/dit").sample(4).x are then latents.
gen import LLaDA-8B-Instruct --out runs/llada reads a folder of LLaDA, Dream or Fast-dLLM v2, and its tokenizer.json.
gen import pt_inception-2015-12-05-6726825d.pth --from inception --out inception.safetensors is FID's network, for
gen evaluate --extractor.
Nothing in the file is run, and nothing is written unless every tensor has a match.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gen.cli.lib.options import add_option, read_spec
from gen.config.errors import UserError
from gen.config.spec import Json

if TYPE_CHECKING:
    from gen.models.interop.checkpoints import Imported

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a file of weights (.pt, .ckpt, .pkl, .safetensors) or a folder")
    parser.add_argument(
        "--from",
        dest="origin",
        type=read_spec,
        help="a name of `gen list public interop.text`, or a JSON spec of what the weights do not show, such as "
        '\'{"name": "sit", "heads": 8}\' (default: recognised, if only one fits); or inception, the network of FID',
    )
    parser.add_argument("--weights", choices=("ema", "model"), help="averaged or raw ones (default: ema if there)")
    parser.add_argument("--key", help="the state dict to take, such as ema.0.9999 or state_dict.net (default: found)")
    parser.add_argument("--preset", help="a published size that the weights must have, such as XL/2")
    add_option(parser, "out", help="a new folder, for gen sample, distill, evaluate", required=True)


def run(args: argparse.Namespace) -> int:
    from gen.models.interop.checkpoints import import_checkpoint

    if args.origin == "inception":
        return _import_inception(args)
    chosen = {"weights": args.weights, "key": args.key, "preset": args.preset}
    try:
        done = import_checkpoint(args.path, args.origin, **chosen, out=args.out)
    except UserError as error:
        if not (args.path / "model_index.json").is_file():
            raise
        whole = "is a pipeline, which verbs take as it is, such as gen sample, evaluate and search: import nothing"
        raise UserError(f"{error}. {args.path} {whole}") from error
    print(_report(done, args.path.name))
    return 0


def _import_inception(args: argparse.Namespace) -> int:
    """Convert the weights of FID's network, of either family of names."""
    from gen.eval.features.inception import convert
    from gen.eval.features.lib.inception_net import claims
    from gen.models.interop.weights import read

    if args.preset or not args.path.is_file():
        raise UserError(f"--from inception takes a file, and no --preset; got {args.path}, {args.preset}")
    given = read(args.path, args.weights, args.key, lambda weights: claims(weights.tensors))
    out = convert(given.tensors, args.path, args.out)
    print(f"{out}: the FID Inception of {args.path.name}, weights {given.chosen}, 472 tensors")
    print(f"gen evaluate SAMPLES --extractor '{json.dumps({'name': 'inception', 'path': str(out)})}'")
    return 0


def _report(done: Imported, name: str) -> str:
    """Return what became of every tensor, and the conventions that the folder now has."""
    from gen.config.spec import spec_of

    reasons = sorted(set(done.dropped.values()))
    rows = {
        "read": f"{name}: {done.origin}, weights {done.weights}",
        "matched": f"{done.matched} tensors, {done.numbers:,} numbers; missing 0, unexpected 0",
        "left out": f"{len(done.dropped)} tensors ({'; '.join(reasons)})" if done.dropped else "no tensor",
        "not read": ", ".join(done.unread) or "nothing",
        "model": _short(spec_of(done.run.model)),
        **_conventions(done),
        "note": "; ".join(done.notes) or "nothing",
    }
    lines = [f"{what:<11}{text}" for what, text in rows.items()]
    if hasattr(done.run.model, "latent_channels"):
        return "\n".join([*lines, f"gen encode DATA --autoencoder {done.folder} --out LATENTS"])
    call = "sample(4).x" if done.latent else 'generate("Once").texts'
    return "\n".join([*lines, f"{done.folder}: its samples are gen.load({str(done.folder)!r}).{call}"])


def _conventions(done: Imported) -> dict[str, str]:
    """Return the conventions of an image model's output, or the decoding of a text model, by heading."""
    from gen.config.spec import spec_of
    from gen.text.decoding import Decoding

    sampler = done.run.sampler
    if hasattr(done.run.model, "latent_channels"):
        return {}
    if isinstance(sampler, Decoding):
        parts = {"policy": sampler.policy, "block_schedule": sampler.block_schedule, "kv_plan": sampler.kv_plan}
        described = [f"{name} {_short(spec_of(part))}" for name, part in parts.items() if part is not None]
        return {"decoded by": "; ".join(described)}
    return {
        "path": _short(spec_of(done.run.path)),
        "output is": _short(spec_of(done.run.parameterisation)),
        "guided by": _short(spec_of(sampler.guide)) if sampler.guide else "nothing",
        "image is": _image(done.latent),
    }


def _image(latent: Json) -> str:
    """Return the formula that turns a sample x into an image."""
    if latent["autoencoder"] is None:
        return "x itself"
    scale, shift = (json.dumps(latent[key]) if not isinstance(latent[key], str) else key for key in ("scale", "shift"))
    described = "; ".join(f"{key}: {latent[key]}" for key in ("scale", "shift") if isinstance(latent[key], str))
    low, high = latent.get("image_range") or (-1, 1)
    inside = f", images in [{low:g}, {high:g}]"
    return f"decode(x / {scale} + {shift}) of {latent['autoencoder']}{inside}{f' ({described})' if described else ''}"


def _short(given: Json) -> str:
    """Return a spec in one line."""
    fields = (f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in given.items() if k != "name")
    return f"{given['name']}: {', '.join(fields)}".removesuffix(": ")
