"""Decoders measured on tasks whose answers can be checked: success against tokens per forward, each with its error."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from gen.config.errors import UserError, nearest
from gen.config.spec import find, spec_of
from gen.diffusion.noise import sample_seeds
from gen.eval.bounds import front
from gen.eval.estimate import Estimate
from gen.eval.evaluate import checkpoint, device_of, machine
from gen.text.decoding import Decoded, Decoding
from gen.text.loop import decode

__all__ = ["SCHEMA", "Task", "aup", "bench", "check", "collect", "curves", "groups", "pareto", "sweep", "table"]

SCHEMA = 1
Record = Mapping[str, Any]


class Task(Protocol):
    """Questions, and what counts as an answer: those of eval/parallelbench, or anything else of this form.

    It may have joints() -> pairs of (gen.text.worlds.Joint, share), the right replies of an exact model with their stop
    token; then the best that any decoder can make of such a model is drawn too.
    """

    @property
    def label(self) -> str: ...

    @property
    def length(self) -> int:
        """Tokens of a reply, at most."""
        ...

    def prompts(self, split: str, n: int | None) -> Sequence[Any]:
        """n prompts: strings, token ids, or conversations, which have .messages and, as plain text, .text."""
        ...

    def score(self, prompt: Any, reply: Any) -> float:
        """0 .. 1; the reply is ids without the stop token if the prompt was ids, else text."""
        ...


def bench(
    model: Any,
    task: Task,
    settings: Mapping[str, Mapping[str, Decoding]],
    *,
    n: int = 200,
    split: str = "test",
    length: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    command: str | None = None,
) -> list[dict[str, Any]]:
    """One record for each setting: how often the reply was right, and what it took.

    model: a TextPipeline, or a Predictor (gen/text/contracts/predictor.py) for tasks whose prompts are ids. settings:
    by the name of a curve, such as a policy, and the label of a point on it. n, split: of task.prompts. length: tokens
    of a reply, at most (default: the task's). Reply i depends on its prompt, the seed and i alone, not on batch_size.

    A record holds, of n replies without their prompts: success, the mean score; tokens, of a reply up to its stop token
    and with it; nfe, evaluations of the network for a reply; tokens_per_forward, all tokens over all evaluations;
    computed, places that the network computed for a reply, prompt included; tokens_per_second and ms, of the loop on
    this machine in batches of batch_size, after an unmeasured start; aup is a matter of a curve: see `curves`.
    """
    prompts = list(task.prompts(split, n))
    ids = [_ids(model, prompt) for prompt in prompts]
    longest = task.length if length is None else length
    if batch_size < 1 or longest < 1 or not prompts or not any(settings.values()):
        raise UserError(f"bench: batch_size = {batch_size}, length = {longest}, {len(prompts)} prompts, "
                        f"{sum(map(len, settings.values()))} settings; each is at least 1")  # fmt: skip
    if hasattr(model, "lengths"):
        model.lengths(ids, longest)
    net = getattr(model, "net", model)
    seeds = sample_seeds(seed, len(ids))
    shared = _about(model, task, {"split": split, "n": len(ids), "length": longest})
    shared |= {"seed": seed, "batch": batch_size, "command": command}
    warm, records = min(len(ids), batch_size, 8), list[dict[str, Any]]()
    for curve, points in settings.items():
        for label, how in points.items():
            if not records:
                decode(net, ids[:warm], longest, how, seed=seeds[:warm])
            batches = [
                decode(net, ids[a : a + batch_size], longest, how, seed=seeds[a : a + batch_size])
                for a in range(0, len(ids), batch_size)
            ]
            found = _measured(model, task, prompts, batches)
            records.append({**shared, "curve": curve, "label": label, "decoding": spec_of(how, named=False), **found})
    return records


def _about(model: Any, task: Task, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What all records of one task say: whom and what is measured, how, and on what machine."""
    spec = spec_of(task) if dataclasses.is_dataclass(task) and not isinstance(task, type) else task.label
    if isinstance(spec, dict) and spec.get("source"):
        spec["source"] = "published"  # where it lies on this machine changes nothing
    protocol = {"task": spec, **protocol}
    joints = getattr(task, "joints", None)
    return {
        "schema": SCHEMA,
        "kind": "decoding",
        "comparability": _hash(protocol),
        "run": str(getattr(model, "name", type(model).__name__)),
        "task": task.label,
        "protocol": protocol,
        "bound": None if joints is None else [list(point) for point in front(list(joints()))],
        "checkpoint": checkpoint(model),
        "device": machine(device_of(model)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _ids(model: Any, prompt: Any) -> list[int]:
    """A prompt's ids; a conversation is put into words by the tokeniser's chat template, if it has one."""
    tokenizer = getattr(model, "tokenizer", None)
    if hasattr(prompt, "messages"):
        chat = getattr(tokenizer, "chat", None)
        prompt = prompt.text if chat is None else chat(prompt.messages)
    if not isinstance(prompt, str):
        return [int(v) for v in prompt]
    if tokenizer is None:
        raise UserError(f"the prompt {prompt!r} is text, and {type(model).__name__} has no tokeniser")
    return [int(v) for v in tokenizer.encode(prompt)]


def _reply(model: Any, prompt: Any, ids: list[int]) -> Any:
    """What a task scores: text for text, ids for ids."""
    if isinstance(prompt, str) or hasattr(prompt, "messages"):
        return model.words(ids)
    stops = getattr(model, "net", model).eos_token_ids
    return ids[: next((i for i, v in enumerate(ids) if v in stops), len(ids))]


def _measured(model: Any, task: Task, prompts: Sequence[Any], batches: Sequence[Decoded]) -> dict[str, Any]:
    """What one setting did."""
    replies = [d.text(i).tolist() for d in batches for i in range(len(d.nfe))]
    scores = [float(task.score(p, _reply(model, p, ids))) for p, ids in zip(prompts, replies, strict=True)]
    tokens = [float(len(ids)) for ids in replies]
    nfe, computed, full = (
        [float(v) for d in batches for v in getattr(d, name).tolist()] for name in ("nfe", "computed", "nfe_full")
    )
    n, seconds = len(scores), sum(d.seconds for d in batches)
    rate = _ratio(tokens, nfe)
    return {
        "n": n,
        "success": _plain(_mean(scores)),
        "tokens_per_forward": _plain(rate),
        "nfe": sum(nfe) / n,
        "tokens": sum(tokens) / n,
        "computed": sum(computed) / n,
        "full": sum(full) / n,
        "tokens_per_second": sum(tokens) / seconds,
        "ms": 1000 * seconds / n,
    }


def _mean(scores: Sequence[float]) -> Estimate:
    """Of scores that are 0 or 1 with Agresti & Coull's (1998) error, from two successes and two failures more."""
    n, mean = len(scores), sum(scores) / len(scores)
    if all(score in (0.0, 1.0) for score in scores):
        p = (sum(scores) + 2) / (n + 4)
        return Estimate(mean, math.sqrt(p * (1 - p) / (n + 4)), n)
    spread = sum((score - mean) ** 2 for score in scores) / max(n - 1, 1)
    return Estimate(mean, math.sqrt(spread / n), n)


def _ratio(top: Sequence[float], bottom: Sequence[float]) -> Estimate:
    """sum(top) / sum(bottom), its error by the delta method."""
    n, value = len(top), sum(top) / sum(bottom)
    spread = sum((t - value * b) ** 2 for t, b in zip(top, bottom, strict=True)) / max(n - 1, 1)
    return Estimate(value, math.sqrt(spread / n) / (sum(bottom) / n), n)


def _plain(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "se": estimate.se}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def aup(points: Iterable[tuple[float, float]], best: float | None = None) -> float:
    """Accuracy under parallelism of one curve (d3LLM, arXiv 2601.07568): the area under success against tokens per
    forward, where success that is lost counts less.

    points: (tokens per forward, success in percent). best: the highest success of all curves that are compared; None
    for this curve's. Points more than 5 percent below that with the fewest tokens per forward are left out; the others
    weigh exp(-3 (1 - success / best)), at most 1, but for the area up to the first, which weighs 1.
    """
    ordered = sorted(points)
    if not ordered:
        raise UserError("aup: a curve without points")
    top = max(y for _, y in ordered) if best is None else best
    if top <= 0:
        return 0.0
    kept = [(rho, y) for rho, y in ordered if y >= ordered[0][1] - 5]
    heights = [y * min(math.exp(-3 * (1 - y / top)), 1.0) for _, y in kept]
    area = kept[0][0] * kept[0][1]
    for i in range(1, len(kept)):
        area += 0.5 * (kept[i][0] - kept[i - 1][0]) * (heights[i] + heights[i - 1])
    return area


@dataclass(frozen=True, eq=False)
class Curve:
    """The records of one run and one kind of decoding, by rising tokens per forward, and their AUP."""

    run: str
    name: str
    records: tuple[Record, ...]
    aup: float


def groups(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records that may be compared, by their key, in the order in which each first appears."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["comparability"], []).append(record)
    return found


def curves(group: Sequence[Record]) -> list[Curve]:
    """The curves of comparable records, the highest AUP first."""
    best = max(percent(r)[1] for r in group)
    members: dict[tuple[str, str], list[Record]] = {}
    for record in group:
        members.setdefault((record["run"], record["curve"]), []).append(record)
    made = [
        Curve(run, name, tuple(sorted(rows, key=percent)), aup(map(percent, rows), best))
        for (run, name), rows in members.items()
    ]
    return sorted(made, key=lambda curve: -curve.aup)


def percent(record: Record) -> tuple[float, float]:
    """(tokens per forward, success in percent)."""
    return float(record["tokens_per_forward"]["value"]), 100 * float(record["success"]["value"])


def pareto(group: Sequence[Record]) -> list[Record]:
    """The records than which none has at least as many tokens per forward and more success, or as much and more."""
    ordered = sorted(group, key=lambda r: (-percent(r)[0], -percent(r)[1]))
    found: list[Record] = []
    for record in ordered:
        if not found or percent(record)[1] > percent(found[-1])[1]:
            found.append(record)
    return found[::-1]


def sweep(text: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """The curve "topk, score random" of policies labelled "topk 1, score random" and so on: "topk:1,2:score=random".

    After the name come the values of the policy's first field, or of a named one (k=1,2), and what else is set.
    """
    name, *rest = text.split(":")
    fields = [f.name for f in dataclasses.fields(find(name, "samplers.decoding_policies")) if f.init]
    key, values, fixed = "", [""], dict[str, Any]()
    for i, given in enumerate(filter(None, rest)):
        known, equals, told = given.rpartition("=")
        if not equals and (i or not fields):
            raise UserError(f"{text!r}: {given!r} is no key=value of {name}")
        known = known or fields[0]
        if known not in fields:
            raise UserError(f"{text!r}: unknown key {known!r} of {name}. {nearest(known, fields)}")
        if "," in told or not equals:
            key, values = known, told.split(",")
        else:
            fixed[known] = _number(told)
    tail = "".join(f", {k} {v}" for k, v in fixed.items())
    swept = [{key: _number(v)} if key else {} for v in values]
    return name + tail, {" ".join([name, *map(str, s.values())]) + tail: {"name": name, **fixed, **s} for s in swept}


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


NUMBERS = ("nfe", "tokens", "computed", "full", "tokens_per_second", "ms")


def check(record: Any, where: str) -> Record:
    """The record itself. UserError, naming `where`, if it is no record of decoding."""
    if not isinstance(record, Mapping) or (record.get("kind"), record.get("schema")) != ("decoding", SCHEMA):
        raise UserError(f"{where} is no record of decoding, schema {SCHEMA}")
    for key in ("run", "task", "curve", "label", "comparability"):
        if not isinstance(record.get(key), str):
            raise UserError(f"{where}: {key} is {record.get(key)!r}, expected text")
    if not isinstance(record.get("protocol"), Mapping) or record["comparability"] != _hash(record["protocol"]):
        raise UserError(f"{where}: the comparability key {record['comparability']!r} does not belong to its protocol")
    numbers = {key: record.get(key) for key in NUMBERS}
    for key in ("success", "tokens_per_forward"):
        pair = record.get(key)
        numbers |= {f"{key}.{part}": pair.get(part) if isinstance(pair, Mapping) else None for part in ("value", "se")}
    for i, point in enumerate(record.get("bound") or ()):
        numbers |= {f"bound.{i}.{j}": v for j, v in enumerate(point if len(point) == 2 else (None,))}
    for key, value in numbers.items():
        if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
            raise UserError(f"{where}: {key} is {value!r}, expected a finite number")
    return record


def collect(paths: Iterable[str | Path]) -> list[Record]:
    """The records of .json files that `gen bench-decode` wrote; UserError, naming the file, for what is none."""
    found: list[Record] = []
    for path in paths:
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(content, list):
            raise UserError(f"{path} is no list of records of decoding")
        found += [check(record, f"{path}, record {i}") for i, record in enumerate(content)]
    return found


HEADS = ("decoding", "success", "tokens/forward", "NFE", "tokens", "computed", "tokens/s", "ms", "AUP")


def table(records: Sequence[Record]) -> str:
    """The records as plain text, for a terminal: a table for each task, curves by AUP."""
    parts = []
    for group in groups(records).values():
        lines, several = [HEADS], len({r["run"] for r in group}) > 1
        for curve in curves(group):
            for i, r in enumerate(curve.records):
                success, rate = r["success"], r["tokens_per_forward"]
                lines.append((
                    f"{r['run']}, {r['label']}" if several else r["label"],
                    f"{100 * success['value']:.1f} ± {100 * success['se']:.1f} %", f"{rate['value']:.2f}",
                    f"{r['nfe']:.2f}", f"{r['tokens']:.1f}", f"{r['computed']:.0f}", f"{r['tokens_per_second']:,.0f}",
                    f"{r['ms']:.2f}", f"{curve.aup:.1f}" if i == 0 else "",
                ))  # fmt: skip
        widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
        protocol = group[0]["protocol"]
        text = [f"{group[0]['task']}, {protocol['split']} split, {protocol['n']} prompts, at most "
                f"{protocol['length']} tokens"]  # fmt: skip
        for line in lines:
            cells = zip(line, widths, strict=True)
            text.append("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(cells)).rstrip())
        parts.append("\n".join(text))
    return "\n\n".join(parts)
