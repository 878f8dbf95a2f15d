"""Text models of the package transformers, read from a folder on this machine: CLIP's, T5's and Qwen's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.reading import file_sha256, read_json
from gen.config.spec import Json, digest
from gen.models.encoders.lib.vit import pretrained

__all__ = ["PretrainedText", "TextEmbedder", "folder_hashes", "read_tokenizer"]

OWNERS = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model",
}
LENGTH = 120  # PixArt-alpha's; T5 encoders have no longest text, and Qwen's is far too long for captions


@dataclass(frozen=True)
class PretrainedText:
    """The last hidden states of a text model, as Stable Diffusion (CLIP) and PixArt-alpha (T5) are conditioned on.

    Texts are padded at the end and cut to one length. CLIP's tokens see those before them, padding included, as
    published; T5's see all tokens but padding, Qwen's the tokens before them.

    Attributes:
        path: a folder with a model and its tokenizer, or with the folders text_encoder and tokenizer of a pipeline of
            diffusers.
        length: tokens of a text; None for the model's own, as CLIPs have, mostly 77, and 120 for T5.
        layer: whose output is taken: -1 the last one, after the last norm; -2 the one before it, without that norm, as
            in SDXL.
        dtype: of the computation.
    """

    path: str
    length: int | None = None
    layer: int = -1
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_fields(self, length="[2, 100000]", layer="[-1000, -1]")

    def identity(self) -> Json:
        """Return the kind of model, the sha256 of its weights and of its tokenizer, and the options."""
        folder, tokenizer = self._folders
        options = {"length": self.length, "layer": self.layer, "dtype": self.dtype}
        return {"class": self._owner, **options, **folder_hashes(folder, tokenizer)}

    def load(self, device: torch.device | str = "cpu") -> TextEmbedder:
        """Return the frozen model.

        Args:
            device: to load it on.

        Raises:
            UserError: for a folder of something else.
            MissingDependency: without the package transformers.
        """
        folder, tokenizer = self._folders
        model = pretrained(str(folder), self._owner, dtype=getattr(torch, self.dtype))
        words = read_tokenizer(tokenizer)
        longest = getattr(model.config, "max_position_embeddings", None)
        clip = "clip" in model.config.model_type
        length = self.length or (longest if clip and longest else LENGTH)
        if longest is not None and length > longest:
            raise UserError(f"{self.path}: length = {length}; the model takes at most {longest} tokens")
        if not 0.9 * model.config.vocab_size <= len(words) <= model.config.vocab_size:  # T5's has rows to spare
            raise UserError(
                f"{tokenizer} has {len(words)} tokens and {folder} {model.config.vocab_size}: they are of two models"
            )
        return TextEmbedder(model.to(device), words, length, self.layer)

    @property
    def _folders(self) -> tuple[Path, Path]:
        """The folders of the model and of the tokenizer."""
        folder = Path(self.path)
        whole = (folder / "text_encoder").is_dir() and (folder / "tokenizer").is_dir()
        return (folder / "text_encoder", folder / "tokenizer") if whole else (folder, folder)

    @property
    def _owner(self) -> str:
        file = self._folders[0] / "config.json"
        if not file.is_file():
            raise UserError(
                f"{self.path!r} holds no config.json; give the folder of a CLIP, T5 or Qwen by save_pretrained"
            )
        config = read_json(file, constants=True)
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind not in OWNERS:
            raise UserError(f"{file} is of type {kind!r}; allowed here: {', '.join(OWNERS)}")
        return OWNERS[str(kind)]


def read_tokenizer(folder: Path) -> Any:
    """Read a tokenizer of transformers.

    Args:
        folder: as save_pretrained writes it.

    Raises:
        UserError: for a folder of something else, and for one that cannot pad.
    """
    try:
        from transformers import AutoTokenizer

        words = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # of any kind: it depends on which part of the folder is wrong
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} cannot be read as a tokenizer: {why}") from error
    if words.pad_token_id is None:
        raise UserError(f"{folder} has no padding token")
    return words


def folder_hashes(folder: Path, tokenizer: Path) -> Json:
    """Return the sha256 of a model's weights and of its tokenizer.

    Args:
        folder: of the model.
        tokenizer: folder of its tokenizer.

    Raises:
        UserError: for a folder without safetensors.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder} holds no .safetensors file: save the model there with save_pretrained")
    words = [*tokenizer.glob("*.json"), *tokenizer.glob("*.txt"), *tokenizer.glob("*.model")]
    files = {"weights": weights, "tokenizer": sorted(words)}
    return {name: digest(list(map(file_sha256, paths))) for name, paths in files.items()}


class TextEmbedder(nn.Module):
    """Captions to "text" [B, T, D] and "text_mask" [B, T]; see gen.models.text_encoders.

    Attributes:
        truncated: how many captions so far were longer than T tokens, and cut.
    """

    def __init__(self, model: Any, tokenizer: Any, length: int, layer: int):
        super().__init__()
        self.model, self.tokenizer, self.length, self.layer, self.truncated = model, tokenizer, length, layer, 0
        self.sees_padding, tokenizer.padding_side = "clip" in model.config.model_type, "right"
        layers = model.config.num_hidden_layers
        if not -layers <= layer:
            raise UserError(f"layer = {layer}; the model has {layers}")
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> dict[str, Tensor]:
        texts = list(captions)
        self.truncated += sum(len(ids) > self.length for ids in self.tokenizer(texts, verbose=False)["input_ids"])
        options = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
        tokens = self.tokenizer(texts, **options)
        ids, mask = (tokens[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        seen = None if self.sees_padding else mask
        out = self.model(input_ids=ids, attention_mask=seen, output_hidden_states=self.layer != -1)
        hidden: Tensor = out.last_hidden_state if self.layer == -1 else out.hidden_states[self.layer]
        return {"text": hidden.float(), "text_mask": mask.bool()}
