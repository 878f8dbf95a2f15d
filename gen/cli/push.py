"""Put a model on Hugging Face's hub: its weights, its records and a page about it.

gen push runs/teacher owner/name --license apache-2.0          shows what would be uploaded, and connects to nothing
gen push runs/teacher owner/name --license apache-2.0 --yes    uploads it, to a private repository if it is new
gen sample hf:owner/name@COMMIT then takes the model wherever a folder is taken, and so does gen.load. You log in by the
hub's own command, `hf auth login`. Settings of the run are part of what is uploaded, and with them the paths in them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from gen.cli.lib.options import add_option

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "run")
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("--license", required=True, help="of the weights, as the hub names it: apache-2.0 ...")
    parser.add_argument("--yes", action="store_true", help="upload; without it, say what would be")
    parser.add_argument("--public", action="store_true", help="make a new repository public")


def run(args: argparse.Namespace) -> int:
    from gen.config.checkpoints import locate
    from gen.config.hub import check_repository, upload, write_weights
    from gen.config.reading import read_json
    from gen.config.spec import Json
    from gen.config.writing import write_text
    from gen.eval.model_card import model_card
    from gen.eval.record import Record, from_json
    from gen.pipeline import load
    from gen.text.pipeline import TextPipeline

    check_repository(args.repository)
    checkpoint, pipeline = locate(args.run), load(args.run)
    with tempfile.TemporaryDirectory(prefix="gen-push-") as name:
        folder = Path(name)
        manifest: Json = write_weights(checkpoint, folder)
        files = sorted((args.run / "eval").glob("*.json"))
        found = [(file, from_json(read_json(file), Record, str(file))) for file in files]
        ours = {manifest["sha256"], pipeline.info["sha256"]}
        found = [(file, record) for file, record in found if (record.checkpoint or {}).get("sha256") in ours]
        for file, _ in found:
            (folder / "eval").mkdir(exist_ok=True)
            shutil.copyfile(file, folder / "eval" / file.name)
        records = [record for _, record in found]
        text = isinstance(pipeline, TextPipeline)
        card = model_card(args.repository, manifest, repr(pipeline), text, records, args.license)
        write_text(folder / "README.md", card)
        if args.yes:
            print(f"uploaded: {upload(folder, args.repository, args.public)}")
            return 0
        print(card)
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            print(f"{file.stat().st_size:>14,} bytes  {file.relative_to(folder)}")
        kind = "public" if args.public else "private"
        print(f"This would go to {args.repository}, {kind} if it is new. Nothing was uploaded: add --yes")
    return 0
