"""The laws of distillers, over every file of distill/: contract, run, resume, gradients, options, refusals."""

import dataclasses
import inspect
import json
import math

import pytest
import torch

import gen
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, find, names
from gen.training.distillation import Distiller, teacher_run
from gen.training.log import read_metrics
from gen.training.run import run_from, run_spec
from gen.training.trainer import Trainer, train
from tests.gen.tiny import tiny

PAIRS = {"pairs": 24, "teacher_sampler": {"steps": 2}}
REWARDED, RECOVERY = {"group_size": 4}, {"name": "recovery", "initialiser": "target"}
# By method: the kind of its teacher, evaluations of the student's sampler, and options that make it small.
METHODS = {
    "adapt": ("text", None, {"block_size": 4}),
    "awm": ("image", 2, REWARDED | {"times_per_sample": 2, "rollout": {"solver": "euler", "steps": 2}}),
    "cdrl": ("image", 7, {"sampler": {"solver": RECOVERY | {"refine": 2}, "steps": 3}}),
    "consistency": ("image", 1, {"grid_steps": (3, 8), "growth_updates": 3}),
    "degradation": ("image", 2, {"records": 2, "every": 2}),
    "diffu_grpo": ("text", None, {"group_size": 4, "updates": 2}),
    "disback": ("image", 1, {"records": 3, "every": 1, "hold": 1, "method": {"name": "f_distill", "critic_steps": 1}}),
    "dmd2": ("image", 2, {"steps": 2, "critic_steps": 2, "gan_weight": 0.1, "disc_weight": 0.1, "hidden": 8}),
    "dparallel": ("text", None, {"prompts": 40, "block": 3}),
    "ect": ("image", 1, {"double_every": 1}),
    "f_distill": ("image", 1, {"critic_steps": 2, "hidden": 8, "r1": 1.0}),
    "flow_grpo": ("image", 2, REWARDED | {"steps": 3, "refresh": 2}),
    "ict": ("image", 1, {"grid_steps": (3, 12), "double_every": 1}),
    "knowledge": ("trig", 1, PAIRS),
    "ld_pruner": ("image", 2, {"samples": 4, "sampler": {"solver": "euler", "steps": 1}, "share": 0.1}),
    "learn2pd": ("text", None, {"prompts": 40}),
    "meanflow": ("image", 1, {"velocity": "teacher", "flow_share": 0.5}),
    "phased": ("trig", 2, {"phases": 2, "substeps": 2}),
    "progressive": ("image", 1, {"start_steps": 4, "stage_updates": 1}),
    "rectified_diffusion": ("trig", 1, PAIRS),
    "reflow": ("image", 1, PAIRS),
    "scm": ("image", 1, {"warmup": 4}),
    "shortcut": ("image", 1, {"velocity": "teacher", "steps": 8, "bootstrap": 0.5, "ema_decay": 0.5}),
    "sid": ("image", 1, {"critic_steps": 2}),
    "sinsr": ("trig", 1, {"steps": 2}),
    "tcm": ("consistency", 1, {}),
    "trajectory": ("text", None, {"prompts": 40, "blocks": (2, 3), "ramp_updates": 3}),
}  # fmt: skip
IMAGES = [method for method, (kind, _, _) in METHODS.items() if kind != "text"]


def test_every_method_is_here():
    assert sorted(METHODS) == names("distillers")


@pytest.mark.parametrize("method", METHODS)
def test_it_keeps_the_contract(method):
    made, contract = (
        build("distillers", method),
        ("student", "roles", "__call__", "validate", "validate_all", "observe"),
    )
    for member in contract:
        ours, theirs = (list(inspect.signature(getattr(c, member)).parameters) for c in (type(made), Distiller))
        assert ours == theirs, member
    assert made.for_text == (METHODS[method][0] == "text")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_student_of_a_run_folder_resumes_to_the_bit(method, teachers, tmp_path):
    kind, nfe, options = METHODS[method]
    spec, teacher = {"name": method, **options}, teachers(kind)
    changes = {"steps": 3, "save_every": 2, "validate_every": 3, "batch_size": 8, "log_every": 1}
    whole = gen.distill(spec, teacher, tmp_path / "whole", changes=changes, quiet=True)
    lines = read_metrics(whole.folder / "metrics.jsonl")
    assert len(lines) == 4 and all(math.isfinite(v) for line in lines for v in line.values() if not isinstance(v, str))
    info = checkpoints.read(whole.folder / "final")
    assert info["parent"] == checkpoints.read(teacher / "final")["sha256"]
    half = whole.folder / "checkpoints" / "step-0000002"
    parts = train(run_from(info["run"], half), tmp_path / "parts", resume=str(half), quiet=True)
    other = checkpoints.read(parts.folder / "final")
    assert parts.step == 3 and other["files"] == info["files"]
    if nfe is not None:
        sampled = whole.pipeline().sample(3)
        assert sampled.nfe == nfe and sampled.x.shape == (3, 1, 8, 8) and bool(sampled.x.isfinite().all())


@pytest.mark.parametrize("method", IMAGES)
def test_no_gradient_reaches_the_teacher_nor_what_is_frozen(method, teachers, tmp_path):
    """And where the student is the teacher's network, it begins as the teacher."""
    kind, _, options = METHODS[method]
    teacher = teachers(kind)
    student = build("distillers", {"name": method, **options}).student(teacher_run(teacher), teacher, tmp_path / "s")
    trainer = Trainer(dataclasses.replace(student, batch_size=8, steps=1), tmp_path / "t", "never", "test", True)
    (batch,) = next(iter(trainer.batches()))
    x, t = batch.x, torch.full((8,), 0.5, dtype=torch.float64)
    roles = trainer.roles
    ours, taught = roles["net"], gen.load(teacher).denoiser
    if method not in ("cdrl", "ld_pruner"):
        torch.testing.assert_close(ours.output(x, t, batch.cond), taught.output(x, t, batch.cond))
    held = [p for f in roles.values() if hasattr(f, "net") for p in f.net.parameters() if not p.requires_grad]
    own = [p for p in ours.net.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in held]
    trainer.step([batch])
    if "teacher" in roles:
        assert {id(p) for p in roles["teacher"].net.parameters()} <= {id(p) for p in held}
    assert all(p.grad is None for p in held) and own
    moving = {"shortcut", "consistency", "awm", "flow_grpo", "progressive"}  # whose target follows the student
    assert method in moving or all(map(torch.equal, held, before))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_no_bit(method, teachers, tmp_path):
    kind, _, options = METHODS[method]
    teacher = teachers(kind)
    student = build("distillers", {"name": method, **options}).student(teacher_run(teacher), teacher, tmp_path / "s")
    trained = []
    if hasattr(student.model.build(), "potential"):
        with pytest.raises(UserError, match=r"^gradient_checkpointing = true, but Cooperative has no blocks"):
            Trainer(dataclasses.replace(student, gradient_checkpointing=True), tmp_path / "t", "never", "test", True)
        return
    for checkpointed in (False, True):
        run = dataclasses.replace(student, batch_size=8, steps=1, gradient_checkpointing=checkpointed)
        trainer = Trainer(run, tmp_path / str(checkpointed), "never", "test", True)
        trainer.step(next(iter(trainer.batches())))
        trained.append([p.detach() for f in trainer.roles.values() if hasattr(f, "net") for p in f.net.parameters()])
    assert trained[0] and all(map(torch.equal, *trained))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_validation_follows_the_micro_batch_and_does_not_depend_on_it(method, teachers, tmp_path):
    kind, _, options = METHODS[method]
    teacher = teachers(kind)
    distiller = build("distillers", {"name": method, **options})
    run = dataclasses.replace(
        distiller.student(teacher_run(teacher), teacher, tmp_path / "s"), batch_size=8, validate_every=1
    )
    trainer, losses = Trainer(run, tmp_path / "t", "never", "test", True), {}
    for trainer.micro in (20, 8, 3):
        losses[trainer.micro] = trainer.validate()
    assert losses[8] == pytest.approx(losses[20], rel=1e-5) and losses[3] == pytest.approx(losses[20], rel=1e-5)


# What lies outside its range, or goes with nothing.
WRONG = {
    "adapt": {"recipe": "x", "block_size": 0, "length": 1},
    "awm": {"group_size": 1, "times_per_sample": 0, "power": 0.0, "time_power": -1.0, "trust_decay": 1.0, "beta": -1.0},
    "consistency": {"grid_steps": (5, 4), "ema_decay": 1.0, "growth_updates": 0, "class_dropout": 2.0, "velocity": "x"},
    "degradation": {"records": 0, "every": 0, "steps": 0, "critic_rate": 0.0},
    "diffu_grpo": {"group_size": 1, "updates": 0, "clip_range": 0.0, "prompt_mask": 1.0, "beta": -1.0},
    "disback": {"records": 0, "every": 0, "hold": 0},
    "dmd2": {"gan_weight": 0.1, "critic_steps": 0, "steps": 0, "critic_rate": 0.0, "r1": 1.0, "scale": "x"},
    "dparallel": {"prompts": 0, "beta": -1.0, "temperature": 0.0, "block": 0, "ratio": 0.0},
    "ect": {"gap": 1.0, "sharpness": -1.0, "double_every": 0, "stages": 0, "huber": -1.0},
    "f_distill": {"ratio_clip": (1.0, 0.5), "disc_weight": 0.0, "ratio_decay": 1.0, "bins": 0, "divergence": "x"},
    "flow_grpo": {"steps": 1, "noise_level": 0.0, "group_size": 1, "clip_range": 0.0, "refresh": 0},
    "ict": {"grid_steps": (20, 10), "double_every": 0, "std": 0.0, "huber": -1.0, "class_dropout": -0.1},
    "knowledge": {"pairs": 0},
    "ld_pruner": {"share": 1.0, "samples": 1, "teacher_weight": 1.5},
    "learn2pd": {"prompts": 0, "block": 0, "threshold": 1.5, "hidden": 0, "layers": 0},
    "meanflow": {"flow_share": 1.5, "omega": 0.0, "kappa": 1.0, "damping": 0.0, "power": -1.0},
    "phased": {"phases": 0, "substeps": 0},
    "progressive": {"start_steps": 12, "end_steps": 0, "first_stride": 1, "stage_updates": 0},
    "rectified_diffusion": {"class_dropout": 1.1, "space": "eps"},
    "reflow": {"huber": 0.0, "premetric_over_t": True},
    "scm": {"sigma_data": 0.0, "damping": 0.0, "warmup": -1, "class_dropout": 2.0},
    "shortcut": {"steps": 12, "bootstrap": 1.5, "ema_decay": -1.0, "clip": 0.0},
    "sid": {"critic_steps": 0, "weight": "x"},
    "sinsr": {"steps": 1, "inverse": -1.0, "truth": -1.0},
    "tcm": {"transition": 0.0, "sigma_max": 0.5, "boundary": 1.0, "gap": 0.0, "dof": 0.0, "boundary_weight": -1.0},
    "trajectory": {"blocks": (), "ratio": (0.0, 1.5), "ramp_updates": 0},
}


@pytest.mark.parametrize("method", WRONG)
def test_wrong_values_are_named(method):
    owner = find(method, "distillers")
    for field, value in WRONG[method].items():
        with pytest.raises(UserError, match=rf"{owner.__name__}(: (.*)?\b{field} = |\.{field}: got )"):
            owner(**{field: value})


@pytest.mark.parametrize("method", [m for m in IMAGES if m not in {"cdrl", "ect", "ict", "progressive", "tcm"}])
def test_a_teacher_is_needed(method):
    """But where pairs of one are: their student has seen it already."""
    distiller, net = build("distillers", {"name": method, **METHODS[method][2]}), tiny().model.build()
    if METHODS[method][2].get("pairs"):
        assert list(distiller.roles(net, None)) == ["net"]
        return
    with pytest.raises(UserError, match="needs a teacher"):
        distiller.roles(net, None)


@pytest.mark.parametrize("method", ["consistency", "ect", "ict", "meanflow", "scm", "shortcut"])
def test_it_trains_on_data_alone(method, tmp_path):
    options = METHODS[method][2] | ({} if method in ("ect", "ict") else {"velocity": "data"})
    run = tiny(objective={"name": method, **options}, steps=2, validate_every=2)
    if method in ("meanflow", "shortcut"):
        with pytest.raises(UserError, match="no flow map"):
            train(run, tmp_path / "refused", quiet=True)
        run = dataclasses.replace(run, model={"name": "flow_map", "inner": run.model, "tell": "interval"})
    assert math.isfinite(train(run, tmp_path / "run", quiet=True).val_loss)


# Another value of each option, one list for an option that all methods give the same meaning.
OTHER = {
    "grid": ["karras", {"name": "linear", "start": 0.9}], "guide": [{"name": "cfg", "scale": 3.0}],
    "times": ["point", {"name": "uniform", "low": 0.2, "high": 0.7}], "weighting": ["edm"], "class_dropout": [0.9],
    "pairs": [20], "teacher_sampler": [{"solver": "euler", "steps": 3}], "real_data": [True], "huber": [0.3],
    "premetric": ["square"], "distance": ["huber", "square"], "space": ["output"], "velocity": ["data"],
    "start_steps": [8], "end_steps": [2], "stage_updates": [2], "last_stage_updates": [3], "first_stride": [3],
    "phases": [3], "substeps": [3], "grid_steps": [(4, 9)], "growth_updates": [2], "ema_decay": [0.1],
    "double_every": [2], "mean": [-0.5], "std": [0.5], "gap": [0.3], "sharpness": [2.0], "slope": [3.0], "stages": [1],
    "transition": [2.0], "sigma_max": [20.0], "dof": [3.0], "boundary": [0.6], "boundary_weight": [0.7],
    "sigma_data": [0.5], "warmup": [1], "damping": [0.5], "prior": [1.0], "adaptive": [False],
    "derivative": ["difference"], "flow_share": [0.9], "omega": [2.0], "kappa": [0.5], "power": [0.5], "steps": [4],
    "bootstrap": [0.9], "bootstrap_cfg": [2.0], "clip": [0.1], "critic_steps": [3], "critic_times": ["point"],
    "critic_rate": [3.0], "scale": ["kl"], "gan_weight": [0.5], "disc_weight": [0.5], "r1": [100.0],
    "features": ["teacher", "fake"], "sites": [("hidden.0", "trunk")], "hidden": [4], "divergence": ["forward_kl"],
    "normalise": ["none"], "bins": [2], "ratio_decay": [0.9], "alpha": [0.5], "weight": ["none"], "records": [4],
    "every": [3], "hold": [2], "method": ["sid"], "reward": ["quadratic"], "group_size": [2], "times_per_sample": [3],
    "rollout": [{"solver": "heun", "steps": 2}], "time_power": [0.0], "beta": [0.5], "trust": [0.3],
    "trust_decay": [0.9], "noise_level": [0.3], "clip_range": [1e-9], "advantage_clip": [0.5], "refresh": [1],
    "teacher_weight": [0.1], "sampler": [{"solver": "euler", "steps": 3}],
    "inverse": [0.5], "truth": [0.5],
}  # fmt: skip
WITH = {"premetric_over_t": {"premetric": "square"}, "guidance_interval": {"omega": 2.0}}
OTHER |= {"premetric_over_t": [True], "guidance_interval": [(0.2, 0.5)]}
OTHER |= {"cdrl.sampler": [{"solver": RECOVERY | {"refine": 3}, "steps": 3}]}
# What these change is not in the first steps: where things lie, ratios that are all 1, which sites score least.
LATER = {
    "store",
    "degradation",
    "ratio_clip",
    "samples",
    "seed",
    "rescore",
    "share",
    "ld_pruner.sampler",
    "ld_pruner.sites",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", IMAGES)
def test_every_option_changes_the_student_or_is_refused(method, teachers, tmp_path):
    """The run but for its objective, or what three steps log."""
    kind, _, options = METHODS[method]
    teacher, count = teachers(kind), iter(range(1000))

    def mark(changed):
        distiller = build("distillers", {"name": method, **options, **changed})
        folder = tmp_path / str(next(count))
        run = distiller.student(teacher_run(teacher), teacher, folder)
        told = {k: v for k, v in run_spec(run).items() if k not in ("objective", "data")}
        if run.data != teacher_run(teacher).data:
            told["data"] = run.data.info["sampler"], run.data.info["n"], run.data.info.get("inverted")
        steps = {"batch_size": 8, "steps": 3, "save_every": 0, "validate_every": 0, "sample_every": 0}
        trainer = Trainer(dataclasses.replace(run, **steps), folder, "never", "test", True)
        return json.dumps(told, sort_keys=True), [trainer.step(batch) for batch in trainer.batches()]

    plain = mark({})
    for field in dataclasses.fields(find(method, "distillers")):
        name = field.name if f"{method}.{field.name}" not in OTHER else f"{method}.{field.name}"
        if {field.name, f"{method}.{field.name}"} & LATER:
            continue
        marks = [plain]
        for value in OTHER[name]:
            try:
                marks.append(mark(WITH.get(field.name, {}) | {field.name: value}))
            except UserError as error:
                assert field.name in str(error)
                marks.append(None)
        assert any(m != plain for m in marks[1:]), field.name
