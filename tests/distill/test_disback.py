"""DisBack: the recorded way back, its turns, and a loading that says what it loaded."""

import pytest
import torch
from torch import nn

import gen
from gen.config.checkpoints import read, read_tensors
from gen.config.errors import UserError
from gen.distillers.disback import DisBack
from gen.distillers.lib.sequence import TeacherSequence, degradation_checkpoints, load_matching
from gen.models.mlp import MLP
from gen.training.distillation import teacher_run
from gen.training.log import read_metrics
from tests.gen.tiny import tiny


def test_each_target_has_its_turn_and_the_teacher_the_last():
    sequence = TeacherSequence(("b", "a"), hold=3)
    assert [sequence.at(step, "teacher") for step in range(8)] == ["b"] * 3 + ["a"] * 3 + ["teacher"] * 2
    assert TeacherSequence((), hold=3).at(0, "teacher") == "teacher"


def test_loading_says_what_it_did():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ones = {key: torch.ones_like(value) for key, value in before.items()}
    prefixed = {f"fake.{key}": value for key, value in ones.items()}
    with pytest.raises(UserError, match="0 keys matched, 4 missing, 4 unexpected"):
        load_matching(net, prefixed)
    with pytest.raises(UserError, match="0 keys matched"):
        load_matching(net, prefixed, strict=False)  # the silent failure of load_state_dict(strict=False)
    part = {key: value for key, value in ones.items() if key.startswith("0.")} | {"other": torch.ones(1)}
    with pytest.raises(UserError, match=r"2 keys matched, 2 missing, 1 unexpected, such as 1\.weight and other"):
        load_matching(net, part)
    with pytest.raises(UserError, match=r"0\.weight is \[3, 2\], not \[2, 2\]"):
        load_matching(net, ones | {"0.weight": torch.ones(3, 2)})
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    match = load_matching(net, part, strict=False)
    assert match.matched == ("0.weight", "0.bias") and match.missing == ("1.weight", "1.bias")
    assert match.unexpected == ("other",)
    assert str(load_matching(net, ones)) == "4 keys matched, 0 missing, 0 unexpected"
    assert all(bool((value == 1).all()) for value in net.state_dict().values())


def test_the_fake_score_goes_back_the_way_it_came(teacher, tmp_path, capsys):
    changes = {"objective.records": 3, "objective.every": 1, "objective.hold": 2, "objective.method": "sid", "steps": 6}
    done = gen.distill("disback", teacher, tmp_path / "student", changes=changes, quiet=True)
    assert "keys matched, 0 missing, 0 unexpected" in capsys.readouterr().err
    lines = [line for line in read_metrics(done.folder / "metrics.jsonl") if line["split"] == "train"]
    assert [line["target"] for line in lines] == [0, 0, 1, 1, 2, 2]
    places = degradation_checkpoints(tmp_path / "student" / "degradation")
    assert [place.name for place in places] == ["step-0000001", "step-0000002", "step-0000003"]
    objective = teacher_run(done.folder).objective
    assert objective.sequence().targets == places[1::-1]
    roles = objective.roles(tiny().model.build(), gen.load(teacher).denoiser)
    last = read_tensors(places[2], "net.safetensors", read(places[2]))
    assert all(torch.equal(value, last[key]) for key, value in roles["fake"].state_dict().items())


def test_refusals(tmp_path):
    with pytest.raises(UserError, match="needs a degradation"):
        DisBack().roles(MLP().build(), Teacher())
    with pytest.raises(UserError, match=r"DisBack\.method: got 'reflow'"):
        DisBack("reflow")
    with pytest.raises(UserError, match=r"DisBack\.method: got DisBack"):
        DisBack(DisBack())
    with pytest.raises(UserError, match="holds no checkpoints of a degradation"):
        degradation_checkpoints(tmp_path)


class Teacher:
    """Any denoiser."""
