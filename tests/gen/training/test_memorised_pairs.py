"""Memorised pairs come back at any length that a decoder is given: nothing tells a model how long an answer is."""

import json
import random

import pytest

import gen
from gen.config.spec import override
from gen.training.recipes.text import text
from gen.training.trainer import train

LENGTHS = (17, 19, 27, None)  # None is the default


def pairs():
    """Fifteen questions, and answers of 2 to 16 letters that have nothing to do with them."""
    draw = random.Random(0)
    return [(f"{i:02}: ", "".join(draw.choices("abcdefghijklmnop ", k=2 + i))) for i in range(15)]


CASES = [("llada", None), ("mdlm", None), ("bd3", 8), ("fast_dllm", 8)]


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "block_size"), CASES)
def test_memorised_pairs_are_right_at_every_length(tmp_path, objective, block_size):
    """At least 14 of 15 at every length; measured 15 at each with LLaDA, BD3-LM and Fast-dLLM.

    LLaDA with ten pairs, measured 10 at every length, had 4, 3, 0 and 0 were each window to end with its text.
    """
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs()))
    small = {"length": 32, "width": 48, "depth": 2, "block_size": block_size}
    changes = {
        "data": {"name": "text", "path": str(file), "length": 32, "holdout": 0.0},
        **{f"model.{key}": value for key, value in small.items()},
        "objective": objective,
        "steps": 400,
        "batch_size": 20,
        "sample_every": 0,
        "validate_every": 0,
        "ema": [],
    }
    train(override(text(), changes), tmp_path / "run", quiet=True)
    model = gen.load(tmp_path / "run")
    right = {}
    for length in LENGTHS:
        out = model.generate([p for p, _ in pairs()], length)
        right[length] = sum(a == r for a, (_, r) in zip(out.texts, pairs(), strict=True))
    print(objective, right)
    assert min(right.values()) >= 14, right


@pytest.mark.slow
def test_gaps_of_memorised_texts_are_filled_whether_their_length_is_known_or_not(tmp_path):
    """Ten texts trained with random gaps: measured 10 right of 10 with the gap's length, and 9 with 4 tokens more."""
    file, texts = tmp_path / "lines.jsonl", [(f"say {p}", r) for p, r in pairs()[:10]]
    file.write_text("".join(json.dumps({"text": p + r}) + "\n" for p, r in texts))
    data = {"name": "text", "path": str(file), "length": 48, "holdout": 0.0, "infill": {"name": "middle", "room": 6}}
    small = {"length": 48, "width": 64, "depth": 3, "block_size": None}
    quiet = {"sample_every": 0, "validate_every": 0, "ema": [], "steps": 800, "batch_size": 30}
    changes = {"data": data, "objective": "llada", **quiet, **{f"model.{key}": value for key, value in small.items()}}
    train(override(text(), changes), tmp_path / "run", quiet=True)
    model, right = gen.load(tmp_path / "run"), {"length": 0, "max": 0}
    for prompt, response in texts:
        whole = prompt + response
        first, last = len(prompt) - 1, len(whole) - 1  # all but the prompt's last letter and the response's
        for kind, size in (("length", last - first), ("max", last - first + 4)):
            filled = model.generate([[whole[:first], gen.Gap(**{kind: size}), whole[last:]]])
            right[kind] += filled.documents[0] == whole
    print(right)
    assert min(right.values()) >= 8, right
