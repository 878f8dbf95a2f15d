"""Every distiller with a guide: each of the guide's options changes the loss, or is refused in one line."""

import dataclasses

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, find, names
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow, Trig
from gen.distillers.lib.teacher import guided_teacher
from gen.models.flow_map import FlowMap
from gen.models.mlp import MLP
from gen.samplers.guides.apg import APG
from gen.samplers.guides.cfg import CFG
from gen.samplers.guides.cfg_zero import CFGZero
from gen.training.objectives import Batch

SPEC = MLP(classes=3, width=8, depth=1)
# Options by which a method asks its teacher at all, or is small.
SMALL = {
    "shortcut": {"velocity": "teacher", "steps": 8, "bootstrap": 0.0},
    "meanflow": {"velocity": "teacher", "flow_share": 1.0},
    "scm": {"adaptive": False},
    "dmd2": {"critic_steps": 1},
    "f_distill": {"critic_steps": 1, "hidden": 8},
    "progressive": {"start_steps": 4, "first_stride": 4},
    "phased": {"phases": 2, "substeps": 4},
}
# Another value of each option of a guide. `batched` changes the number of calls alone.
OPTIONS = {
    "scale": 2.0, "interval": (0.5, 1.5), "steps": (0.25, 0.75), "channels": 1, "momentum": -0.5, "threshold": 1e-3,
    "eta": 0.7, "phi": 0.2, "space": "x0", "zero_steps": 1, "over": "rows", "cap": 0.5, "power": 3, "total": 500,
    "num_steps": None, "skip_scale": 2.0,
}  # fmt: skip
OFF = {
    "momentum": 0.0,
    "zero_steps": 0,
    "skip_scale": 0.0,
    "num_steps": 5,
}  # off, where a teacher is evaluated at single times


def fields(name, folder="samplers.guides"):
    return {f.name for f in dataclasses.fields(find(name, folder))}


METHODS = [name for name in names("distillers") if "guide" in fields(name, "distillers")]


def net(spec, seed):
    torch.manual_seed(seed)
    made = spec.build()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made


def losses(method, guide, options):
    """The sum of the losses of one step under a guide: equal seeds, weights and data each time."""
    given = {"scale": 3.0, "weak": Denoiser(net(SPEC, 3), Flow(), Velocity()), **OFF}
    spec = {"name": guide, **{key: value for key, value in given.items() if key in fields(guide)}, **options}
    objective = build("distillers", {"name": method, **SMALL.get(method, {}), "guide": spec})
    teacher = Denoiser(net(SPEC, 0).requires_grad_(False), Flow(), Velocity())
    student = net(FlowMap(SPEC, tell="interval") if method in ("meanflow", "shortcut") else SPEC, 1)
    torch.manual_seed(2)
    roles = {role: Denoiser(n, Flow(), Velocity()) for role, n in objective.roles(student, teacher).items()}
    x = torch.randn(8, 2, 1, 1, generator=torch.Generator().manual_seed(4))
    batch = Batch(x, {"y": torch.arange(8) % 3}, training_noise(0, 0, range(8)))
    return sum(float(loss.detach()) for _, loss, _ in objective({**roles, "teacher": teacher}, batch))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("guide", names("samplers.guides"))
def test_each_option_changes_the_loss_or_is_refused(method, guide):
    plain, refused = losses(method, guide, {}), set()
    common = set() if guide == "cfg" else {"scale", "interval", "channels"}  # one function for all guides
    for option in fields(guide) & set(OPTIONS) - common:
        try:
            changed = losses(method, guide, {option: OPTIONS[option]})
        except UserError as error:
            assert f"{option} = " in str(error) and "\n" not in str(error)
            refused.add(option)
        else:
            assert changed != plain, option
    assert refused <= {"steps", *OFF}
    assert ("steps" in refused) == (method not in ("progressive", "phased"))  # these have a loop of their own
    assert set(OFF) & fields(guide) <= refused


@pytest.mark.parametrize("method", ["consistency", "meanflow", "scm", "shortcut"])
def test_a_guide_without_a_teacher_is_refused(method):
    objective = build("distillers", {"name": method, "velocity": "data", "guide": "cfg"})
    with pytest.raises(UserError, match="guide acts on a teacher"):
        objective.roles(SPEC.build(), None)


def test_the_one_guided_teacher():
    teacher, grid = Denoiser(net(SPEC, 0), Flow(), Velocity()), torch.linspace(1, 0, 5, dtype=torch.float64)
    assert guided_teacher(teacher, Flow(), None) is teacher
    x, t, cond = torch.randn(2, 2, 1, 1), torch.tensor([0.9, 0.4]).double(), {"y": torch.tensor([0, 1])}
    ours, exact = guided_teacher(teacher, Flow(), CFG(3.0))(x, t, cond), CFG(3.0)(teacher, grid)(x, t, cond)
    assert torch.equal(ours.x0, exact.x0)
    ours = guided_teacher(teacher, Flow(), CFG(3.0, steps=(0.5, 1.0)), grid)(x, t, cond)
    assert torch.equal(ours.x0[1], exact.x0[1]) and not torch.equal(ours.x0[0], exact.x0[0])
    for guide in (CFG(steps=(0.0, 0.5)), APG(), CFGZero(), APG(momentum=0.0, steps=(0.0, 0.5))):
        with pytest.raises(UserError, match="single times"):
            guided_teacher(teacher, Flow(), guide)
    with pytest.raises(UserError, match="single times"):
        guided_teacher(teacher, Flow(), APG(), grid)
    with pytest.raises(UserError, match="both must be on the same path"):
        guided_teacher(teacher, Trig(), None)
