"""Every optimiser that a run accepts resumes to the bit; one that cannot is refused before any work."""

from dataclasses import dataclass

import pytest
import torch

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import names
from gen.training.optim import build_optimisers
from gen.training.optim.adamw import AdamW
from gen.training.trainer import train
from tests.gen.tiny import tiny
from tests.gen.training.test_trainer import same, weights


class Toy(torch.optim.Optimizer):
    """Gradient descent along `update(group, p, i)`, p being the i-th parameter of its group."""

    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr})
        self.memory = {}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                p.add_(self.update(group, p, i), alpha=-group["lr"])


class StepInGroup(Toy):
    """Counts its steps in the group, as Prodigy, Adan and LAMB do, and corrects a bias by the count."""

    def update(self, group, p, i):
        if i == 0:
            group["k"] = group.get("k", 0) + 1
        momentum = self.state[p].setdefault("m", torch.zeros_like(p))
        momentum.lerp_(p.grad, 0.1)
        return momentum / (1 - 0.9 ** group["k"])


class AverageInGroup(Toy):
    """Keeps tensors, tuples and numbers in the group, and a double and a number in the state."""

    def update(self, group, p, i):
        averages = group.setdefault("averages", [torch.zeros_like(q, dtype=torch.float64) for q in group["params"]])
        averages[i].lerp_(p.grad.double(), 0.1)
        count, best = group.get("about", (0, float("inf")))
        group["about"] = (count + 1, min(best, float(p.grad.norm())))
        self.state[p]["norm"] = self.state[p].get("norm", 0.0) * 0.9 + float(averages[i].norm())
        self.state[p]["half"] = averages[i].bfloat16()
        return (averages[i] / (1e-3 + self.state[p]["norm"] + group["about"][1])).to(p.dtype) + self.state[p]["half"]


class ObjectInState(Toy):
    """Keeps an object of its own in the state, as Conda, GaLore and SOAP's cousins do."""

    def update(self, group, p, i):
        self.state[p].setdefault("projector", Projector()).calls += 1
        return p.grad / self.state[p]["projector"].calls


class Projector:
    calls = 0


class AttributeOfItsOwn(Toy):
    """Keeps what it remembers outside of what is saved."""

    def update(self, group, p, i):
        self.memory[p] = self.memory.get(p, 0) + p.grad
        return self.memory[p]


class NeedsClosure(Toy):
    def step(self, closure):
        closure()


@dataclass(frozen=True)
class Optim:
    kind: str
    lr: float = 1e-2

    def build(self, parameters):
        return globals()[self.kind](parameters, self.lr)


LIBRARYS = ("adan", "adabelief", "lamb", "diffgrad", "adamp", "exadam", "soap", "prodigy")
GOOD = [
    *({"name": name} for name in names("training.optim") if name != "library"),
    {"name": "conda", "gap": 4},
    {"name": "frugal", "gap": 4},
    {"name": "frugal", "gap": 4, "by": "columns"},
    *({"name": "library", "optimizer": name} for name in LIBRARYS),
    *map(Optim, ("StepInGroup", "AverageInGroup")),
]


@pytest.mark.parametrize("optim", GOOD, ids=str)
def test_six_and_six_steps_are_twelve(tmp_path, optim):
    """A basis or a share is drawn anew between the two as well as after the second begins."""
    optim = {**optim, "lr": 1e-2} if isinstance(optim, dict) else optim
    how = {"optim": optim, "validate_every": 0, "log_every": 100}
    train(tiny(steps=12, **how), tmp_path / "whole", quiet=True)
    train(tiny(steps=6, **how), tmp_path / "parts", quiet=True)
    train(tiny(steps=12, **how), tmp_path / "parts", quiet=True)
    ends = [tmp_path / f / "checkpoints" / checkpoints.checkpoint_name(12) for f in ("whole", "parts")]
    assert same(*map(weights, ends, ("", "")))
    assert checkpoints.read(ends[0])["optim"] == checkpoints.read(ends[1])["optim"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ObjectInState", "its 'projector' is a Projector"),
        ("AttributeOfItsOwn", "neither in `state` nor in `param_groups`"),
        ("NeedsClosure", "cannot make a step here: .*closure"),
    ],
)
def test_what_would_not_resume_is_refused_at_once(tmp_path, name, why):
    with pytest.raises(UserError, match=f"optim: Optim cannot be resumed: .*{why}") as error:
        train(tiny(optim=Optim(name)), tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_the_trial_leaves_random_numbers_as_they_were():
    net = torch.nn.Linear(3, 4)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    build_optimisers(AdamW(), {"net": net}, {})
    assert torch.equal(torch.rand(4), expected)
