"""gen evaluate of a model that takes captions: which ones its samples have, what the record says, what is refused."""

from dataclasses import replace

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.config.spec import override
from gen.data.captioned_digits import CaptionedDigits
from gen.eval.captions import captions_of
from gen.eval.drawn import Decoder, DrawnImages
from gen.eval.evaluate import evaluate
from gen.training.recipes.captioned_digits import captioned_digits
from gen.training.trainer import train

SEVEN, TWO = "a bold seven, turned left", "A thin two, upright"
HOW = {"steps": 1, "guide": "none", "seconds": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    small = {"width": 16, "depth": 1, "heads": 2, "text_width": 8, "text_depth": 1}
    changes = {f"model.{key}": value for key, value in small.items()}
    changes |= {"steps": 2, "batch_size": 8, "validate_every": 0, "sample_every": 0, "optim.lr": 0.05}
    folder = tmp_path_factory.mktemp("captions") / "run"
    train(override(captioned_digits(), changes), folder, quiet=True)
    return folder


def record_of(folder, **options):
    return evaluate(folder, **{"extractor": "pixels", "metrics": ["kid"], "n": 8, "label": "it", **HOW, **options})


def test_samples_have_the_captions_of_the_held_out_data_by_default(folder):
    pipeline, held_out = gen.load(folder), CaptionedDigits().open("test")
    captions = captions_of(pipeline, None, 3, lambda: pipeline.info["run"]["data"])
    assert captions is not None
    assert sorted(captions.captions) == sorted(held_out.caption(i) for i in range(len(held_out)))
    assert len({one.split()[1] for one in captions.rows(0, 100)}) > 3  # in an order that mixes kinds
    images = DrawnImages(Decoder(pipeline, None, captions), {"steps": 1}, 6, 3, 4)
    wanted = pipeline.sample(cond=captions.rows(2, 4), steps=1, seed=3, start=2).uint8()
    assert torch.equal(images.read([2, 3, 4, 5])["images"], wanted) and "labels" not in images.extras
    record = record_of(folder, seed=3)
    assert record.captions == captions.info and record.captions.n == len(held_out)
    assert record.labels == f"captions of the held-out data, in the order of seed 3, i mod {len(held_out)}"
    assert record.speed is not None and record.identity != replace(record, captions=None).identity


@pytest.mark.slow
def test_samples_have_the_captions_of_a_file(folder, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{SEVEN}\n{TWO}\n{SEVEN}\n\n")
    record = record_of(folder, n=None, prompts=file)
    assert record.n == 4 and record.captions.n == 4 and record.labels == "captions of lines of prompts.txt, i mod 4"
    assert f"--prompts {file}" in record.command
    file.write_text(f"{SEVEN}\n{TWO}\n")
    other = record_of(folder, prompts=file, cache={"name": "taylorseer", "interval": 2}, steps=3)
    assert other.n == 8 and other.captions.fingerprint != record.captions.fingerprint
    assert other.cache is not None and other.cache.drift is not None


def test_captions_that_nobody_knows_are_refused_in_one_line(folder, tmp_path):
    pipeline, file = gen.load(folder), tmp_path / "prompts.txt"
    file.write_text("")
    for changed, prompts, said in (
        (replace(pipeline, encode_prompts=None), None, "by an encoder: give its folder"),
        (replace(pipeline, info=None), None, "its held-out data has none in words: give --prompts FILE"),
        (pipeline, file, "prompts.txt is empty: give a caption a line"),
    ):
        with pytest.raises(UserError, match=said):
            record_of(changed, against="captioned_digits", prompts=prompts)
    file.write_text("a bold cat\n")
    with pytest.raises(UserError, match="unknown 'cat'"):
        record_of(folder, prompts=file)
