"""Tokens per second of our decoding loop and of published ones: LLaDA's, Fast-dLLM's and diffusers' LLaDA2Pipeline.

    python scripts/bench_decoding_peers.py --llada LLaDA/ --fast-dllm Fast-dLLM/ [--out FILE]

LLaDA/ and Fast-dLLM/ are checkouts of github.com/ML-GSAI/LLaDA and github.com/NVlabs/Fast-dLLM, from which generate.py
is imported; what is not named is left out. All loops call one network of ours with random weights, so that only the
loops differ; the keys and values of Fast-dLLM's caches lie in ours, which is written in place. Prompts are equally long
and whole blocks, so that nobody pads. First all loops decode in float64: those that write other tokens are not timed.
Then they take turns in float32. Beside it: the time of our steps that is not the network's, relative to the network's.

The mask has no probability, as in our loop. A Fast-dLLM that takes one prompt at a time gets one at a time. --engine
adds our exact cache and the pipeline with the network prepared by an engine of ours, and ours against plain loops.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout

import argparse
import importlib.util
import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from statistics import median
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import torch
from torch import nn

from gen.cli.benches.decode import Untied
from gen.cli.benches.lib.peers import of_diffusers
from gen.cli.lib.options import read_spec
from gen.eval.quiet import QuietCheck
from gen.eval.throughput import InterleavedTiming, median_interval
from gen.models.text import Text
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.samplers.decoding_policies.topk import TopK
from gen.text.contracts import Span
from gen.text.decoding import Decoding
from gen.text.loop import decode
from gen.text.pipeline import engine_of

NETWORKS = {
    "small": {"width": 256, "depth": 2, "heads": 4},
    "100M": {"width": 768, "depth": 12, "heads": 12, "vocab_size": 16384, "tied": True},  # 98 million parameters
}
PROMPT = BLOCK = 32  # tokens


@dataclass(frozen=True)
class Setting:
    """What is decoded: `batch` texts of `length` tokens, `per_step` at each evaluation."""

    network: str = "small"
    batch: int = 1
    length: int = 256
    per_step: int = 4


def network(fields, length, block_size=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Text(length=PROMPT + length, block_size=block_size, **fields).build()
        (net.embed if net.head is None else net.head).weight.data *= 18  # tokens as unlike as a trained network's
    return net.eval().requires_grad_(False)


class Adapter(nn.Module):
    """Our network as the published loops call theirs, with the key-value cache of Fast-dLLM's modelling file."""

    def __init__(self, net):
        super().__init__()
        self.net, self.device = net, net.device
        self.mask = torch.tensor([net.mask_token_id], device=net.device)

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False,
                replace_position=None):  # fmt: skip
        past = past_key_values
        if not use_cache:
            logits = self.net(input_ids)
        elif past is None:
            self.canvas, self.cache = input_ids.clone(), self.net.init_cache(*input_ids.shape)
            logits = self._cached(0, input_ids.shape[1])
            past = [*zip(self.cache.keys, self.cache.values, strict=True)]
        else:  # what is kept of `past` is in the cache already, and the rest of it is written again
            first = past[0][0].shape[2] if replace_position is None else int(replace_position[0].int().argmax())
            self.canvas[:, first : first + input_ids.shape[1]] = input_ids
            logits = self._cached(first, input_ids.shape[1])
        return SimpleNamespace(logits=logits.index_fill_(-1, self.mask, -torch.inf), past_key_values=past)

    def _cached(self, first, width):
        rows, n = self.canvas.shape
        positions = torch.arange(first, first + width, device=self.device).expand(rows, -1)
        span = Span(positions, positions[:, 0], n)
        return self.net(self.canvas, None, positions, kv_cache=self.cache, span=span)


def imported(folder, *inside):
    """The module generate.py of a checkout, without the modelling files that it imports."""
    files = [Path(folder, name, "generate.py") for name in inside]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise SystemExit(f"{folder}: no {' or '.join(str(f.relative_to(folder)) for f in files)} there")
    spec = importlib.util.spec_from_file_location(f"generate_of_{Path(folder).name}", file)
    module, modelling = importlib.util.module_from_spec(spec), ModuleType("model.modeling_llada")
    modelling.LLaDAModelLM = None
    with patch.dict(sys.modules, {"model": ModuleType("model"), "model.modeling_llada": modelling}):
        spec.loader.exec_module(module)
    return module


def ours(net, setting, kv_plan=None, policy=TopK):
    how = Decoding(policy(setting.per_step), SemiAR(BLOCK), kv_plan, stopping_rules=())
    return lambda prompts: decode(net, prompts, setting.length, how).tokens


def llada(generate, net, setting):
    model, settings = Adapter(net), common(net, setting)
    return lambda prompts: generate(model, prompts, **settings)


def fast_dllm(generate, net, setting):
    model, settings = Adapter(net), common(net, setting)

    def call(prompts):
        try:
            return generate(model, prompts, **settings)[0]
        except RuntimeError:  # older files take one prompt at a time
            return torch.cat([generate(model, p[None], **settings)[0] for p in prompts])

    return call


def common(net, setting):
    steps = setting.length // setting.per_step
    return {"steps": steps, "gen_length": setting.length, "block_length": BLOCK, "mask_id": net.mask_token_id}


def llada2(net, setting):
    scheduler = of_diffusers("BlockRefinementScheduler")(block_length=BLOCK)
    pipe = of_diffusers("LLaDA2Pipeline")(model=Adapter(net), scheduler=scheduler, tokenizer=None)
    pipe.set_progress_bar_config(disable=True)

    def call(prompts):
        texts = pipe(
            input_ids=prompts, gen_length=setting.length, block_length=BLOCK, threshold=1.1, editing_threshold=None,
            num_inference_steps=BLOCK // setting.per_step, temperature=0.0, eos_early_stop=False,
            mask_token_id=net.mask_token_id, output_type="seq",
        ).sequences  # fmt: skip
        return torch.cat([prompts, texts], 1)

    return call


def families(args):
    """For each kind of attention: its block size, and loops by name: (who ours is compared with, net -> loop)."""
    both, blocks = [], [("ours", None, ours), ("LLaDA2Pipeline", "ours", llada2)]
    if args.llada is not None:
        official = imported(args.llada, ".").generate
        both.append(("LLaDA", "ours", lambda net, s: llada(official, net, s)))
    if args.fast_dllm is not None:
        module = imported(args.fast_dllm, "v1/llada", "llada", ".")
        for plan, name in ((None, "generate"), ("prefix", "generate_with_prefix_cache"),
                           ("dual", "generate_with_dual_cache")):  # fmt: skip
            own = "ours" if plan is None else f"ours, {plan} cache"
            if plan is not None:
                both.append((own, None, lambda net, s, plan=plan, **how: ours(net, s, plan, **how)))
            generate = getattr(module, name)
            both.append((f"Fast-dLLM {name}", own, lambda net, s, f=generate: fast_dllm(f, net, s)))
    blocks.append(("ours, exact cache", "LLaDA2Pipeline", lambda net, s, **how: ours(net, s, "block", **how)))
    if args.engine is not None:
        engine = engine_of(args.engine)

        def prepared(net):  # not in float64, where only tokens are compared
            return net if net.embed.weight.dtype == torch.float64 else engine.prepare(net)

        own = f"ours, exact cache, {engine}"
        blocks.append((own, "LLaDA2Pipeline", lambda net, s, **how: ours(prepared(net), s, "block", **how)))
        blocks.append((f"LLaDA2Pipeline, {engine}", own, lambda net, s: llada2(prepared(net), s)))
    found = {"blocks of 32": (BLOCK, blocks)}
    return found | ({"bidirectional": (None, [("ours", None, ours), *both])} if both else {})


def measure(setting, loops, net, args):
    """Times of loops on one network, and the ratios of those that write the same tokens."""
    ids = torch.tensor([t for t in range(net.vocab_size) if t not in (net.mask_token_id, *net.eos_token_ids)])
    prompts = ids[torch.randint(len(ids), (setting.batch, PROMPT), generator=torch.Generator().manual_seed(1))]
    wide, tokens = deepcopy(net).double(), {}
    for name, _, loop in loops:
        how = {"policy": Untied} if name.startswith("ours") else {}  # float64 tells any two confidences apart
        tokens[name] = loop(wide, setting, **how)(prompts)
    pairs = [(name, other) for name, other, _ in loops if other is not None]
    unlike = [f"{a} and {b}" for a, b in pairs if not torch.equal(tokens[a], tokens[b])]
    if unlike:
        return asdict(setting) | {"other_tokens": unlike}
    del wide
    names, calls = [name for name, _, _ in loops], [loop(net, setting) for _, _, loop in loops]
    for call in calls:
        call(prompts)  # warms up
    timing = InterleavedTiming(args.rounds, args.seconds, args.clock)
    rounds = timing.measure([lambda call=call: call(prompts) for call in calls])
    times = {name: [row[i] for row in rounds] for i, name in enumerate(names)}
    rates = {name: setting.batch * setting.length / median(t) for name, t in times.items()}
    ratios = []
    for one, other in pairs:
        mine, theirs = (one, other) if one.startswith("ours") else (other, one)
        values = [b / a for a, b in zip(times[mine], times[theirs], strict=True)]
        ratios.append({"ours": mine, "peer": theirs} | asdict(median_interval(values)))
    return asdict(setting) | {"tokens_per_second": rates, "ratios": ratios, "rounds": len(rounds)}


class Metered:
    """A predictor that counts the seconds of its own forwards."""

    def __init__(self, net, clock):
        self.net, self.clock, self.seconds = net, clock, 0.0

    def __getattr__(self, name):
        return getattr(self.net, name)

    def __call__(self, *args, **kwargs):
        began = self.clock()
        out = self.net(*args, **kwargs)
        self.seconds += self.clock() - began
        return out


def overhead(setting, net, kv_plan, clock, rounds=6):
    """What of our steps is not the forward, relative to the forward."""
    metered, shares = Metered(net, clock), []
    call = ours(metered, setting, kv_plan)
    prompts = torch.zeros(setting.batch, PROMPT, dtype=torch.int64)
    for _ in range(rounds + 1):
        began, metered.seconds = clock(), 0.0
        call(prompts)
        shares.append((clock() - began) / metered.seconds - 1)
    return asdict(setting) | {"kv_plan": kv_plan, "overhead": asdict(median_interval(shares[1:]))}  # the first warms up


def lines(record):
    s = "{network}, batch {batch}, {length} tokens, {per_step} a step".format(**record)
    if "overhead" in record:
        v = record["overhead"]
        yield (
            f"{s}, {record['attention']}, cache {record['kv_plan']}: {v['value']:.1%} beside the forward, "
            f"[{v['low']:.1%}, {v['high']:.1%}]"
        )
        return
    yield f"{s}, {record['attention']}:"
    for text in record.get("other_tokens", []):
        yield f"  {text} do not write the same tokens: not timed"
    for name, rate in record.get("tokens_per_second", {}).items():
        yield f"  {name:<40}{rate:10.1f} tokens/s"
    for v in record.get("ratios", []):
        yield f"  {v['ours']} / {v['peer']}: {v['value']:.2f}x [{v['low']:.2f}, {v['high']:.2f}]"


def parsed(given):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llada", type=Path, metavar="PATH", help="a checkout of ML-GSAI/LLaDA")
    parser.add_argument("--fast-dllm", type=Path, metavar="PATH", help="a checkout of NVlabs/Fast-dLLM")
    parser.add_argument("--networks", nargs="*", default=["small"], choices=NETWORKS, help="default: small")
    parser.add_argument("--overhead", nargs="*", default=["100M"], choices=NETWORKS, help="steps of these; 100M")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--lengths", nargs="+", type=int, default=[64, 256, 1024], help="multiples of 32")
    parser.add_argument("--per-step", type=int, default=4, help="tokens of a step, a divisor of 32 (default: 4)")
    parser.add_argument("--engine", type=read_spec, help="of gen.models.engines: more loops, whose network it prepares")
    parser.add_argument("--rounds", type=int, default=20, help="at most; at least 6 are timed")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a case, once it has 6 rounds (default: 10)")
    parser.add_argument("--processor", action="store_true", help="one thread and processor time: for a busy machine")
    parser.add_argument("--out", type=Path, help="write the numbers to this file")
    args = parser.parse_args(given)
    if any(n < BLOCK or n % BLOCK for n in args.lengths) or not 0 < args.per_step < BLOCK or BLOCK % args.per_step:
        parser.error(f"lengths are multiples of {BLOCK}, and --per-step is a divisor of {BLOCK} below it")
    args.clock = time.process_time if args.processor else time.perf_counter
    return args


@torch.no_grad()
def main(given=None):
    args = parsed(given)
    if args.processor:
        torch.set_num_threads(1)
    attentions, results = families(args), []

    def add(record, attention):
        results.append(record | {"attention": attention})
        print("\n".join(lines(results[-1])), flush=True)

    with QuietCheck() as check:
        for attention, (block_size, loops) in attentions.items():
            for name in args.overhead:
                setting = Setting(name, 1, 64, args.per_step)
                net = network(NETWORKS[name], setting.length, block_size)
                for plan in (None, "dual") if block_size is None else (None, "block"):
                    add(overhead(setting, net, plan, args.clock), attention)
            for name in args.networks:
                for length in args.lengths:
                    net = network(NETWORKS[name], length, block_size)
                    for batch in args.batches:
                        add(measure(Setting(name, batch, length, args.per_step), loops, net, args), attention)
    wrong = any("other_tokens" in record for record in results)
    written = args.out is None or check.write(args.out, {"rows": results}, wall=not args.processor)
    return int(wrong or not written)


if __name__ == "__main__":
    raise SystemExit(main())
