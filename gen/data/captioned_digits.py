"""Captioned digits: 16 x 16 pictures of scikit-learn's digits, bold or thin, turned or upright, with sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate, max_pool2d, pad

from gen.config.fields import check_fields
from gen.data.digits import Digits
from gen.data.lib.tensors import check_split, content_hash
from gen.diffusion.noise import derive

__all__ = ["CaptionedDigits", "Captioned", "caption", "caption_words"]  # noqa: RUF022 - the plug-in comes first

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WEIGHTS = ("thin", "plain", "bold")
TURNS = ("turned left", "upright", "turned right")
ANGLE = 40.0  # degrees of a turn
ATTRIBUTES = {"digit": DIGITS, "weight": WEIGHTS, "turn": TURNS}
PHRASES = (
    "a {weight} {digit}, {turn}",
    "the digit {digit}, {weight} and {turn}",
    "{turn}: {a} {digit}, {weight}",
    "{a} {digit} that is {weight} and {turn}",
    "{weight} {digit} {turn}",
)
SIDE, FINE, DRAWN = 16, 2, 22  # pixels of a picture, points of the drawing for each, and points of the digit


@dataclass(frozen=True)
class CaptionedDigits:
    """Every digit of gen.data.digits in three weights and three turns, with a caption such as "a bold seven, upright".

    All is computed from the 8 x 8 digits by a fixed rule: drawn twice as fine than the 16 x 16 pixels, thinned or
    thickened there, rotated by 40 degrees and averaged. The label is the digit. A caption has one of five phrasings, by
    the item's hash. "test" are the digits that gen.data.digits holds out, in all combinations; "train" lacks the held-
    out combinations of digit, weight and turn, so that a model must put together what it never saw together.

    Attributes:
        held_out: number of combinations, of 90, that "train" lacks; they are always the first of one list.
        shuffled: each picture has the caption of another one, a control: nothing can be learned of captions.
    """

    held_out: int = 12
    shuffled: bool = False

    def __post_init__(self) -> None:
        check_fields(self, held_out="[0, 45]")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, SIDE, SIDE)

    @property
    def classes(self) -> int:
        return len(DIGITS)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The digits as words."""
        return DIGITS

    @property
    def held_out_combinations(self) -> list[tuple[int, int, int]]:
        """Indices of digit, weight and turn that "train" has no picture of; all weights and turns alike."""
        every = [(k % 10, (k + k // 30) % 3, (k // 3 + k // 90) % 3) for k in range(90)]
        return list(dict.fromkeys(every))[: self.held_out]

    def open(self, split: str) -> Captioned:
        """Open "train" or "test"."""
        check_split(split)
        digits = Digits().open(split)
        assert digits.y is not None  # it has labels
        fine = _drawings(digits.x.float() / 16)
        pictures, attributes = [], []
        for weight, drawn in enumerate((-max_pool2d(-fine, 3, 1, 1), fine, max_pool2d(fine, 3, 1, 1))):
            for turn in range(len(TURNS)):
                pictures.append(_turned(drawn, turn))
                rows = digits.y.new_tensor([weight, turn]).expand(len(digits.y), 2)
                attributes.append(torch.cat([digits.y[:, None], rows], 1))
        x, labels = torch.cat(pictures), torch.cat(attributes)
        if split == "train" and self.held_out:
            codes = torch.tensor([_code(*one) for one in self.held_out_combinations])
            kept = ~torch.isin(_code(*labels.T), codes)
            x, labels = x[kept], labels[kept]
        n = len(labels)
        owner = sorted(range(n), key=lambda i: derive("shuffled", i)) if self.shuffled else range(n)
        return Captioned(x, labels, torch.tensor([*owner]))


def caption_words() -> tuple[str, ...]:
    """Return all words of all captions, and their punctuation, in order of the alphabet."""
    texts = [caption(digit, 0, 0, phrase) for digit in range(len(DIGITS)) for phrase in range(len(PHRASES))]
    spaced = " ".join([*texts, *WEIGHTS, *TURNS]).replace(",", " , ").replace(":", " : ")
    return tuple(sorted({*spaced.split()}))


@dataclass(frozen=True, eq=False)
class Captioned:
    """Items {"x": float32 [1, 16, 16] in [-1, 1], "y": the digit}, with captions.

    Attributes:
        x: uint8 [N, 1, 16, 16].
        attributes: int64 [N, 3]: indices of digit, weight and turn.
        owner: the item whose caption item i has, int64 [N]: itself, unless captions are shuffled.
    """

    x: Tensor
    attributes: Tensor
    owner: Tensor

    @cached_property
    def fingerprint(self) -> str:
        """A hash of pictures, attributes and captions."""
        return content_hash("captioned_digits", *PHRASES, self.x, self.attributes, self.owner)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int | Tensor) -> dict[str, Tensor]:
        return {"x": self.x[i].float() / 127.5 - 1, "y": self.attributes[i, ..., 0]}

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the items of some rows, stacked."""
        return self[torch.tensor(rows)]

    def caption(self, i: int) -> str:
        """Return the caption of item i."""
        of = int(self.owner[i])
        digit, weight, turn = self.attributes[of].tolist()
        return caption(digit, weight, turn, derive("phrase", of) % len(PHRASES))


def caption(digit: int, weight: int, turn: int, phrase: int = 0) -> str:
    """Return the sentence of indices into DIGITS, WEIGHTS and TURNS.

    Args:
        digit, weight, turn: the attributes.
        phrase: of PHRASES.
    """
    chosen = zip(ATTRIBUTES.items(), (digit, weight, turn), strict=True)
    article = "an" if DIGITS[digit] == "eight" else "a"
    return PHRASES[phrase].format(a=article, **{name: words[index] for (name, words), index in chosen})


def _code(digit: int | Tensor, weight: int | Tensor, turn: int | Tensor) -> int | Tensor:
    return (digit * len(WEIGHTS) + weight) * len(TURNS) + turn


def _drawings(x: Tensor) -> Tensor:
    """Return digits [N, 1, 8, 8] in [0, 1], as drawings of 22 x 22 points in the middle of 32 x 32."""
    inner = interpolate(x, (DRAWN, DRAWN), mode="bicubic", align_corners=False).clamp(0, 1)
    return pad(inner, [(SIDE * FINE - DRAWN) // 2] * 4)


def _turned(fine: Tensor, turn: int) -> Tensor:
    """Return drawings [N, 1, 32, 32], rotated and averaged, uint8 [N, 1, 16, 16]."""
    angle = math.radians(ANGLE * (turn - 1))
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[[cos, sin, 0.0], [-sin, cos, 0.0]]])
    points = affine_grid(matrix, [1, *fine.shape[1:]], align_corners=False).expand(len(fine), -1, -1, -1)
    turned = grid_sample(fine, points, align_corners=False)
    return (avg_pool2d(turned, FINE) * 255).round().clamp(0, 255).to(torch.uint8)
