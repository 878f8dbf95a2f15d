"""Text to image on captioned digits: does a model do what its prompt says? Writes the table of docs/text-to-image.md.

Two models train by the recipe captioned_digits: one as it is, and a control with shuffled captions. A judge, a small
convolutional network with one output for each attribute, learns digit, weight and turn from the real pictures, all 90
combinations, and its own accuracy on held-out real pictures is the ceiling. Then every combination is asked for, and
the share of samples whose digit, weight and turn are as asked is counted, at several scales of guidance, also on the
combinations alone that training never showed.

    python scripts/captions.py [--out runs/captions] [--only table]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import gen
from gen.config.images import contact_sheet
from gen.config.spec import override
from gen.data.captioned_digits import ATTRIBUTES, PHRASES, CaptionedDigits, caption
from gen.training.recipes.captioned_digits import captioned_digits
from gen.training.trainer import train

SCALES = (1.0, 2.0, 3.0, 5.0)
EACH = 25  # samples of a combination, five of each phrasing
JUDGE_STEPS, JUDGE_BATCH = 3000, 64


class Judge(nn.Module):
    """Pictures [N, 1, 16, 16] to the logits of every attribute, [N, 10 + 3 + 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, 96), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.ModuleList(nn.Linear(96, len(words)) for words in ATTRIBUTES.values())

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.features(x)
        return [head(h) for head in self.heads]

    @torch.no_grad()
    def accuracy(self, x: Tensor, attributes: Tensor) -> Tensor:
        """Return for each sample and attribute whether it is as asked, bool [N, 3].

        Args:
            x: pictures [N, 1, 16, 16] in [-1, 1].
            attributes: int64 [N, 3].
        """
        return torch.stack([logits.argmax(1) for logits in self(x)], 1) == attributes


def trained_judge(seed: int) -> Judge:
    """Train a judge on the real pictures of all combinations.

    Args:
        seed: of its weights and its order.
    """
    torch.manual_seed(seed)
    data, judge = CaptionedDigits(held_out=0).open("train"), Judge()
    optim = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, 2e-3, JUDGE_STEPS)
    for _ in range(JUDGE_STEPS):
        rows = torch.randint(len(data), (JUDGE_BATCH,))
        truth = data.attributes[rows]
        x = data[rows]["x"]
        x = x.roll((int(torch.randint(-1, 2, ())), int(torch.randint(-1, 2, ()))), (2, 3))
        loss = sum(cross_entropy(out, truth[:, i]) for i, out in enumerate(judge(x)))
        assert isinstance(loss, Tensor)
        optim.zero_grad()
        loss.backward()
        optim.step()
        schedule.step()
    return judge.eval()


def asked(combinations: list[tuple[int, int, int]]) -> tuple[list[str], Tensor]:
    """Return prompts, EACH of every combination, in all phrasings, and their attributes [N, 3].

    Args:
        combinations: indices of digit, weight and turn.
    """
    prompts = [caption(*one, i % len(PHRASES)) for one in combinations for i in range(EACH)]
    return prompts, torch.tensor(combinations).repeat_interleave(EACH, 0)


def shares(right: Tensor) -> list[float]:
    """Return the accuracy of each attribute, and that of all at once.

    Args:
        right: bool [N, 3].
    """
    return [*right.double().mean(0).tolist(), right.all(1).double().mean().item()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/captions"))
    parser.add_argument("--set", action="append", default=[], help="a change of the recipe, such as steps=100")
    args = parser.parse_args()
    changes = {key: json.loads(value) for key, _, value in (one.partition("=") for one in args.set)}
    source = CaptionedDigits()
    unseen = source.held_out_combinations
    every = [(d, w, t) for d in range(10) for w in range(3) for t in range(3)]
    seen = [one for one in every if one not in unseen]
    judge, test = trained_judge(0), source.open("test")
    real = judge.accuracy(test[torch.arange(len(test))]["x"], test.attributes)
    rows = [{"model": "real held-out pictures", "scale": None, "what": "all", "shares": shares(real)}]
    for name, more in {"recipe": {}, "control": {"data.data.shuffled": True}}.items():
        began = time.process_time()
        train(override(captioned_digits(), {**changes, **more}), args.out / name, quiet=True)
        print(f"{name}: trained in {time.process_time() - began:.0f} CPU seconds", flush=True)
        pipeline = gen.load(args.out / name)
        for scale in SCALES:
            for what, some in {"seen": seen, "held out": unseen}.items():
                prompts, attributes = asked(some)
                samples = pipeline.sample(cond=prompts, guide={"name": "cfg", "scale": scale}, seed=1)
                right = judge.accuracy(samples.x.clamp(-1, 1), attributes)
                rows.append({"model": name, "scale": scale, "what": what, "shares": shares(right)})
    write(rows, args.out)
    draw(gen.load(args.out / "recipe"), unseen, args.out)


def write(rows: list[dict], out: Path) -> None:  # type: ignore[type-arg]
    """Write the measurements as JSON, and print them as a table.

    Args:
        rows: one for each model, scale and set of combinations.
        out: folder.
    """
    (out / "table.json").write_text(json.dumps(rows, indent=1))
    print("| model | guidance | combinations | digit | weight | turn | all three |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        numbers = " | ".join(f"{value:.3f}" for value in row["shares"])
        print(f"| {row['model']} | {row['scale'] or ''} | {row['what']} | {numbers} |")


def draw(pipeline: gen.pipeline.Pipeline, unseen: list[tuple[int, int, int]], out: Path) -> None:
    """Draw ten samples of each held-out combination, a row each.

    Args:
        pipeline: the trained model.
        unseen: the combinations.
        out: folder.
    """
    prompts = [caption(*one) for one in unseen for _ in range(10)]
    sheet = pipeline.sample(cond=prompts, seed=2).uint8()
    contact_sheet(sheet, 10, 2).save(out / "held-out.png")


if __name__ == "__main__":
    main()
