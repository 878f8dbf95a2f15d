"""Serve a text model on this machine by OpenAI's protocol: completions, chats and infilling, many at a time.

gen serve runs/text                                    then http://127.0.0.1:8000/v1 is a base_url of OpenAI's clients
gen serve runs/text --kv-plan dual --max-rows 32       the run's decoding is changed as by gen decode

Texts are those of gen decode with the same settings and seed. Streams hold final text only. A client that goes takes
its texts with it; more than --max-waiting texts are refused with status 429.
"""

from __future__ import annotations

import argparse
import dataclasses

from gen.cli.decode import add_decoding_options, settings
from gen.cli.lib.options import add_option, add_options, read_as, read_spec

__all__ = ["add_arguments", "run", "settings"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "run")
    add_decoding_options(parser, "most tokens of a text, whatever a request asks (default: what there is room for)")
    add_options(parser, weights=None, device="cpu")
    about = "packed, or a JSON spec; its keys as --engine.KEY: faster, and rounded otherwise"
    parser.add_argument("--engine", type=read_spec, help=about)
    parser.add_argument("--host", default="127.0.0.1", help="the address (default: 127.0.0.1, this machine alone)")
    port = "a port (default: 8000); 0 for any that is free"
    parser.add_argument("--port", type=read_as(int, "[0, 65535]"), default=8000, help=port)
    whole = read_as(int, "[1, inf)")
    parser.add_argument("--max-rows", type=whole, default=16, help="texts decoded at a time (default: 16)")
    parser.add_argument("--max-waiting", type=whole, default=1024, help="texts that may wait besides (default: 1024)")
    memory = "positions of all texts decoded at a time, prompts included, which bounds the memory (default: no bound)"
    parser.add_argument("--max-tokens", type=whole, help=memory)


def run(args: argparse.Namespace) -> int:
    from gen.eval.arena.server import bound
    from gen.pipeline import load
    from gen.text.batching import DecodingQueue
    from gen.text.pipeline import TextPipeline
    from gen.text.server import LOCAL, serve

    model = load(args.run, args.weights, args.device)
    assert isinstance(model, TextPipeline)  # or there were no such settings
    model = dataclasses.replace(model, decoding=args.settings)
    model = model if args.engine is None else model.prepared(args.engine)
    limits = {"max_rows": args.max_rows, "max_tokens": args.max_tokens, "max_waiting": args.max_waiting}
    requests = DecodingQueue(model, **limits)
    with bound(args.host, args.port) as listening:
        address, port = listening.getsockname()[:2]
        where = f"http://{f'[{address}]' if ':' in address else address}:{port}/v1"
        print(f"{model.name} on {where}   (Ctrl-C ends)", flush=True)
        hosts = LOCAL if address in LOCAL else ("*",)
        serve(requests, listening, args.max_rows + args.max_waiting, args.gen_length, hosts)
    return 0
