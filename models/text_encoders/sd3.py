"""Stable Diffusion 3's text encoder: two CLIPs and a T5, joined (Esser et al. 2024, arXiv 2403.03206, appendix)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.reading import read_json
from gen.config.spec import Json
from gen.models.encoders.lib.vit import pretrained
from gen.models.text_encoders.pretrained import folder_hashes, read_tokenizer

__all__ = ["SD3Text", "JoinedEmbedder"]  # noqa: RUF022 - the plug-in comes first

FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
CLIP_WIDTHS = {"clip_l": 768, "clip_g": 1280}  # where a folder does not say
CLIP_LENGTH, WIDTH = 77, 4096  # likewise

Part = Literal["clip_l", "clip_g", "t5"]


@dataclass(frozen=True)
class SD3Text:
    """The three encoders of a Stable Diffusion 3 of diffusers: its prompt embeddings and its pooled ones.

    The last but one hidden states of both CLIPs stand side by side, padded with zeros to T5's width, and T5's follow
    along the sequence; "pooled" joins the CLIPs' projected texts. Every token is attended to, padding included, as
    published. An encoder that is left out gives zeros.

    Attributes:
        path: folder of the pipeline, with text_encoder, text_encoder_2, text_encoder_3 and their tokenizers.
        length: tokens that T5 reads; 256 by the pipeline's default. The CLIPs read their own, 77.
        leave_out: "clip_l", "clip_g", "t5": encoders that are not loaded; T5 is the large one.
        dtype: of the computation.
    """

    path: str
    length: int = 256
    leave_out: tuple[Part, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        check_fields(self, length="[2, 100000]")

    def identity(self) -> Json:
        """Return the sha256 of the weights and of the tokenizers, and the options."""
        hashes = {part: folder_hashes(*self._folders(part)) for part in FOLDERS if part not in self.leave_out}
        return {"class": "SD3", "length": self.length, "dtype": self.dtype, **hashes}

    def load(self, device: torch.device | str = "cpu") -> JoinedEmbedder:
        """Return the frozen encoders.

        Args:
            device: to load them on.

        Raises:
            UserError: for a folder of something else.
            MissingDependency: without the package transformers.
        """
        loaded = {part: self._load(part) for part in FOLDERS if part not in self.leave_out}
        clips = [self._config(part) for part in CLIP_WIDTHS]
        widths, pooled = (
            [int(config.get(key, usual)) for config, usual in zip(clips, CLIP_WIDTHS.values(), strict=True)]
            for key in ("hidden_size", "projection_dim")
        )
        transformer = Path(self.path) / "transformer" / "config.json"
        known = read_json(transformer, constants=True) if transformer.is_file() else {}
        width = int(self._config("t5").get("d_model") or known.get("joint_attention_dim", WIDTH))
        if sum(widths) > width:
            raise UserError(f"{self.path}: the CLIPs have {sum(widths)} channels together, T5 {width}; at most as many")
        short = int(clips[0].get("max_position_embeddings", CLIP_LENGTH))
        return JoinedEmbedder(loaded, (short, self.length), widths, pooled, width).to(device)

    def _folders(self, part: str) -> tuple[Path, Path]:
        """Return the folders of a model and of its tokenizer; UserError where they are not there."""
        folder, name = Path(self.path), FOLDERS[part]
        pair = folder / name, folder / name.replace("text_encoder", "tokenizer")
        if missing := next((one for one in pair if not one.is_dir()), None):
            raise UserError(
                f"{missing} is no folder: give that of a Stable Diffusion 3 pipeline, or leave_out {part!r}, whose "
                "embeddings are zeros then"
            )
        return pair

    def _load(self, part: str) -> tuple[Any, Any]:
        """Return the model and the tokenizer of an encoder."""
        folder, tokenizer = self._folders(part)
        owner = "T5EncoderModel" if part == "t5" else "CLIPTextModelWithProjection"
        return pretrained(str(folder), owner, dtype=getattr(torch, self.dtype)), read_tokenizer(tokenizer)

    def _config(self, part: str) -> Json:
        """Return an encoder's config.json; {} where there is none."""
        file = Path(self.path) / FOLDERS[part] / "config.json"
        found = read_json(file, constants=True) if file.is_file() else {}
        return found if isinstance(found, dict) else {}


class JoinedEmbedder(nn.Module):
    """Captions to "text" [B, T, D], "text_mask" [B, T] and "pooled" [B, P]; see gen.models.text_encoders.

    Args:
        loaded: model and tokenizer by the part's name; without those that are left out.
        lengths: tokens that the CLIPs read, and T5.
        widths, pooled: channels of the CLIPs' hidden states, and of their projections.
        width: of T5's.

    Attributes:
        truncated: how many captions so far were longer than the longest of the encoders takes.
    """

    marker: Tensor

    def __init__(
        self,
        loaded: dict[str, tuple[Any, Any]],
        lengths: tuple[int, int],
        widths: Sequence[int],
        pooled: Sequence[int],
        width: int,
    ):
        super().__init__()
        self.models = nn.ModuleDict({part: model for part, (model, _) in loaded.items()})
        self.tokenizers = {part: tokenizer for part, (_, tokenizer) in loaded.items()}
        self.lengths, self.widths, self.pooled, self.width = lengths, widths, pooled, width
        self.truncated = 0
        self.register_buffer("marker", torch.zeros(()), persistent=False)  # knows the device
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> dict[str, Tensor]:
        texts = list(captions)
        self._count(texts)
        hidden, pooled = zip(*(self._clip(part, texts, i) for i, part in enumerate(CLIP_WIDTHS)), strict=True)
        clips = torch.cat(hidden, -1)  # [B, short, both]
        clips = pad(clips, (0, self.width - clips.shape[-1]))
        t5 = self._zeros(len(texts), self.lengths[1], self.width)
        if "t5" in self.models:  # which sees padding, as published
            t5 = self.models["t5"](input_ids=self._ids("t5", texts, self.lengths[1]))[0].float()
        text = torch.cat([clips, t5], 1)
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        return {"text": text, "text_mask": mask, "pooled": torch.cat(pooled, -1)}

    def _clip(self, part: str, texts: list[str], i: int) -> tuple[Tensor, Tensor]:
        """Return the last but one hidden state of a CLIP, and its projected text."""
        if part not in self.models:
            return self._zeros(len(texts), self.lengths[0], self.widths[i]), self._zeros(len(texts), self.pooled[i])
        out = self.models[part](input_ids=self._ids(part, texts, self.lengths[0]), output_hidden_states=True)
        return out.hidden_states[-2].float(), out.text_embeds.float()

    def _ids(self, part: str, texts: list[str], length: int) -> Tensor:
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        ids: Tensor = self.tokenizers[part](texts, **options)["input_ids"]
        return ids.to(self.marker.device)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.marker.device)

    def _count(self, texts: list[str]) -> None:
        """Count the captions that are cut by every encoder."""
        part = "t5" if "t5" in self.tokenizers else next(iter(self.tokenizers), None)
        if part is not None:
            most = self.lengths[part == "t5"]
            self.truncated += sum(len(ids) > most for ids in self.tokenizers[part](texts, verbose=False)["input_ids"])
