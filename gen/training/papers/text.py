"""Text: masked diffusion from scratch, and models of billions of parameters that are fine-tuned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gen.config.spec import Json, build
from gen.text.decoding import Decoding
from gen.text.mask_path import LogLinear
from gen.training.objectives.bd3 import BD3
from gen.training.objectives.fast_dllm import FastDLLM
from gen.training.objectives.llada import LLaDA
from gen.training.objectives.mdlm import MDLM
from gen.training.optim.adamw import AdamW
from gen.training.papers.pixels import long_run
from gen.training.run import Run
from gen.training.schedules import WSD, Constant

__all__ = ["bd3_owt", "fast_dllm_v2_7b", "llada_8b_sft", "mdlm_lm1b", "mdlm_owt"]

GPT2: Json = {"mask_token": 50257, "eos_tokens": [50256], "size": 50258}
BERT: Json = {"mask_token": 103, "eos_tokens": [102], "size": 30522}


def _text(path: str, tokenizer: str, ids: Json, length: int, model: Json, **fields: Any) -> Run:
    """Return a run on text files, or lines of JSON, with the tokenizer.json of a folder.

    Args:
        path: of the files, below data/.
        tokenizer: name of the folder.
        ids: fields of the tokenizer.
        length: tokens of a window.
        model: the network's spec, without its ids.
        **fields: of Run.
    """
    names = {"mask_token_id": ids["mask_token"], "eos_token_ids": ids["eos_tokens"], "vocab_size": ids["size"]}
    tokens: Json = {"name": "huggingface", "file": f"data/{tokenizer}/tokenizer.json", **ids}
    return long_run(
        model=build("models", {"name": "text", **model, **names}, length=length),
        data=build("data", "text", path=f"data/{path}", tokenizer=tokens, length=length, holdout=0.002),
        path=LogLinear(),
        parameterisation=None,
        sampler=Decoding(),
        precision="bf16",
        clip=1.0,
        **fields,
    )


def mdlm_owt() -> Run:
    """Train masked diffusion on OpenWebText: 12 layers of width 768, a million updates of 512 windows of 1024 tokens.

    Sources: Sahoo et al. 2024, arXiv 2406.07524; kuleshov-group/mdlm, configs/config.yaml and scripts/train_owt_mdlm.sh
    (checked): AdamW (.9, .999) at 3e-4 after 2500 updates, no decay, clipping at 1, average .9999, bfloat16, antithetic
    times from 1e-3, GPT-2's tokenizer, 16 windows a GPU at a time, models/dit.py. The perplexity is that of as many
    updates in BD3-LM's paper, arXiv 2503.09573, table 4 (524 billion tokens); MDLM's own table 2 has 23.21 of 262
    billion.

    Left out: dropout .1.
    """
    return _text(
        "openwebtext",
        "gpt2",
        GPT2,
        1024,
        {"name": "ddit", "preset": "MDLM-OWT"},
        objective=MDLM(),
        optim=AdamW(lr=3e-4),
        schedule=Constant(warmup=2500),
        steps=1_000_000,
        batch_size=512,
        micro_batch_size=16,
    )


def mdlm_lm1b() -> Run:
    """Train masked diffusion on the One Billion Word benchmark: a million updates of 512 windows of 128 tokens.

    Sources: as of `mdlm_owt`, and kuleshov-group/bd3lms, scripts/train/train_lm1b_mdlm.sh (checked): windows that wrap
    around sentences, the tokenizer of bert-base-uncased. The perplexity is of BD3-LM's table 3, of as
    many updates (65 billion tokens).
    """
    run = mdlm_owt()
    fields = {"objective": run.objective, "optim": run.optim, "schedule": run.schedule, "steps": run.steps}
    return _text(
        "lm1b", "bert-base-uncased", BERT, 128, {"name": "ddit", "preset": "MDLM-LM1B"}, **fields, batch_size=512
    )


def bd3_owt() -> Run:
    """Train BD3-LM on OpenWebText in blocks of 16 tokens: the last 150,000 updates, from weights of MDLM's loss.

    Sources: Arriola et al. 2025, arXiv 2503.09573; kuleshov-group/bd3lms, configs/config.yaml and
    scripts/train/train_owt_bd3lm.sh (checked): as `mdlm_owt`, from 850,000 updates in one block of 1024, which are
    --init; the interval of the mask's share is looked for among widths .5 to .9 as it trains. The perplexity is of
    the paper's table 4 (checked).

    Left out: that search, and the resampling of masks; objective.clip says an interval.
    """
    run = mdlm_owt()
    model = replace(run.model, block_size=16)
    return replace(run, model=model, objective=BD3(), steps=150_000, init="runs/mdlm_owt_850k")


def llada_8b_sft() -> Run:
    """Train LLaDA-8B further on prompts and responses: three epochs of 4.5 million pairs in batches of 256.

    Sources: Nie et al. 2025, arXiv 2502.09992, section 2.3 (checked): 3 epochs, decay .1, 50 updates of warm-up to
    2.5e-5, then constant, in the last tenth linear to 2.5e-6, batch 256, 2 on a GPU; the loss of responses alone
    (GUIDELINES.md of ML-GSAI/LLaDA, checked). The authors published neither data nor training code. Not verified: the
    betas of AdamW, which are PyTorch's, and windows of 4096 tokens, the context of the pre-training.

    --init is what gen import makes of GSAI-ML/LLaDA-8B-Base. Average: none is published, and none is kept.
    """
    ids: Json = {"mask_token": 126336, "eos_tokens": [126081, 126348], "size": 126464}
    return _text(
        "sft",
        "LLaDA-8B-Base",
        ids,
        4096,
        {"preset": "LLaDA-8B"},
        objective=LLaDA(),
        optim=AdamW(lr=2.5e-5, weight_decay=0.1),
        schedule=WSD(warmup=50, decay=0.1, floor=0.1),
        steps=52_734,
        batch_size=256,
        micro_batch_size=1,
        ema=(),
        shard=True,
        gradient_checkpointing=True,
        init="runs/llada-8b-base",
    )


def fast_dllm_v2_7b() -> Run:
    """Adapt Qwen2.5-7B to blocks of 32 tokens by Fast-dLLM v2: 2500 updates of 256 texts of 2048 tokens.

    Sources: Wu et al. 2025, arXiv 2509.26328; the model card says blocks of 32, about 10^9 tokens and the base model
    (checked). Not verified: 2500 updates, batch 256, 2048 tokens and the rate of 1e-5, which others report of the
    paper; decay, betas and warm-up, which are PyTorch's and none.

    --init is what gen import makes of Qwen2.5-7B-Instruct in Fast-dLLM's layout.
    """
    ids: Json = {"mask_token": 151665, "eos_tokens": [151645], "size": 152064}
    return _text(
        "sft",
        "Qwen2.5-7B-Instruct",
        ids,
        2048,
        {"preset": "Fast-dLLM-v2-7B"},
        objective=FastDLLM(),
        optim=AdamW(lr=1e-5),
        steps=2500,
        batch_size=256,
        micro_batch_size=1,
        ema=(),
        shard=True,
        gradient_checkpointing=True,
        init="runs/qwen2.5-7b",
    )
