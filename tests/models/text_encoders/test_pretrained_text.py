"""Text models from a folder: tiny ones with random weights, and captions that gen encode keeps beside latents."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build, override
from gen.data.latents import Latents
from gen.data.table import Table
from gen.pipeline import load
from gen.training.run import Run
from gen.training.stream import ShuffledStream
from gen.training.trainer import train
from tests.gen.data.test_encode import files
from tests.gen.data.test_encode import pictures as npz
from tests.gen.tiny import tiny
from tests.gen.training.test_trainer import same, weights

WORDS = ["<pad>", "<eos>", "<unk>", "a", "cat", "dog", "red", "blue", "on", "grass"]
CAPTIONS = [f"a {colour} {animal} on grass" for colour in ("red", "blue") for animal in ("cat", "dog")]


def write(transformers, folder, kind, vocabulary=10):
    """The reference model and its tokenizer, and the folder that they were saved in."""
    torch.manual_seed(0)
    owner, config, sizes = {
        "clip": ("CLIPTextModel", "CLIPTextConfig", {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
            "max_position_embeddings": 9, "eos_token_id": 1}),
        "t5": ("T5EncoderModel", "T5Config", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}),
        "qwen3": ("Qwen3Model", "Qwen3Config", {
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 8}),
    }[kind]  # fmt: skip
    model = getattr(transformers, owner)(getattr(transformers, config)(vocab_size=vocabulary, **sizes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    model.save_pretrained(folder), tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", ["clip", "t5", "qwen3"])
def test_embeddings_are_those_of_the_model(kind, layer, transformers, tmp_path):
    model = write(transformers, tmp_path, kind)
    net = build("models.text_encoders", {"name": "pretrained", "path": tmp_path, "length": 7, "layer": layer}).load()
    text, mask = net([CAPTIONS[0], "a cat", ""]).values()
    assert text.shape == (3, 7, 16) and text.dtype == torch.float32 and mask.sum(1).tolist() == [5, 2, 0]
    ids = torch.tensor([[3, 6, 4, 8, 9, 0, 0], [3, 4, 0, 0, 0, 0, 0]])
    seen = None if kind == "clip" else (ids != 0).long()  # T5 does not see padding; CLIP's tokens see what is before
    out = model(input_ids=ids, attention_mask=seen, output_hidden_states=True)
    expected = out.last_hidden_state if layer == -1 else out.hidden_states[-2]
    torch.testing.assert_close(text[:2], expected.detach())
    alone, _ = net(["a cat"]).values()
    torch.testing.assert_close(alone[0, :2], text[1, :2])
    assert net.truncated == 0 and net(["a " * 8])["text_mask"].all() and net.truncated == 1


def test_lengths_and_folders(transformers, tmp_path):
    write(transformers, tmp_path / "clip", "clip")
    spec = build("models.text_encoders", {"name": "pretrained", "path": str(tmp_path / "clip")})
    assert spec.load()(["a"])["text"].shape == (1, 9, 16)  # the model's own
    whole = tmp_path / "pipeline"  # of diffusers
    shutil.copytree(tmp_path / "clip", whole / "text_encoder")
    shutil.copytree(tmp_path / "clip", whole / "tokenizer")
    there = build("models.text_encoders", {"name": "pretrained", "path": str(whole)})
    assert (
        torch.equal(there.load()(CAPTIONS)["text"], spec.load()(CAPTIONS)["text"])
        and there.identity() == spec.identity()
    )
    write(transformers, tmp_path / "t5", "t5")
    t5 = build("models.text_encoders", {"name": "pretrained", "path": str(tmp_path / "t5")})
    assert t5.load()(["a"])["text"].shape == (1, 120, 16) and t5.identity() != spec.identity()


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"length": 10}, UserError, "at most 9 tokens"),
        ({"layer": -4}, UserError, "the model has 3"),
        ({"layer": 0}, UserError, "layer = 0"),
        ({"path": "nowhere"}, UserError, "no config.json"),
        ({"kind": "bert"}, UserError, "of type 'bert'"),
        ({"tokenizer": False}, UserError, "cannot be read as a tokenizer"),
        ({"vocabulary": 12}, UserError, "has 10 tokens and .* 12: they are of two models"),
    ],
)
def test_what_cannot_be_is_one_line(fields, error, said, transformers, tmp_path):
    fields = dict(fields)
    write(transformers, tmp_path, "clip", fields.pop("vocabulary", len(WORDS)))
    if kind := fields.pop("kind", None):
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    if fields.pop("tokenizer", None) is False:
        for file in tmp_path.glob("tokenizer*"):
            file.unlink()
    with pytest.raises(error, match=said) as caught:
        build("models.text_encoders", {"name": "pretrained", "path": str(tmp_path), **fields}).load()
    assert "\n" not in str(caught.value)


class Reader(torch.nn.Module):
    """A network that reads the mean of a text's embeddings."""

    def __init__(self):
        super().__init__()
        self.x, self.text = torch.nn.Linear(192, 192), torch.nn.Linear(16, 192)

    def forward(self, x, t, cond, *, s=None, tap=None):
        mask = cond["text_mask"][..., None].to(x.dtype)
        text = (cond["text"] * mask).sum(1) / mask.sum(1).clamp(min=1)
        return (self.x(x.flatten(1)) + self.text(text)).view_as(x)

    def null(self, cond):
        return {key: torch.zeros_like(value) for key, value in cond.items()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rows = [("path", "label", "caption")]
    for i in range(22):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append((f"{i}.png", i % 2, "" if i == 9 else CAPTIONS[i % 4] + " red" * (i == 5)))
    with (folder / "all.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return folder


def test_captions_are_kept_beside_latents_and_read_back(photos, transformers, tmp_path, capsys):
    """Shards, parts and a stop on the way change nothing; the empty caption's embedding is kept once."""
    write(transformers, tmp_path / "t5", "t5")
    text = json.dumps({"name": "pretrained", "path": str(tmp_path / "t5"), "length": 5})
    words = ["encode", str(photos / "all.csv"), "--autoencoder", "tests.gen.data.test_encode:Halves", "--flip"]
    words += ["--text", text, "--dtype", "float32", "--batch-size", "4", "--shard", "8", "--quiet", "--out"]
    with pytest.warns(UserWarning, match="1 captions are longer"):
        assert main([*words, str(tmp_path / "out")]) == 0
    with pytest.warns(UserWarning, match="1 captions"):
        for part in ("2/2", "1/2"):
            assert main([*words, str(tmp_path / "parts"), "--part", part]) == 0
    assert files(tmp_path / "parts") == files(tmp_path / "out")

    source = Latents(str(tmp_path / "out"), text=True, flip=True)
    data, pictures = source.open("train"), Table(str(photos / "all.csv")).open("train")
    net = build("models.text_encoders", json.loads(text)).load()
    n = len(pictures)
    splits = [Table(str(photos / "all.csv")).open(split) for split in ("train", "test")]
    assert [one.caption(i) for one in splits for i in range(len(one))].count("") == 1  # an empty one is a caption
    for i in (0, 3, n - 1, n, 2 * n - 1):  # mirrored pictures have the same caption
        embedding, mask = net([pictures.caption(i % n)]).values()
        torch.testing.assert_close(data[i]["text"], embedding[0])
        assert torch.equal(data[i]["text_mask"], mask[0]) and data[i]["text_mask"].dtype == torch.bool
    batch = ShuffledStream(data, 0).__getitems__([4, 9, 20])
    assert batch["text"].shape == (3, 5, 16) and batch["text_mask"].shape == (3, 5)
    null = source.null_text
    torch.testing.assert_close(null["text"], net([""])["text"][0])
    assert null["text_mask"].shape == (5,) and not null["text_mask"].any()
    assert "text" not in Latents(str(tmp_path / "out")).open("train")[0]
    trained = []
    for name, resume in [("run", "never"), ("on", str(tmp_path / "run/checkpoints/step-0000002"))]:
        torch.manual_seed(0)
        train(tiny(model=Reader(), data=source, steps=4, save_every=2), tmp_path / name, resume=resume, quiet=True)
        trained.append(weights(tmp_path / name))
    assert same(*trained)
    pixart_of_stored_text(source, tmp_path, json.loads(text))


def pixart_of_stored_text(source, tmp_path, text):
    """Width, length and no caption follow from the latents; the encoder reads prompts, and no other does."""
    size = {"patch": 4, "width": 16, "depth": 1, "heads": 2}
    run = override(Run(model={"name": "pixart", **size}, data=source, objective="denoise"), {
        "steps": 1, "batch_size": 4, "sample_every": 0, "validate_every": 0, "sampler.steps": 2,
        "sampler.guide": "cfg", "objective.class_dropout": 0.5})  # fmt: skip
    assert (run.model.text_width, run.model.text_length, run.model.null_text) == (16, 5, "stored")
    train(run, tmp_path / "pixart", quiet=True)
    with pytest.raises(UserError, match="--text-encoder FOLDER"):
        load(tmp_path / "pixart").sample(cond=["a red cat"])
    pipeline = load(tmp_path / "pixart", text_encoder=text)
    torch.testing.assert_close(pipeline.denoiser.net.captions.null_text, source.null_text["text"])
    out = pipeline.sample(cond=["a red cat"])
    assert out.cond["y"].tolist() == [2] and out.x.isfinite().all()  # the label is none
    with pytest.raises(UserError, match="is not the one that the latents' captions were read by"):
        load(tmp_path / "pixart", text_encoder={**text, "length": 4})


def test_what_has_no_text_is_refused(photos, transformers, tmp_path, capsys):
    write(transformers, tmp_path / "t5", "t5"), npz(tmp_path / "a.npz")
    words = ["--autoencoder", "tests.gen.data.test_encode:Halves", "--quiet", "--batch-size", "4", "--shard", "8"]
    for data, more, said in [
        (tmp_path / "a.npz", ["--text", str(tmp_path / "t5")], "has no caption"),
        (photos / "all.csv", ["--text", "nowhere"], "--text nowhere is no folder"),
        (photos / "all.csv", ["--text", str(tmp_path / "t5"), "--layout", "edm2"], "keeps latents alone"),
    ]:
        assert main(["encode", str(data), *words, *more, "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    assert main(["encode", str(photos / "all.csv"), *words, "--out", str(tmp_path / "bare")]) == 0
    with pytest.raises(UserError, match="has no text, which text = True needs"):
        Latents(str(tmp_path / "bare"), text=True).open("train")
    with pytest.raises(UserError, match="gen encode --text"):
        _ = Latents(str(tmp_path / "bare")).null_text
