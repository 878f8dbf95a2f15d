"""CLIP, the feature space of CMMD and of CLIP scores: projected embeddings of pictures and texts, of unit length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.reading import read_json
from gen.config.spec import Json
from gen.eval.features.lib.images import centre_square, in_batches, normalised, resized_by_pil, to_colour
from gen.eval.features.lib.transformer import Transformer, filled, renamed, weight_file
from gen.eval.features.lib.weights import read_state, tensors_sha256
from gen.text.tokenizers.huggingface import HuggingFace

__all__ = ["CLIP", "ClipExtractor", "ClipImageNet", "ClipTextNet"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FETCH = "CLIP's weights and config.json: a copy of openai/clip-vit-large-patch14-336, with tokenizer.json for texts"
START, END = "<|startoftext|>", "<|endoftext|>"
RULES = (
    ("encoder.layers.", "blocks."),
    ("layer_norm1", "norm1"),
    ("layer_norm2", "norm2"),
    ("self_attn.out_proj", "attn.proj"),
    *((f"self_attn.{x}_proj", f"attn.{x}") for x in "qkv"),
)


@dataclass(frozen=True)
class CLIP:
    """Image and text embeddings of a CLIP (Radford et al. 2021), after the projection, divided by their norm.

    Pictures enter as CMMD has them (Jayasumana et al. 2024): the square in the middle, resized by PIL's bicubic filter
    to the model's size and rounded to bytes. CMMD's model is ViT-L/14 at 336 pixels, 768 features.

    Attributes:
        path: a folder of transformers (CLIPModel), read as data.
        batch: images per call of the network, always; no caller's batch size matters.
    """

    path: str = ""
    batch: int = 16

    def __post_init__(self) -> None:
        check_fields(self, batch="[1, inf)")

    def load(self) -> ClipExtractor:
        """Return the extractor; MissingDependency without the folder, UserError for weights of another network."""
        file = weight_file(self.path, FETCH)
        config = _config(file.parent / "config.json")
        state = renamed(read_state(file, FETCH)[0], RULES)
        state = {name: tensor for name, tensor in state.items() if "position_ids" not in name and name != "logit_scale"}
        parts = {kind: _part(state, kind) for kind in ("vision", "text")}
        width = len(state["visual_projection.weight"]) if "visual_projection.weight" in state else 0
        images = filled(lambda: ClipImageNet(config["vision_config"], width), parts["vision"], file)
        texts = filled(lambda: ClipTextNet(config["text_config"], width), parts["text"], file)
        return ClipExtractor(images, texts, tensors_sha256(state), self.batch, file.parent / "tokenizer.json")


def _config(file: Path) -> Json:
    """Return the config of a CLIPModel with the defaults that files leave out; UserError for another one."""
    config = read_json(file, constants=True) if file.is_file() else None
    if not isinstance(config, dict) or not {"vision_config", "text_config"} <= config.keys():
        raise UserError(f"{file} is no config of a CLIPModel: expected {FETCH}")
    base = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
    }
    text = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "vocab_size": 49408}
    text |= {"max_position_embeddings": 77}
    return {
        "vision_config": {**base, **vision, **config["vision_config"]},
        "text_config": {**base, **text, **config["text_config"]},
    }


def _part(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the tensors of one of the two networks by their names here."""
    projection = {"vision": "visual_projection.weight", "text": "text_projection.weight"}[kind]
    own = {name.removeprefix(f"{kind}_model."): tensor for name, tensor in state.items() if name.startswith(f"{kind}_")}
    own.pop(projection, None)
    return own | ({"projection.weight": state[projection]} if projection in state else {})


@dataclass(frozen=True, eq=False)
class ClipExtractor:
    """The loaded networks; they run where the images are.

    Attributes:
        images: from pictures to embeddings, in float32.
        texts: from ids to embeddings, in float32.
        sha256: digest of the weights of both.
        batch: images per call of the network.
        tokens: path of the tokenizer.json.
    """

    images: ClipImageNet
    texts: ClipTextNet
    sha256: str
    batch: int
    tokens: Path

    @property
    def name(self) -> str:
        letter = {768: "b", 1024: "l", 1280: "h"}.get(self.images.dim, str(self.images.dim))
        return f"clip vit-{letter}/{self.images.patch}@{self.images.size} cmmd"

    def __call__(self, images: Tensor) -> Tensor:
        net = self.images.to(images.device)

        def compute(part: Tensor) -> Mapping[str, Tensor]:
            x = resized_by_pil(centre_square(part), (net.size, net.size))
            return {"features": F.normalize(net(normalised(x / 255, MEAN, STD)), dim=1)}

        return in_batches(to_colour(images, self.name), self.batch, compute)["features"]

    def text(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings of texts, float32 [B, D] of unit length, on the CPU; what exceeds the length is cut off.

        Args:
            prompts: the texts.
        """
        start, end = (self._tokenizer.backend.token_to_id(token) for token in (START, END))
        if start is None or end is None:
            raise UserError(f"{self.tokens} has no tokens {START} and {END}: it is no tokenizer of CLIP")
        rows = []
        net = self.texts.cpu()
        for prompt in prompts:  # one at a time: a text's bits depend on no other, and none is padded
            ids = [start, *self._tokenizer.encode(prompt)[: net.length - 2], end]
            with torch.no_grad():
                rows.append(F.normalize(net(torch.tensor([ids])), dim=1))
        if not rows:
            raise UserError("clip was given no texts")
        return torch.cat(rows)

    @cached_property
    def _tokenizer(self) -> HuggingFace:
        return HuggingFace(str(self.tokens), END)


class ClipImageNet(nn.Module):
    """Pictures [B, 3, size, size], normalised, to embeddings [B, width].

    Args:
        config: vision_config of the model.
        width: of the embedding.
    """

    def __init__(self, config: Json, width: int) -> None:
        super().__init__()
        self.dim, self.size, self.patch = config["hidden_size"], config["image_size"], config["patch_size"]
        eps = config["layer_norm_eps"]
        self.embeddings = Embeddings(
            class_embedding=nn.Parameter(torch.empty(self.dim)),
            patch_embedding=nn.Conv2d(3, self.dim, self.patch, self.patch, bias=False),
            position_embedding=nn.Embedding(1 + (self.size // self.patch) ** 2, self.dim),
        )
        self.pre_layrnorm = nn.LayerNorm(self.dim, eps)  # so the files spell it
        self.blocks = _layers(config)
        self.post_layernorm = nn.LayerNorm(self.dim, eps)
        self.projection = nn.Linear(self.dim, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        at = self.embeddings
        h = at.patch_embedding(x).flatten(2).mT
        h = torch.cat((at.class_embedding.expand(len(h), 1, -1), h), 1) + at.position_embedding.weight
        return self.projection(self.post_layernorm(self.blocks(self.pre_layrnorm(h))[:, 0]))


class ClipTextNet(nn.Module):
    """Ids [B, T] that end in the end of text, to its embeddings [B, width].

    Args:
        config: text_config of the model.
        width: of the embedding.
    """

    def __init__(self, config: Json, width: int) -> None:
        super().__init__()
        dim, self.length = config["hidden_size"], config["max_position_embeddings"]
        self.embeddings = Embeddings(
            token_embedding=nn.Embedding(config["vocab_size"], dim),
            position_embedding=nn.Embedding(self.length, dim),
        )
        self.blocks = _layers(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(dim, config["layer_norm_eps"])
        self.projection = nn.Linear(dim, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        at = self.embeddings
        h = at.token_embedding(ids) + at.position_embedding.weight[: ids.shape[1]]
        return self.projection(self.final_layer_norm(self.blocks(h)[:, -1]))


class Embeddings(nn.Module):
    """Tables and layers in front of the transformer, by the names of the files."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


def _layers(config: Json, causal: bool = False) -> Transformer:
    quick = config["hidden_act"] == "quick_gelu"
    shape = config["num_hidden_layers"], config["hidden_size"], config["num_attention_heads"]
    return Transformer(*shape, config["layer_norm_eps"], causal, quick)
