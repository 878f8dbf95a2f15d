"""Decoders measured on tasks whose answers can be checked: success against tokens per forward, each with its error."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from gen.config.errors import UserError, nearest
from gen.config.formats import NEWEST
from gen.config.reading import read_json
from gen.config.spec import Json, digest, find, spec_of
from gen.diffusion.noise import sample_seeds
from gen.eval.bounds import optimal_front
from gen.eval.estimate import Estimate, mean_estimate, ratio_estimate
from gen.eval.provenance import checkpoint, device_of, machine
from gen.eval.record import check_finite, from_json
from gen.eval.tables import aligned
from gen.text.chat import chat_prompt
from gen.text.contracts.predictor import Predictor
from gen.text.decoding import Decoded, Decoding
from gen.text.loop import decode

__all__ = [
    "DecodingRecord",
    "Task",
    "aup",
    "collect_decoding",
    "curves",
    "decoding_table",
    "group_by_protocol",
    "measure_decoding",
    "sweep",
    "undominated",
]

SCHEMA = NEWEST["decoding record"]
FEW = 30  # prompts
Setting = str | float | bool | None
Model = Any  # a TextPipeline, or a Predictor
Prompt = Any  # a string, token ids, or a conversation, which has .messages and, as plain text, .text


class Task(Protocol):
    """Questions, and what counts as an answer: those of eval/parallelbench, or anything else of this form.

    It may have joints() -> pairs of (gen.text.worlds.JointDistribution, share), the right replies of an exact model
    with their stop token; then the best that a decoder can make of such a model is drawn too (gen.eval.bounds).
    It may have `protocol`, what two records of it must share to be compared; by default that is its spec.
    """

    @property
    def label(self) -> str:
        """The task's name."""
        ...

    @property
    def length(self) -> int:
        """Tokens of a reply, at most."""
        ...

    def prompts(self, split: str, n: int | None) -> Sequence[Prompt]:
        """Return prompts: strings, token ids, or conversations, which have .messages and, as plain text, .text.

        Args:
            split: "train" or "test".
            n: how many; None for all.
        """
        ...

    def score(self, prompt: Prompt, reply: Any) -> float:
        """Score a reply.

        Args:
            prompt: one of the prompts.
            reply: ids without the stop token if the prompt was ids, else text.

        Returns:
            0 .. 1.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class DecodingRecord:
    """One decoder on one task: how often the reply was right, and what it took.

    Attributes:
        run: name of the model.
        task: the task's label.
        protocol: what two records must share to be compared: task, split, n, length.
        curve: name of a kind of decoding, such as a policy.
        label: of a point on that curve.
        decoding: spec of gen.text.decoding.Decoding.
        n: replies.
        success: the mean score.
        tokens_per_forward: all tokens over all evaluations.
        nfe: network evaluations for a reply.
        tokens: of a reply up to its stop token and with it, prompt not counted.
        computed: positions that the network computed for a reply, prompt included.
        full: evaluations for a reply that computed every position.
        tokens_per_second: of the loop on this machine, in batches of `batch`, after an unmeasured start.
        ms: for a reply.
        seed: of the replies.
        batch: replies decoded at once.
        bound: corners (tokens per forward, success) that no decoder of an exact model surpasses whose choice of
            positions does not depend on the tokens drawn for them.
        checkpoint: step, role, sha256 and weights of what was loaded.
        device: processor, in words.
        date: ISO 8601.
        command: that repeats the measurement.
        schema: of this dataclass.
    """

    run: str
    task: str
    protocol: Json
    curve: str
    label: str
    decoding: Json
    n: int
    success: Estimate
    tokens_per_forward: Estimate
    nfe: float
    tokens: float
    computed: float
    full: float
    tokens_per_second: float
    ms: float
    seed: int | None = None
    batch: int | None = None
    bound: tuple[tuple[float, float], ...] | None = None
    checkpoint: Json | None = None
    device: str | None = None
    date: str | None = None
    command: str | None = None
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_finite(self)

    @property
    def comparability(self) -> str:
        """The hash that the rows of one table share."""
        return digest(self.protocol)[:16]

    @property
    def percent(self) -> tuple[float, float]:
        """(tokens per forward, success in percent)."""
        return self.tokens_per_forward.value, 100 * self.success.value


def measure_decoding(
    model: Model,
    task: Task,
    settings: Mapping[str, Mapping[str, Decoding]],
    *,
    n: int = 200,
    split: str = "test",
    length: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    command: str | None = None,
) -> list[DecodingRecord]:
    """Measure several ways to decode a model on one task. Reply i depends on its prompt, the seed and i alone.

    Args:
        model: a TextPipeline, or a Predictor (gen/text/contracts/predictor.py) for tasks whose prompts are ids.
        task: prompts and their scores.
        settings: by the name of a curve, such as a policy, and the label of a point on it.
        n, split: of task.prompts.
        length: tokens of a reply, at most; the task's by default.
        seed: of the replies.
        batch_size: changes nothing but speed and memory.
        command: that repeats the measurement.

    Returns:
        A record for each setting.

    Raises:
        UserError: if there is nothing to measure, or prompts do not fit the model.
    """
    prompts = list(task.prompts(split, n))
    ids = [_ids(model, prompt) for prompt in prompts]
    longest = task.length if length is None else length
    if batch_size < 1 or longest < 1 or not prompts or not any(settings.values()):
        raise UserError(f"decoding: batch_size = {batch_size}, length = {longest}, {len(prompts)} prompts, "
                        f"{sum(map(len, settings.values()))} settings; each is at least 1")  # fmt: skip
    if hasattr(model, "lengths"):
        model.lengths(ids, longest)
    net, seeds = predictor(model), sample_seeds(seed, len(ids))
    shared = _about(model, task, {"split": split, "n": len(ids), "length": longest})
    shared = {**shared, "seed": seed, "batch": batch_size, "command": command}
    warm, records = min(len(ids), batch_size, 8), list[DecodingRecord]()
    for curve, points in settings.items():
        for label, how in points.items():
            if not records:
                decode(net, ids[:warm], longest, how, seed=seeds[:warm])
            batches = [
                decode(net, ids[a : a + batch_size], longest, how, seed=seeds[a : a + batch_size])
                for a in range(0, len(ids), batch_size)
            ]
            measured = {**shared, **_measured(model, task, prompts, batches)}
            spec = spec_of(how, named=False)
            records.append(DecodingRecord(curve=curve, label=label, decoding=spec, **measured))
    return records


def _about(model: Model, task: Task, protocol: Json) -> Json:
    """Return what all records of one task say: whom and what is measured, how, and on what machine."""
    spec = getattr(task, "protocol", None)
    if spec is None:
        spec = spec_of(task) if dataclasses.is_dataclass(task) and not isinstance(task, type) else task.label
    if isinstance(spec, dict) and spec.get("source"):
        spec["source"] = "published"  # where it lies on this machine changes nothing
    joints = getattr(task, "joints", None)
    return {
        "run": str(getattr(model, "name", type(model).__name__)),
        "task": task.label,
        "protocol": {"task": spec, **protocol},
        "bound": None if joints is None else tuple(optimal_front(list(joints()))),
        "checkpoint": checkpoint(model),
        "device": machine(device_of(model)),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _ids(model: Model, prompt: Prompt) -> list[int]:
    """Return a prompt's ids; a conversation goes through the tokeniser's chat template, if it has one."""
    tokenizer = getattr(model, "tokenizer", None)
    if hasattr(prompt, "messages"):
        if getattr(tokenizer, "chat", None) is not None:
            return chat_prompt(tokenizer, prompt.messages)
        prompt = prompt.text
    if not isinstance(prompt, str):
        return [int(v) for v in prompt]
    if tokenizer is None:
        raise UserError(f"the prompt {prompt!r} is text, and {type(model).__name__} has no tokeniser")
    return [int(v) for v in tokenizer.encode(prompt)]


def predictor(model: Model) -> Predictor:
    """Return a pipeline's network, or the model itself."""
    return model.net if hasattr(model, "net") else model


def _reply(model: Model, prompt: Prompt, ids: list[int]) -> str | list[int]:
    """Return what a task scores: text for text, ids for ids."""
    if isinstance(prompt, str) or hasattr(prompt, "messages"):
        return model.text(ids)
    stops = predictor(model).eos_token_ids
    return ids[: next((i for i, v in enumerate(ids) if v in stops), len(ids))]


def _measured(model: Model, task: Task, prompts: Sequence[Prompt], batches: Sequence[Decoded]) -> Json:
    """Return the numbers of one setting, by the names of a record."""
    replies = [d.text(i).tolist() for d in batches for i in range(len(d.nfe))]
    scores = [float(task.score(p, _reply(model, p, ids))) for p, ids in zip(prompts, replies, strict=True)]
    tokens = [float(len(ids)) for ids in replies]
    nfe, computed, full = (
        [float(v) for d in batches for v in getattr(d, name).tolist()] for name in ("nfe", "computed", "nfe_full")
    )
    n, seconds = len(scores), sum(d.seconds for d in batches)
    return {
        "n": n,
        "success": _mean(scores),
        "tokens_per_forward": ratio_estimate(tokens, nfe),
        "nfe": sum(nfe) / n,
        "tokens": sum(tokens) / n,
        "computed": sum(computed) / n,
        "full": sum(full) / n,
        "tokens_per_second": sum(tokens) / seconds,
        "ms": 1000 * seconds / n,
    }


def _mean(scores: Sequence[float]) -> Estimate:
    """Return the mean; of scores that are 0 or 1 with Agresti & Coull's (1998) error, from two of each more."""
    n, mean = len(scores), sum(scores) / len(scores)
    if all(score in (0.0, 1.0) for score in scores):
        p = (sum(scores) + 2) / (n + 4)
        return Estimate(mean, math.sqrt(p * (1 - p) / (n + 4)), n)
    return mean_estimate(scores)


def aup(points: Iterable[tuple[float, float]], best: float | None = None) -> float:
    """Return the accuracy under parallelism of one curve (d3LLM, arXiv 2601.07568).

    It is the area under success against tokens per forward, where success that is lost counts less: points more than 5
    percent below that with the fewest tokens per forward are left out; the others weigh exp(-3 (1 - success / best)),
    at most 1, but for the area up to the first, which weighs 1.

    Args:
        points: (tokens per forward, success in percent).
        best: the highest success of all curves that are compared; None for this curve's.

    Raises:
        UserError: for a curve without points.
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
    records: tuple[DecodingRecord, ...]
    aup: float


def group_by_protocol(records: Iterable[DecodingRecord]) -> list[list[DecodingRecord]]:
    """Return records that may be compared, in the order in which each group first appears.

    Args:
        records: of any tasks.
    """
    groups: dict[str, list[DecodingRecord]] = {}
    for record in records:
        groups.setdefault(record.comparability, []).append(record)
    return list(groups.values())


def curves(group: Sequence[DecodingRecord]) -> list[Curve]:
    """Return the curves of comparable records, the highest AUP first.

    Args:
        group: records of one protocol.
    """
    best = max(r.percent[1] for r in group)
    members: dict[tuple[str, str], list[DecodingRecord]] = {}
    for record in group:
        members.setdefault((record.run, record.curve), []).append(record)
    found = [
        Curve(run, name, tuple(sorted(rows, key=lambda r: r.percent)), aup((r.percent for r in rows), best))
        for (run, name), rows in members.items()
    ]
    return sorted(found, key=lambda curve: -curve.aup)


def undominated(group: Sequence[DecodingRecord]) -> list[DecodingRecord]:
    """Return the Pareto front: none has as many tokens per forward and more success, or as much and more.

    Args:
        group: records of one protocol.
    """
    front: list[DecodingRecord] = []
    for record in sorted(group, key=lambda r: (-r.percent[0], -r.percent[1])):
        if not front or record.percent[1] > front[-1].percent[1]:
            front.append(record)
    return front[::-1]


def sweep(text: str) -> tuple[str, dict[str, dict[str, Setting]]]:
    """Read a sweep of a policy's settings: a curve of points.

    "topk:1,2:score=random" is the curve "topk, score random" of policies labelled "topk 1, score random" and so on.

    Args:
        text: after the name come the values of the policy's first field, or of a named one (k=1,2), and what else is
            set, with colons between.

    Returns:
        The curve's name, and the policy's spec by the label of each point.

    Raises:
        UserError: for unknown policies and keys.
    """
    name, *rest = text.split(":")
    fields = [f.name for f in dataclasses.fields(find(name, "samplers.decoding_policies")) if f.init]
    key, values, fixed = "", [""], dict[str, Setting]()
    for i, given in enumerate(filter(None, rest)):
        known, equals, setting = given.rpartition("=")
        if not equals and (i or not fields):
            raise UserError(f"{text!r}: {given!r} is no key=value of {name}")
        known = known or fields[0]
        if known not in fields:
            raise UserError(f"{text!r}: unknown key {known!r} of {name}. {nearest(known, fields)}")
        if "," in setting or not equals:
            key, values = known, setting.split(",")
        else:
            fixed[known] = _number(setting)
    tail = "".join(f", {k} {v}" for k, v in fixed.items())
    swept = [{key: _number(v)} if key else {} for v in values]
    return name + tail, {" ".join([name, *map(str, s.values())]) + tail: {"name": name, **fixed, **s} for s in swept}


def _number(text: str) -> Setting:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def collect_decoding(paths: Iterable[str | Path]) -> list[DecodingRecord]:
    """Read the records of .json files that `gen bench-decode` wrote.

    Args:
        paths: of the files.

    Raises:
        UserError: naming the file, for what is no record or was altered.
    """
    records: list[DecodingRecord] = []
    for path in paths:
        content = read_json(Path(path))
        if not isinstance(content, list):
            raise UserError(f"{path} is no list of records of decoding")
        records += [from_json(one, DecodingRecord, f"{path}, record {i}") for i, one in enumerate(content, 1)]
    return records


HEADS = ("decoding", "success", "tokens/forward", "NFE", "tokens", "computed", "tokens/s", "ms", "AUP")


def decoding_table(records: Sequence[DecodingRecord]) -> str:
    """Return the records as plain text, for a terminal: a table for each task, curves by AUP.

    Args:
        records: of any tasks.
    """
    parts = []
    for group in group_by_protocol(records):
        lines, several = [HEADS], len({r.run for r in group}) > 1
        for curve in curves(group):
            for i, r in enumerate(curve.records):
                lines.append((
                    f"{r.run}, {r.label}" if several else r.label, r.success.text(percent=True),
                    r.tokens_per_forward.text(), f"{r.nfe:.2f}", f"{r.tokens:.1f}", f"{r.computed:.0f}",
                    f"{r.tokens_per_second:,.0f}", f"{r.ms:.2f}", f"{curve.aup:.1f}" if i == 0 else "",
                ))  # fmt: skip
        about = group[0].protocol
        few = f" (fewer than {FEW}: the errors are rough)" if about["n"] < FEW else ""
        count = f"{about['n']} prompt{'s' if about['n'] > 1 else ''}{few}"
        caption = f"{group[0].task}, {about['split']} split, {count}, at most {about['length']} tokens"
        parts.append("\n".join([caption, *aligned(lines, left=(0,), rule=False)]))
    return "\n\n".join(parts)
