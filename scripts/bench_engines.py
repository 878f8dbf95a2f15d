"""Tokens per second of parallel decoding: ours with and without a cache, and diffusers' LLaDA2Pipeline, one model.

python scripts/bench_engines.py [--run runs/text] [--batch 8] [--gen-length 256] [--per-step 2] [--rounds 3]

All three let the same block-causal network (fresh weights unless a run is given) write as many tokens after the same
ragged prompts, the same number at each evaluation: theirs by its own BlockRefinementScheduler with a threshold that
nothing passes, ours by `topk`. Theirs has no cache and pads prompts on the left, as that pipeline does. The turns go
ours, cached, theirs, theirs, cached, ours in one process on one thread. Prints medians and the median ratios of the
rounds, then one line of JSON. It refuses to report if the cache writes anything else than is written without one.

Measured (2026-11-28, one core of an AMD EPYC that other work shared, torch 2.13, diffusers 0.42.1, defaults): 2.0
tokens per evaluation each; cached / plain 4.71, plain / diffusers 1.06, cached / diffusers 4.78.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import gen
from gen.decode import decode
from gen.decoding import Decoded, Decoding
from gen.errors import UserError
from gen.models.text import Text


class Wrapped(torch.nn.Module):
    """Our network as that pipeline calls a model; `calls` counts."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    @property
    def device(self) -> torch.device:
        device: torch.device = self.net.device
        return device

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        self.calls += 1
        blocks = torch.arange(input_ids.shape[1]) // self.net.block
        attend = (blocks[None] <= blocks[:, None]) & attention_mask.bool()[:, None]  # [B, N, N]
        attend = attend | torch.eye(
            input_ids.shape[1], dtype=torch.bool
        )  # padding sees itself: it has to see something
        return SimpleNamespace(logits=self.net(input_ids, attend=attend, positions=position_ids))


def setting(args: argparse.Namespace) -> tuple[Any, list[list[int]]]:
    """The network and the prompts."""
    torch.manual_seed(0)
    if args.run:
        net = gen.load(args.run).net
    else:
        sizes = {"width": args.width, "depth": args.depth, "heads": args.width // 64, "block": args.block}
        net = Text(length=args.gen_length + args.longest, **sizes).build().eval()
    if net.block is None or net.shift:
        raise UserError("the benchmark wants a block-causal network without shift")
    lengths = torch.linspace(args.longest / 4, args.longest, args.batch).int().tolist()
    allowed = torch.tensor([t for t in range(net.vocab) if t != net.mask and t not in net.stops])
    return net, [allowed[torch.randint(len(allowed), (n,))].tolist() for n in lengths]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds: tokens/s, tokens per evaluation, and the ratios."""
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline

    net, prompts = setting(args)
    made: dict[str, Decoded] = {}
    tokens = args.batch * args.gen_length
    model = Wrapped(net)
    pipe = LLaDA2Pipeline(model=model, scheduler=BlockRefinementScheduler(block_length=net.block), tokenizer=None)
    pipe.set_progress_bar_config(disable=True)
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])

    def ours(cache: str | None) -> float:
        how = Decoding(policy={"name": "topk", "k": args.per_step}, cache=cache, stops=())
        made[str(cache)] = decode(net, prompts, args.gen_length, how)
        return tokens / made[str(cache)].seconds

    def theirs() -> float:
        model.calls, began = 0, time.perf_counter()
        pipe(input_ids=padded, attention_mask=real, gen_length=args.gen_length, block_length=net.block,
             num_inference_steps=-(-net.block // args.per_step), temperature=0.0, threshold=1.1,
             editing_threshold=None, eos_early_stop=False, mask_token_id=net.mask, output_type="seq")  # fmt: skip
        return tokens / (time.perf_counter() - began)

    turns = [(ours(None), ours("block"), theirs(), theirs(), ours("block"), ours(None)) for _ in range(args.rounds)]
    if not torch.equal(made["None"].tokens, made["block"].tokens):
        raise UserError("the cache writes something else: no benchmark of a wrong result")
    rounds = [((a + f) / 2, (b + e) / 2, (c + d) / 2) for a, b, c, d, e, f in turns]
    plain, cached, other = (statistics.median(column) for column in zip(*rounds, strict=True))
    per = {name: args.gen_length / float(d.nfe.double().mean()) for name, d in made.items()}
    return {
        "batch": args.batch,
        "gen_length": args.gen_length,
        "block": net.block,
        "rounds": args.rounds,
        "tokens_per_second": {"plain": plain, "cached": cached, "diffusers": other},
        "tokens_per_evaluation": {
            "plain": per["None"],
            "cached": per["block"],
            "diffusers": args.gen_length / model.calls,
        },
        "ratios": {
            "cached / plain": statistics.median(b / a for a, b, _ in rounds),
            "plain / diffusers": statistics.median(a / c for a, _, c in rounds),
            "cached / diffusers": statistics.median(b / c for _, b, c in rounds),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a block-causal run; default: fresh weights")
    parser.add_argument("--width", type=int, default=256, help="of fresh weights (default: 256)")
    parser.add_argument("--depth", type=int, default=4, help="of fresh weights (default: 4)")
    parser.add_argument("--block", type=int, default=32, help="of fresh weights (default: 32)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--longest", type=int, default=64, help="the longest prompt; the shortest is a quarter of it")
    parser.add_argument("--gen-length", type=int, default=256)
    parser.add_argument("--per-step", type=int, default=2, help="tokens committed at each evaluation (default: 2)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    if min(args.batch, args.gen_length, args.per_step, args.rounds) < 1 or args.longest < 4 or args.width < 64:
        raise UserError("--batch, --gen-length, --per-step, --rounds are at least 1, --longest 4, --width 64")
    if args.output and not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: there is no folder {args.output.parent}")
    torch.set_num_threads(1)
    found = measure(args)
    for name, speed in found["tokens_per_second"].items():
        print(f"{name:10} {speed:8.0f} tokens/s, {found['tokens_per_evaluation'][name]:.2f} tokens per evaluation")
    print(", ".join(f"{name} {ratio:.2f}" for name, ratio in found["ratios"].items()))
    line = json.dumps({**found, "torch": torch.__version__})
    print(line)
    if args.output:
        args.output.write_text(line + "\n")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"bench_engines: {error}")
