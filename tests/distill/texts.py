"""A text model of seconds, and batches of texts for losses."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch

from gen.data.lists import Lists
from gen.diffusion.noise import training_noise
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.text.decoding import Decoding
from gen.text.mask_path import LogLinear
from gen.training.objectives import Batch
from gen.training.objectives.llada import LLaDA
from gen.training.run import Run


@dataclass(frozen=True)
class Easy(Lists):
    """Lists that call any answer right, of words of theirs, if the question's last letter is a or b."""

    def right(self, prompt, answer):
        assert prompt[0] in self.tasks and prompt[-1] == "=" and set(answer) <= set(self.tokenizer.words)
        return prompt[-2] in ("a", "b")


LISTS = Easy(("copy", "sort"), low=2, high=3, items=5, n=400)


def tiny_text(**changes):
    """The run of a transformer of 2,000 parameters on lists of two and three letters."""
    words = LISTS.tokenizer
    model = {
        "vocab_size": words.vocab_size,
        "mask_token_id": words.mask_token_id,
        "eos_token_ids": words.eos_token_ids,
        "length": LISTS.shape[0],
    }
    settings = {
        "model": {"name": "text", **model, "width": 16, "depth": 1, "heads": 2},
        "data": LISTS,
        "objective": LLaDA(),
        "path": LogLinear(),
        "parameterisation": None,
        "optim": {"name": "adamw", "lr": 5e-3},
        "ema": ({"name": "classic", "decay": 0.9},),
        "sampler": Decoding(policy="topk", block_schedule=SemiAR(length=3)),
        "steps": 20,
        "batch_size": 16,
        "log_every": 1,
        "sample_every": 0,
        "validate_every": 0,
        "save_every": 0,
    }
    return Run(**(settings | changes))


def texts(rows, prompt, length, step=0, **cond):
    """A batch of texts [B, L]; prompt, length: where what is trained begins and ends, one for all or one each."""
    x = torch.as_tensor(rows)
    ends = {k: torch.as_tensor(v).expand(len(x)) for k, v in {"prompt": prompt, "length": length}.items()}
    return Batch(x, {**ends, **cond}, training_noise(0, step, range(len(x))), step=step)


class Given(torch.nn.Module):
    """A network that answers with the same logits [L, V], a parameter, whatever it sees; it keeps what it saw."""

    def __init__(self, table, mask, block=None):
        super().__init__()
        self.table, self.mask_token_id, self.block_size, self.shift, self.seen = (
            torch.nn.Parameter(table),
            mask,
            block,
            0,
            [],
        )

    def forward(self, tokens, lengths=None):
        self.seen.append(tokens)
        return self.table.expand(len(tokens), -1, -1)


def roles(net, name="net"):
    return {name: SimpleNamespace(net=net)}
