"""A student of one and two steps of a small text-to-image pipeline of diffusers, by adapters.

A Stable Diffusion 3 pipeline is built in code: an autoencoder that changes nothing, three text encoders that are
random and stay so, and a small transformer. `gen train` trains the transformer on captioned digits
(gen.data.captioned_digits), `gen pairs` and `gen distill` train adapters on its guided samples, and the class of
diffusers samples with them under gen.as_scheduler. A judge (scripts/captions.py) counts samples that are as asked.

    python scripts/pipeline_student.py [--out runs/pipeline-student]

Measured on 2026-11-30 with one thread of an Intel Xeon on which others worked, torch 2.13.0+cpu, one seed: 147 CPU
seconds for the teacher, 106 for the student; of 780 samples all three attributes are as asked in .967 (teacher, 20
steps at scale 3), .937 and .782 (teacher, 2 and 1 steps), .965 and .963 (student, 2 and 1 steps without guidance).
Accuracy does not see how sharp or how various the samples are. The scheduler's own two steps begin at 1 and .001, and
so are one: two steps are from 1 and 0.5 here.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gen
from gen.config.spec import override
from gen.data.captioned_digits import PHRASES, CaptionedDigits, caption, caption_words
from gen.models.interop.pipelines.students import save_adapters
from gen.training.pair_store import make_pairs
from gen.training.pipeline_students import on_prompts
from scripts.captions import Judge, shares, trained_judge

STEPS, SCALE = 20, 3.0  # of the teacher
CALL = {"guidance_scale": SCALE, "max_sequence_length": 12}
LARGE, BATCH = 300.0, 128
TEACHER = {
    "lora": None, "batch_size": 64, "optim.lr": 2e-3, "schedule": {"name": "cosine", "warmup": 50},
    "ema": [{"name": "classic", "decay": 0.999}], "objective.times": "logit_normal", "save_every": 250,
}  # fmt: skip
STUDENT = {
    "lora.rank": 16, "batch_size": 64, "optim.lr": 2e-3, "schedule": {"name": "cosine", "warmup": 50},
    "ema": [{"name": "classic", "decay": 0.999}], "save_every": 250,
}  # fmt: skip


def untrained() -> Any:
    """Return the pipeline, its network and text encoders of random weights."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    torch.manual_seed(0)
    words = {name: _tokenizer() for name in ("tokenizer", "tokenizer_2", "tokenizer_3")}
    t5 = T5Config(vocab_size=len(words["tokenizer"]), d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    config = CLIPTextConfig(
        vocab_size=len(words["tokenizer"]), hidden_size=32, intermediate_size=64, projection_dim=32,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=12, bos_token_id=0, eos_token_id=1,
        pad_token_id=1, initializer_factor=10.0,
    )  # fmt: skip
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=4, in_channels=1, out_channels=1, num_layers=3, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=64, pooled_projection_dim=64,
        pos_embed_max_size=8,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=_autoencoder(), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=CLIPTextModelWithProjection(config), text_encoder_2=CLIPTextModelWithProjection(config),
        text_encoder_3=T5EncoderModel(t5), **words,
    )  # fmt: skip


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *caption_words()])}
    whole = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=whole, model_max_length=12, **special)


def _autoencoder() -> Any:
    """Return an autoencoder whose latents [1, 16, 16] are the mean of the channels of a picture, to 1e-3.

    Of its four channels h, -h, K and -K a group norm is h / K for large K, and silu(h) - silu(-h) is h.
    """
    import diffusers

    vae = diffusers.AutoencoderKL(
        latent_channels=1, block_out_channels=(4,), down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), norm_num_groups=1, sample_size=16, use_quant_conv=False,
        use_post_quant_conv=False, mid_block_add_attention=False, scaling_factor=1.0, shift_factor=0.0,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.zero_()
        for part in (vae.encoder, vae.decoder):
            part.conv_in.weight[:2, :, 1, 1] = torch.tensor([[1.0], [-1.0]]) / part.conv_in.in_channels
            part.conv_in.bias[2:] = torch.tensor([LARGE, -LARGE])
            part.conv_norm_out.weight[:2] = LARGE / 2**0.5
            centre = torch.zeros(part.conv_out.out_channels, 4)
            centre[: 1 if part is vae.encoder else 3, :2] = torch.tensor([1.0, -1.0])
            part.conv_out.weight[:, :, 1, 1] = centre
        vae.encoder.conv_out.bias[1] = -30.0  # log variance
    return vae.eval()


def teacher(out: Path, steps: int) -> Path:
    """Train the pipeline's network on captioned digits; return the folder of the pipeline.

    Args:
        out: folder of everything.
        steps: of the training.
    """
    folder, start = out / "teacher", out / "untrained"
    if (folder / "model_index.json").exists():
        return folder
    if not (start / "model_index.json").exists():
        untrained().save_pretrained(start)
    loaded = gen.load_diffusers(start, **CALL)
    changes = {**TEACHER, "steps": steps, "data": {"name": "captioned_digits"}}
    began = time.process_time()
    gen.train(on_prompts(override(loaded.training_run(), changes)), out / "teacher-run", quiet=True)
    print(f"teacher: {time.process_time() - began:.0f} CPU seconds", flush=True)
    trained = gen.load(out / "teacher-run").denoiser.net.inner
    loaded.pipe.transformer.load_state_dict(trained.state_dict())
    loaded.pipe.save_pretrained(folder)
    return folder


def student(out: Path, folder: Path, pairs: int, steps: int) -> Path:
    """Train adapters by reflow on the teacher's guided samples; return the folder that load_lora_weights takes.

    Args:
        out: folder of everything.
        folder: of the teacher.
        pairs: samples of the teacher.
        steps: of the training.
    """
    loaded, began = gen.load_diffusers(folder, prompts=asked(len(PHRASES))[0], **CALL), time.process_time()
    store = make_pairs(loaded.pipeline, out / "pairs", pairs, loaded.pipeline.plan(steps=STEPS), batch_size=128)
    changes = {**STUDENT, "steps": steps, "objective.store": store.path, "objective.pairs": pairs}
    changes |= {"objective.teacher_sampler.steps": STEPS}
    run = gen.distill("reflow", loaded, out / "student", changes=changes, quiet=True)
    print(f"student: {time.process_time() - began:.0f} CPU seconds", flush=True)
    return save_adapters(run.folder, None, out / "lora").parent


def asked(each: int) -> tuple[list[str], Tensor]:
    """Return prompts, some of each combination that was trained on, and their attributes [N, 3].

    Args:
        each: samples of a combination.
    """
    unseen = CaptionedDigits().held_out_combinations
    every = [(d, w, t) for d in range(10) for w in range(3) for t in range(3) if (d, w, t) not in unseen]
    prompts = [caption(*one, i % len(PHRASES)) for one in every for i in range(each)]
    return prompts, torch.tensor(every).repeat_interleave(each, 0)


@torch.no_grad()
def measured(pipe: Any, judge: Judge, each: int, **call: Any) -> list[float]:
    """Return the share of samples of diffusers' own call whose digit, weight and turn, and all three, are as asked.

    The last number is the deviation of samples of one combination, a mean over pixels: 0 for samples that are all one.

    Args:
        pipe: of diffusers.
        judge: of pictures.
        each: samples of a combination, at least 2.
        **call: steps, times and scale of the call.
    """
    words, attributes = asked(each)
    pictures = []
    for i in range(0, len(words), BATCH):
        how = {**CALL, **call, "output_type": "pt"}
        out = pipe(words[i : i + BATCH], generator=torch.Generator().manual_seed(i), **how)
        pictures.append(out.images.mean(1, keepdim=True) * 2 - 1)
    x = torch.cat(pictures)
    return [*shares(judge.accuracy(x, attributes)), float(x.unflatten(0, (-1, each)).std(1).mean())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pipeline-student"))
    parser.add_argument("--teacher-steps", type=int, default=2000, help="of the teacher's training")
    parser.add_argument("--pairs", type=int, default=2048, help="samples of the teacher that the student learns from")
    parser.add_argument("--steps", type=int, default=800, help="of the student's training")
    parser.add_argument("--each", type=int, default=10, help="samples of each combination that are judged")
    args = parser.parse_args()
    from diffusers import StableDiffusion3Pipeline

    torch.set_num_threads(1)
    folder = teacher(args.out, args.teacher_steps)
    lora = student(args.out, folder, args.pairs, args.steps)
    judge = trained_judge(0)
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    rows = [("teacher", STEPS, measured(pipe, judge, args.each, num_inference_steps=STEPS))]
    even = {2: [1.0, 0.5], 1: [1.0]}  # its scheduler's own two steps begin at 1 and at 0.001
    rows += [("teacher", steps, measured(pipe, judge, args.each, sigmas=sigmas)) for steps, sigmas in even.items()]
    pipe.load_lora_weights(lora)
    pipe.scheduler = gen.as_scheduler("euler", like=pipe.scheduler, grid="linear")
    how = {"guidance_scale": 1.0}
    rows += [("student", steps, measured(pipe, judge, args.each, num_inference_steps=steps, **how)) for steps in (2, 1)]
    (args.out / "table.json").write_text(json.dumps(rows, indent=1))
    print("| model | steps | digit | weight | turn | all three | deviation |\n" + "| --- " + "| ---: " * 6 + "|")
    for name, steps, right in rows:
        print(f"| {name} | {steps} | {' | '.join(f'{value:.3f}' for value in right)} |")


if __name__ == "__main__":
    main()
