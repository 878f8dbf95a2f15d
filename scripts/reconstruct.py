"""Write pictures and their reconstructions by an autoencoder, as two folders that gen evaluate compares.

    python scripts/reconstruct.py photos/ --size 256 --autoencoder runs/vae --out both
    gen evaluate both/reconstructed --against both/truth --paired both/truth

PSNR, SSIM and, where weights are at hand, LPIPS of each picture, and FID of the reconstructions: what papers call rFID,
here in the features of the extractor that is chosen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from gen.cli.encode import data_of
from gen.cli.lib.options import read_spec
from gen.config.errors import UserError
from gen.config.images import to_pil, to_uint8
from gen.data.lib.autoencoders import build_autoencoder

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="pictures, as of gen encode")
    parser.add_argument("--size", help="of the pictures (default: the size that all have)")
    parser.add_argument("--autoencoder", required=True, type=read_spec, help="a run, a folder in diffusers' layout ...")
    parser.add_argument("--out", required=True, type=Path, help="a new folder")
    parser.add_argument("--split", default="test", help="train or test (default: test)")
    parser.add_argument("--n", type=int, help="the first n pictures (default: all)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(words)
    try:
        write(args)
    except UserError as error:
        print(f"reconstruct.py: {error}", file=sys.stderr)
        return 1
    return 0


@torch.no_grad()
def write(args: argparse.Namespace) -> None:
    """Write both folders: reconstructions are of the mean of each latent.

    Args:
        args: as `main` parses them.
    """
    coder = build_autoencoder(args.autoencoder).load(args.device)
    pictures = data_of(args.data, args.size).open(args.split)
    kinds = [args.out / name for name in ("truth", "reconstructed")]
    for folder in kinds:
        folder.mkdir(parents=True)
    count = len(pictures) if args.n is None else min(args.n, len(pictures))
    for first in range(0, count, args.batch_size):
        rows = range(first, min(first + args.batch_size, count))
        x = torch.stack([pictures[row]["x"] for row in rows]).to(args.device)
        for folder, images in zip(kinds, (x, coder.decode(coder.encode(x).mean)), strict=True):
            for row, image in zip(rows, images.cpu(), strict=True):
                to_pil(to_uint8(image)).save(folder / f"{row:06d}.png")


if __name__ == "__main__":
    sys.exit(main())
