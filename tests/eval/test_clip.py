"""CLIP against transformers: embeddings of pictures by CMMD's rule and of texts, from a folder on this machine."""

import json

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from gen.config.errors import MissingDependency, UserError
from gen.eval.features.clip import CLIP, END, MEAN, START, STD

WORDS = ["a", "photo", "of", "cat", "dog", START, END]


def small_clip(folder):
    """Save a small model with a tokenizer, and return it."""
    torch.manual_seed(0)
    part = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
    vision = {**part, "image_size": 42, "patch_size": 14}
    text = {**part, "hidden_size": 64, "intermediate_size": 256, "vocab_size": 7, "max_position_embeddings": 9}
    text |= {"bos_token_id": 5, "eos_token_id": 6, "pad_token_id": 6}
    model = (
        CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=32)).eval().requires_grad_(False)
    )
    for value in model.parameters():
        value.add_(0.05 * torch.randn(value.shape))
    model.save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return small_clip(folder), folder


def test_pictures_by_the_rule_of_cmmd(clip) -> None:
    model, folder = clip
    extractor = CLIP(str(folder), batch=2).load()
    images = torch.randint(0, 256, (3, 3, 50, 61), dtype=torch.uint8)
    x = []
    for image in images.numpy():
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).crop((5, 0, 55, 50))
        x.append((np.asarray(picture.resize((42, 42), Image.Resampling.BICUBIC)) / 255 - MEAN) / STD)
    pixels = torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).float()
    vision = model.visual_projection(model.vision_model(pixels).pooler_output)
    rows = extractor(images)
    torch.testing.assert_close(rows, vision / vision.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert extractor.name == "clip vit-128/14@42 cmmd"
    assert torch.equal(extractor(images.flip(0)), rows.flip(0)) and torch.equal(extractor(images[:1]), rows[:1])


def test_texts(clip) -> None:
    model, folder = clip
    extractor = CLIP(str(folder)).load()
    prompts = ["a photo of a cat", "dog", "", "a a a a a a a a a a a dog"]
    ids = [[5, 0, 1, 2, 0, 3, 6], [5, 4, 6], [5, 6], [5, *[0] * 7, 6]]
    for prompt, row in zip(prompts, ids, strict=True):
        text = model.text_projection(model.text_model(torch.tensor([row])).pooler_output)
        torch.testing.assert_close(extractor.text([prompt]), text / text.norm(), rtol=1e-4, atol=1e-5)
    assert torch.equal(extractor.text(prompts)[2:3], extractor.text([""]))


def test_folders_of_anything_else_are_refused(clip, tmp_path) -> None:
    _, folder = clip
    with pytest.raises(MissingDependency, match="a copy of openai/clip-vit-large-patch14-336"):
        CLIP(str(tmp_path)).load()
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"config\.json is no config of a CLIPModel"):
        CLIP(str(tmp_path)).load()
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = 56
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is of another network: embeddings\.position_embedding\.weight"):
        CLIP(str(tmp_path)).load()
    config["vision_config"]["image_size"] = 42
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"give a tokenizer\.json"):
        CLIP(str(tmp_path)).load().text(["a"])
