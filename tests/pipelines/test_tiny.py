"""The tiny pipelines: they run, repeat themselves, and each prompt and each branch can be seen in the result."""

from __future__ import annotations

import pytest
import torch

from tests.pipelines.tiny import CALLS, ENCODERS, FAMILIES, call, prompted, relative, tiny, with_text_encoder


def run(pipe, **how):
    result = pipe(**how)
    return result.frames if hasattr(result, "frames") else result.images


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_repeats_itself_and_shows_what_it_is_given(name):
    pipe, how = tiny(name), call(name)
    how["num_inference_steps"] = 2
    out = run(pipe, **how)
    assert bool(torch.isfinite(out).all())
    assert relative(out[0], out[1]) > 0.1
    again = call(name) | {"num_inference_steps": 2}
    assert torch.equal(run(tiny(name), **again), out)
    key = "class_labels" if name == "dit" else "prompt_embeds"
    swapped = call(name) | {
        "num_inference_steps": 2,
        key: how[key][::-1] if isinstance(how[key], list) else how[key].flip(0),
    }
    assert relative(run(pipe, **swapped), out) > 1e-3
    scale = "true_cfg_scale" if "true_cfg_scale" in CALLS[name] else "guidance_scale"
    other = call(name) | {"num_inference_steps": 2, scale: 1.5}
    assert relative(run(pipe, **other), out) > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_a_prompt_runs_whole_and_a_saved_pipeline_gives_the_same(name, tmp_path):
    pipe = with_text_encoder(name)
    draw = lambda: [torch.Generator().manual_seed(row) for row in range(2)]  # noqa: E731
    prompts = ["a red fox", "a blue bird in the snow"]
    out = run(pipe, prompt=prompts, generator=draw(), **prompted(name))
    assert bool(torch.isfinite(out).all())
    assert relative(out[0], out[1]) > 0.01
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(run(loaded, prompt=prompts, generator=draw(), **prompted(name)), out)
