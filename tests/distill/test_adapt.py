"""Adaptation: a next-token model of others becomes one that fills masks, in blocks or everywhere."""

from __future__ import annotations

import json

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.distillers.adapt import Adapt
from gen.models.interop.checkpoints import import_checkpoint
from tests.distill.texts import tiny_text
from tests.models.interop.test_text import MASK, folder, published, theirs


@pytest.mark.parametrize("recipe", ["fast_dllm", "dream"])
def test_a_folder_of_qwen_is_adapted_on_files_of_text(tmp_path, recipe):
    kind = "autoregressive"
    import_checkpoint(folder(tmp_path / "qwen", kind, published(kind, theirs(kind))), out=tmp_path / "base")
    lines = [{"prompt": f"w{i} w{i + 1}", "response": f"w{i + 2} w{i + 3}"} for i in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    changes = {"steps": 3, "batch_size": 8, "save_every": 0, "validate_every": 3, "sample_every": 0}
    spec = {"name": "adapt", "recipe": recipe, "block_size": 4, "text": str(tmp_path / "pairs.jsonl"), "length": 16}
    done = gen.distill(spec, tmp_path / "base", tmp_path / "student", changes=changes, quiet=True)
    student = gen.load(done.folder)
    spec = student.net.spec
    assert (spec.block_size, spec.shift, spec.mask_token_id) == (4 if recipe == "fast_dllm" else None, 1, MASK)
    assert student.generate(["w1 w2"], 4, policy="topk", stopping_rules=()).tokens == 4
    before, after = gen.load(tmp_path / "base").net.state_dict(), student.net.state_dict()
    assert before.keys() == after.keys() and not torch.equal(before["embed.weight"], after["embed.weight"])


def test_data_of_the_teacher_stay_where_no_files_are_named(tmp_path, text_teacher):
    run = Adapt(block_size=4).student(tiny_text(), text_teacher, tmp_path)
    assert run.data == tiny_text().data and run.model.block_size == 4 and run.init == str(text_teacher)


def test_files_need_a_tokenizer(tmp_path):
    kind = "autoregressive"
    given = folder(tmp_path / "qwen", kind, published(kind, theirs(kind)), tokenizer=False)
    import_checkpoint(given, out=tmp_path / "base")
    with pytest.raises(UserError, match=r"Adapt: .* has no tokenizer for text = x\.txt: give --data in its ids"):
        gen.distill({"name": "adapt", "text": "x.txt"}, tmp_path / "base", tmp_path / "student", quiet=True)
