"""A subject and a style from a few pictures: what prior preservation keeps, and what it costs. Writes subjects.json.

    python scripts/subjects.py [--seeds 3] [--folder runs/subjects] [--table subjects.json]

A text-to-image model learns captioned digits (recipe captioned_digits, with one more word, "sks", that no caption has).
The subject is one person's seven with a dot in the corner: three pictures of it, plain, in the three turns, all under
"a sks seven". The style is white paper: twenty pictures of zero to four with black and white exchanged, all under
"a sks digit". Each is learned on these pictures alone; beside a prior of pictures that the model itself made of the
caption without the word, "a seven" (DreamBooth, Ruiz et al. 2022, arXiv 2208.12242); beside a prior of captions of all
kinds, of which that one is half; and beside that one, under captions of the pictures' own, "a plain sks seven, upright"
and the like. The subject also by all weights in place of adapters.

Then four things are counted in samples: the dot or the white paper under the caption that was trained on (`learned`),
and under captions with the word that were not, the subject thin or bold and turned, the style on five to nine
(`elsewhere`); how many of these have the rest of what they say, too (`as asked`); how many captions without the word
have the dot or the paper nevertheless (`leaked`), and show what they say (`others as asked`). A judge decides what a
picture shows, who learned the real ones.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import gen
from gen.config.images import to_pil, to_uint8
from gen.config.reading import read_json
from gen.config.spec import Json, override
from gen.config.writing import write_text
from gen.data.captioned_digits import PHRASES, CaptionedDigits, caption, caption_words
from gen.data.captions import Captions
from gen.text.tokenizers.sentences import Sentences
from gen.training.recipes.captioned_digits import captioned_digits
from gen.training.run import Run
from scripts.captions import Judge, trained_judge

WORD = "sks"
DOT = (..., slice(13, 16), slice(13, 16))  # of a picture, where no digit has ink
SEVEN, PLAIN = 7, 1
STYLED = 5  # digits from 0 on that are shown on white paper
EACH = 10  # samples of a combination
PRIOR = 200  # pictures that the model makes
PRIORS = ("none", "class", "all", "all, own captions")
WAYS: dict[str, Json] = {
    "adapters": {"lora": {"rank": 8}, "optim.lr": 2e-3},
    "all weights": {"optim.lr": 5e-4},
}
QUIET: Json = {"sample_every": 0, "validate_every": 0, "save_every": 0}

Combination = tuple[int, int, int]  # digit, weight and turn


@dataclass(frozen=True)
class Learned:
    """What a few pictures teach.

    Attributes:
        name: "subject" or "style".
        caption: of the pictures.
        asked: combinations that are asked for with the word.
        ways: of WAYS.
        steps: of the training.
    """

    name: Literal["subject", "style"]
    caption: str
    asked: tuple[Combination, ...]
    ways: tuple[str, ...] = ("adapters",)
    steps: int = 200

    def pictures(self) -> tuple[Tensor, list[Combination]]:
        """Return the few pictures, [N, 1, 16, 16] in [-1, 1], and what they show."""
        data = CaptionedDigits().open("test")
        digit, weight, turn = data.attributes.T
        if self.name == "style":
            found = [torch.nonzero((digit == i) & (weight == PLAIN) & (turn == 1))[:4, 0] for i in range(STYLED)]
        else:
            found = [torch.nonzero((digit == SEVEN) & (weight == PLAIN) & (turn == i))[:1, 0] for i in range(3)]
        rows = torch.cat(found)
        x = data[rows]["x"].clone()
        if self.name == "style":
            x = -x
        else:
            x[DOT] = 1.0
        return x, [(d, w, t) for d, w, t in data.attributes[rows].tolist()]

    def words(self, digit: int, weight: int, turn: int, phrase: int) -> str:
        """Return a caption with the word."""
        plain = caption(digit, weight, turn, phrase)
        name = caption(digit, weight, turn, 3).split()[1]  # "a seven that is ..."
        return plain.replace(name, f"{WORD} {name}")

    def found(self, x: Tensor) -> Tensor:
        """Return which pictures have the dot or the white paper, bool [N]."""
        if self.name == "subject":
            return x[DOT].mean((1, 2, 3)) > 0
        border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], -1)
        return border.mean((1, 2)) > 0

    def without(self, x: Tensor) -> Tensor:
        """Return pictures as the judge knows them: without the dot, or on black paper."""
        if self.name == "style":
            return torch.where(self.found(x)[:, None, None, None], -x, x)
        x = x.clone()
        x[DOT] = -1.0
        return x


def every(digits: Sequence[int]) -> tuple[Combination, ...]:
    """Return the combinations of some digits that training has shown."""
    unseen = CaptionedDigits().held_out_combinations
    found = ((d, w, t) for d in digits for w in range(3) for t in range(3))
    return tuple(one for one in found if one not in unseen)


LEARNED = (
    Learned("subject", f"a {WORD} seven", tuple(one for one in every([SEVEN]) if one[1] != PLAIN), tuple(WAYS)),
    Learned("style", f"a {WORD} digit", every(range(STYLED, 10))),
)


class Study:
    """All trainings, in one folder.

    Args:
        folder: where everything is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.judge = folder, trained_judge(0)
        self.text = Sentences((*caption_words(), WORD))
        changes = {"data": Captions(CaptionedDigits(), self.text, length=12), **QUIET}
        self.teacher = gen.train(override(captioned_digits(), changes), folder / "teacher", quiet=True).folder

    def training(self, learned: Learned, way: str, prior: str, seed: int) -> Run:
        """Return the training on the pictures, which are written first."""
        pictures = self.folder / learned.name
        if not (pictures / "metadata.jsonl").exists():
            x, shown = learned.pictures()
            write_pictures(pictures, to_uint8(x), [learned.words(*one, i % 5) for i, one in enumerate(shown)])
        data: Json = {"name": "subject", "caption": None if "own" in prior else learned.caption}
        data["data"] = {"name": "table", "path": str(pictures / "metadata.jsonl"), "holdout": 0}
        if prior != "none":
            data["prior"] = {"name": "table", "path": str(self.prior(learned, prior.partition(",")[0])), "holdout": 0}
        changes = {"data": {"name": "captions", "data": data, "text": self.text, "length": 12}, **QUIET, **WAYS[way]}
        changes |= {"init": str(self.teacher), "steps": learned.steps, "batch_size": 32, "ema": []}
        changes |= {"schedule": {"name": "constant", "warmup": 20}, "seed": seed}
        return override(captioned_digits(), changes)

    def prior(self, learned: Learned, kind: str) -> Path:
        """Make pictures of captions without the word, once; return their table."""
        folder = self.folder / f"{learned.name} prior {kind}"
        if not (folder / "metadata.jsonl").exists():
            prompts = [learned.caption.replace(f"{WORD} ", "")] * PRIOR
            if kind == "all":
                shown = every(range(10))
                prompts[::2] = [caption(*shown[i % len(shown)], i % len(PHRASES)) for i in range(PRIOR // 2)]
            write_pictures(folder, gen.load(self.teacher).sample(cond=prompts, seed=5).uint8(), prompts)
        return folder / "metadata.jsonl"

    def measured(self, learned: Learned, folder: Path) -> dict[str, float]:
        """Return what samples of a model show."""
        pipeline = gen.load(folder)
        asked = [(one, i % len(PHRASES)) for one in learned.asked for i in range(EACH)]
        others = [(one, i) for one in every(range(10)) for i in range(len(PHRASES))]
        own = self.sampled(pipeline, [learned.caption] * 10 * EACH)
        words = self.sampled(pipeline, [learned.words(*one, phrase) for one, phrase in asked])
        same = self.sampled(pipeline, [caption(*one, phrase) for one, phrase in asked])
        plain = self.sampled(pipeline, [caption(*one, phrase) for one, phrase in others])
        there = learned.found(words)
        found = {
            "learned": learned.found(own),
            "elsewhere": there,
            "as asked": there & right_of(self.judge, learned.without(words), [one for one, _ in asked]),
            "leaked": learned.found(same),
            "others as asked": right_of(self.judge, plain, [one for one, _ in others]),
        }
        return {name: float(those.double().mean()) for name, those in found.items()}

    @staticmethod
    def sampled(pipeline: Any, prompts: list[str]) -> Tensor:
        """Return pictures of prompts, [N, 1, 16, 16]."""
        x: Tensor = pipeline.sample(cond=prompts, seed=1, batch_size=500).x
        return x.clamp(-1, 1)

    def row(self, learned: Learned, way: str, prior: str, seed: int) -> dict[str, float]:
        """Return the numbers of one training, which are computed once."""
        folder = self.folder / f"{learned.name}, {way}, prior {prior}, {seed}"
        if not (file := folder / "measured.json").exists():
            run = self.training(learned, way, prior, seed)
            write_text(file, json.dumps(self.measured(learned, gen.train(run, folder, quiet=True).folder)))
        found: dict[str, float] = read_json(file)
        return found


def write_pictures(folder: Path, pictures: Tensor, captions: list[str]) -> None:
    """Write pictures and their captions, as `gen sample` does.

    Args:
        folder: made if it is not there.
        pictures: uint8 [N, C, H, W].
        captions: of each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:03}.png" for i in range(len(captions))]
    for name, picture in zip(names, pictures, strict=True):
        to_pil(picture).save(folder / name)
    lines = [json.dumps({"file_name": name, "caption": one}) for name, one in zip(names, captions, strict=True)]
    write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")


def right_of(judge: Judge, x: Tensor, combinations: list[Combination]) -> Tensor:
    """Return which pictures have the digit, weight and turn of their combinations, bool [N]."""
    return judge.accuracy(x, torch.tensor(combinations)).all(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/subjects"))
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    study, rows = Study(args.folder), list[Json]()
    for learned in LEARNED:
        before = {key: [value] for key, value in study.measured(learned, study.teacher).items()}
        rows.append({"what": learned.name, "way": "before", "prior": "none", **before})
        for way in learned.ways:
            for prior in PRIORS:
                found = [study.row(learned, way, prior, seed) for seed in range(args.seeds)]
                numbers = {key: [one[key] for one in found] for key in found[0]}
                rows.append({"what": learned.name, "way": way, "prior": prior, **numbers})
                print(json.dumps(rows[-1]), flush=True)
    if args.table is not None:
        about = {"date": str(datetime.date.today()), "torch": torch.__version__, "cpu": platform.machine()}
        write_text(args.table, json.dumps({**about, "seeds": args.seeds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
