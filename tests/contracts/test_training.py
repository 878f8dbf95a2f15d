"""What a user's own objective, data, optimiser, schedule and distiller must have, and that every verb takes them."""

import dataclasses
import json

import pytest
import torch

import gen
from gen.cli import main
from gen.config import checkpoints
from gen.config.spec import build, find, names, spec_of
from gen.training.log import read_metrics
from gen.training.run import run_spec
from tests.gen.tiny import tiny

MINE = "tests.contracts."
OWN = {
    "data": MINE + "my_data:MyData",
    "objective": MINE + "my_objective:MyObjective",
    "optim": MINE + "my_optimiser:SGD",
    "schedule": MINE + "my_schedule:MySchedule",
}


def own(**changes):
    """Return a run of which every part but the network is the user's."""
    return tiny(**OWN | {"model": {**spec_of(tiny().model), "classes": 2}} | changes)


def files(folder):
    return {name: about["sha256"] for name, about in checkpoints.read(folder)["files"].items()}


def test_a_user_s_parts_train_and_resume_to_the_bit(tmp_path):
    run = own(save_every=3)
    gen.train(run, tmp_path / "whole", quiet=True)
    gen.train(run, tmp_path / "again", resume=str(tmp_path / "whole/checkpoints/step-0000003"), quiet=True)
    last = "checkpoints/step-0000006"
    assert files(tmp_path / "whole" / last) == files(tmp_path / "again" / last)
    rows = [row for row in read_metrics(tmp_path / "whole/metrics.jsonl") if "loss" in row]
    assert [round(row["lr"], 9) for row in rows] == [0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    assert all(row["error"] == pytest.approx(row["loss"]) for row in rows)
    assert gen.load(tmp_path / "whole", allow=("tests",)).sample(4).x.shape == (4, 1, 8, 8)


def test_a_user_s_distiller_distils_and_gives_its_teacher_no_gradient(tmp_path):
    teacher = gen.train(own(steps=2), tmp_path / "teacher", quiet=True).folder
    before = files(teacher / "final")
    method = MINE + "my_distiller:MyDistiller"
    done = gen.distill(
        method, teacher, tmp_path / "student", changes={"steps": 2, "seed": 1}, quiet=True, allow=["tests"]
    )
    assert done.step == 2 and files(teacher / "final") == before
    assert checkpoints.read(tmp_path / "student/final")["parent"] == checkpoints.manifest_of(teacher)["sha256"]


def test_the_command_line_takes_a_user_s_parts(tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(run_spec(own(steps=2, objective="denoise", optim="adamw"))))
    words = ["--objective", OWN["objective"], "--objective.weight", "2", "--optim", OWN["optim"], "--quiet"]
    assert main(["train", str(tmp_path / "run.json"), "--out", str(tmp_path / "run"), *words]) == 0
    told = ["--teacher", str(tmp_path / "run"), "--out", str(tmp_path / "student"), "--quiet", "--allow", "tests"]
    assert main(["distill", MINE + "my_distiller:MyDistiller", *told]) == 0
    assert main(["train", str(tmp_path / "run"), "--print-config", "--allow", "tests"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))["objective"]["weight"] == 2.0


def every(folder, mine):
    """Return the plug-ins of a folder that need no fields, and the user's."""
    needs = dataclasses.MISSING
    fields = {name: dataclasses.fields(find(name, folder)) for name in names(folder)}
    plain = [k for k, v in fields.items() if all(f.default is not needs or f.default_factory is not needs for f in v)]
    return [pytest.param(build(folder, name), id=name) for name in [*plain, mine]]


@pytest.mark.parametrize("source", every("data", OWN["data"]))
def test_data_are_what_their_source_says(source):
    train, test = (source.open(split) for split in ("train", "test"))
    assert len(train) and len(test)
    assert train.fingerprint == source.open("train").fingerprint
    for item in (train[0], train[len(train) - 1], test[0]):
        assert item["x"].shape == source.shape
        if hasattr(source, "tokenizer"):
            assert (
                item["x"].dtype == torch.int64 and 0 <= int(item["x"].min()) <= int(item["x"].max()) < source.vocab_size
            )
            assert 0 <= int(item["prompt"]) <= int(item.get("length", len(item["x"]))) <= len(item["x"])
        else:
            assert item["x"].dtype == torch.float32 and ("y" in item) == (source.classes > 0)
            assert "y" not in item or 0 <= int(item["y"]) < source.classes


@pytest.mark.parametrize("optim", every("training.optim", OWN["optim"]))
def test_an_optimiser_steps_by_its_groups_rates_and_its_state_can_be_saved(optim):
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    built = optim.build([{"params": [p], "scale": scale} for p, scale in zip(weights, (1.0, 0.5), strict=True)])
    for group in built.param_groups:
        group["lr"] = 0.1 * group["scale"]
    for p in weights:
        p.grad = torch.ones(3)
    built.step()
    torch.testing.assert_close(1 - weights[1], (1 - weights[0]) / 2)
    assert all(isinstance(v, torch.Tensor | float | int) for state in built.state.values() for v in state.values())


@pytest.mark.parametrize("schedule", every("training.schedules", OWN["schedule"]))
def test_a_schedule_is_a_pure_factor_up_to_one(schedule):
    factors = [schedule.factor(n, 100) for n in range(100)]
    assert factors == [schedule.factor(n, 100) for n in range(100)]
    assert all(0 <= factor <= 1 for factor in factors) and max(factors) == 1
