"""Memorised pairs come back at any length that a decoder is given: nothing tells a model how long an answer is."""

import json
import random

import pytest

import gen
from gen.config.spec import override
from gen.training.recipes.text import text
from gen.training.trainer import train

LENGTHS = (22, 24, 32, 40, None)  # None is the default


def pairs():
    """Thirty questions, and answers of 2 to 21 letters that have nothing to do with them."""
    draw = random.Random(0)
    return [(f"say {i:02}: ", "".join(draw.choices("abcdefghijklmnop ", k=2 + i % 20))) for i in range(30)]


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "block_size"), [("llada", None), ("mdlm", None), ("bd3", 16), ("fast_dllm", 16)])
def test_memorised_pairs_are_right_at_every_length(tmp_path, objective, block_size):
    """At least 28 of 30 at every length; measured 30 at each with LLaDA, MDLM and BD3-LM.

    LLaDA, were each window to end with its text: 30 at the exact length, 1 at 22, 0 beyond; were the whole window
    trained: 16 at 22, 24 at 32, 25 at 40, 30 at the default.
    """
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in pairs()))
    small = {"length": 64, "width": 64, "depth": 3, "block_size": block_size}
    changes = {
        "data": {"name": "text", "path": str(file), "length": 64, "holdout": 0.0},
        **{f"model.{key}": value for key, value in small.items()},
        "objective": objective,
        "steps": 900,
        "batch_size": 30,
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
    assert min(right.values()) >= 28, right
