"""Stable Diffusion 3's three encoders, tiny and random: our joined embeddings against those of its pipeline."""

import importlib
import json

import pytest
import torch

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.data.captions import Captions
from gen.data.latents import Latents
from gen.data.lib.prompts import encoder_spec
from gen.data.table import Table
from gen.eval.provenance import loading_options
from gen.models.interop.checkpoints import import_checkpoint
from gen.training.run import Run
from gen.training.state import build_network
from tests.models.interop.test_mmdit import TINY
from tests.models.text_encoders.test_pretrained_text import CAPTIONS, WORDS, photos  # noqa: F401 - a fixture

TEXTS = [CAPTIONS[0], "a cat", ""]
CLIPS = {"text_encoder": (8, 6), "text_encoder_2": (12, 10)}  # width, and that of the projected text


def words_of(transformers, folder, length):
    """Write a tokenizer of a few words, which ends a text by <eos>."""
    tokenizers = importlib.import_module("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", "model_max_length": length}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def pipeline(transformers, tmp_path_factory):
    """The parts of a pipeline, and the folder that they were saved in."""
    folder, parts = tmp_path_factory.mktemp("sd3"), {}
    torch.manual_seed(0)
    for name, (width, projected) in CLIPS.items():
        config = transformers.CLIPTextConfig(
            vocab_size=10, hidden_size=width, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
            max_position_embeddings=9, projection_dim=projected, eos_token_id=1, bos_token_id=0, pad_token_id=0,
        )  # fmt: skip
        parts[name] = transformers.CLIPTextModelWithProjection(config)
    parts["text_encoder_3"] = transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=10, d_model=24, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    )
    parts["transformer"] = importlib.import_module("diffusers").SD3Transformer2DModel(
        **{**TINY, "joint_attention_dim": 24, "pooled_projection_dim": 16}
    )
    for name, model in parts.items():
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        model.eval().save_pretrained(folder / name)
    for i, length in enumerate((9, 9, 12)):
        name = f"tokenizer{'' if i == 0 else f'_{i + 1}'}"
        parts[name] = words_of(transformers, folder / name, length)
    return parts, folder


def theirs(parts, texts, length):
    """Prompt embeddings and pooled ones of diffusers' pipeline."""
    whole = importlib.import_module("diffusers").StableDiffusion3Pipeline(
        vae=None, scheduler=importlib.import_module("diffusers").FlowMatchEulerDiscreteScheduler(), **parts
    )
    with torch.no_grad():
        text, _, pooled, _ = whole.encode_prompt(
            texts, None, None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=length
        )
    return text, pooled


@pytest.mark.parametrize("left_out", [(), ("t5",)])
def test_embeddings_are_those_of_the_pipeline(pipeline, left_out):
    parts, folder = pipeline
    text, pooled = theirs({**parts, **({"text_encoder_3": None} if left_out else {})}, TEXTS, 12)
    ours = build("models.text_encoders", {"name": "sd3", "path": str(folder), "length": 12, "leave_out": left_out})
    encoder = ours.load()
    found = encoder(TEXTS)
    assert found["text"].shape == (3, 9 + 12, 24) and found["text_mask"].all() and found["pooled"].shape == (3, 16)
    torch.testing.assert_close(found["text"], text, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found["pooled"], pooled, rtol=1e-6, atol=1e-6)
    assert encoder.truncated == 0 and encoder(["a " * 20])["text"].isfinite().all() and encoder.truncated == 1
    assert (ours.identity() == build("models.text_encoders", encoder_spec(folder), length=12).identity()) == (
        not left_out
    )


def test_what_is_left_out_is_zeros_and_what_is_missing_is_refused(pipeline, tmp_path):
    _, folder = pipeline
    whole = build("models.text_encoders", encoder_spec(folder)).load()(TEXTS)
    bare = build("models.text_encoders", encoder_spec(folder), leave_out=("clip_l",)).load()(TEXTS)
    assert (
        whole["text"].shape == (3, 9 + 256, 24)
        and not bare["text"][:, :9, :8].any()
        and not bare["pooled"][:, :6].any()
    )
    assert torch.equal(bare["text"][:, :9, 8:], whole["text"][:, :9, 8:])
    assert torch.equal(bare["text"][:, 9:], whole["text"][:, 9:])
    nothing = build(
        "models.text_encoders", {"name": "sd3", "path": str(tmp_path), "leave_out": ["clip_l", "clip_g", "t5"]}
    )
    assert nothing.load()(["x"])["text"].shape == (1, 77 + 256, 4096)
    with pytest.raises(UserError, match="that of a Stable Diffusion 3 pipeline, or leave_out 'clip_l'"):
        build("models.text_encoders", {"name": "sd3", "path": str(tmp_path)}).load()
    with pytest.raises(UserError, match="leave_out"):
        build("models.text_encoders", {"name": "sd3", "path": str(folder), "leave_out": ["t4"]})


def test_an_imported_sd3_takes_prompts(pipeline, tmp_path):
    _, folder = pipeline
    import_checkpoint(folder / "transformer", out=tmp_path / "run")
    sampler = {"steps": 2, "seed": 0}
    model = gen.load(tmp_path / "run", text_encoder=folder)
    seen = model.sample(cond=["a red cat", "a dog"], negative="", **sampler)
    assert seen.prompts == ("a red cat", "a dog") and seen.cond["pooled"].shape == (2, 16)
    assert seen.x.isfinite().all() and not torch.equal(
        seen.x[:1], model.sample(cond="a blue cat", negative="", **sampler).x
    )
    assert str(folder) in loading_options(model)["text_encoder"]
    with pytest.raises(UserError, match="give the negative prompt ''"):
        model.sample(cond="a red cat", **sampler)


def test_captions_have_a_pooled_vector(pipeline):
    _, folder = pipeline
    source = Captions("captioned_digits", {**encoder_spec(folder), "length": 12})
    wanted = {"text_width": 24, "text_length": 21, "null_text": "stored", "pooled_width": 16}
    assert source.text_fields == wanted and source.null_text["pooled"].shape == (16,)
    item = source.open("test")[0]
    assert item["pooled"].shape == (16,) and item["text"].shape == (21, 24) and spec_of(source)["text"]["name"] == "sd3"


def test_latents_keep_the_pooled_vector(pipeline, photos, tmp_path):  # noqa: F811
    _, folder = pipeline
    text = {**encoder_spec(folder), "length": 12}
    words = ["--autoencoder", "tests.gen.data.test_encode:Halves", "--text", json.dumps(text), "--dtype", "float32"]
    assert main(["encode", str(photos / "all.csv"), *words, "--quiet", "--out", str(tmp_path / "out")]) == 0
    source = Latents(str(tmp_path / "out"), text=True)
    assert source.text_fields["pooled_width"] == 16 and source.null_text["pooled"].shape == (16,)
    item, encoder = source.open("train")[3], build("models.text_encoders", text).load()
    expected = encoder([Table(str(photos / "all.csv")).open("train").caption(3)])
    for key in ("text", "pooled"):
        torch.testing.assert_close(item[key], expected[key][0])
    run = Run(model={"name": "mmdit", "preset": "digits"}, data=source, objective="denoise")
    model, empty = run.model, encoder([""])
    captions = build_network(run).captions
    torch.testing.assert_close(captions.null_pooled, empty["pooled"][0])
    torch.testing.assert_close(captions.pooled({}, 3), empty["pooled"].expand(3, -1))
    assert (model.text_width, model.text_length, model.pooled_width, model.null_text) == (24, 21, 16, "stored")
