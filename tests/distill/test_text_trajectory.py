"""d3LLM: the masks are states of the teacher's own decoding, and its curriculum rises as it says."""

from dataclasses import replace

import pytest
import torch

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.data.lib.shards import ShardPlan
from gen.distillers.dparallel import DParallel
from gen.distillers.lib.answers import make_answers, sequential_decoding
from gen.distillers.trajectory import Trajectory, last_committed
from gen.samplers.block_schedules.multi import Multi
from gen.samplers.decoding_policies.entropy import Entropy
from gen.text.loop import decode_steps
from gen.training.objectives.lib.masked import token_batch
from tests.distill.texts import LISTS, Given, roles, texts, tiny_text

MASK = 4


@pytest.fixture
def teacher(text_teacher):
    return text_teacher


def test_the_last_ones_are_masked():
    when = torch.tensor([[-1, 3, 1, 4, 2, 9], [-1, 1, 1, 2, 2, -1]])
    inside = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0]]).bool()

    def places(ratio):
        return [row.nonzero()[:, 0].tolist() for row in last_committed(when, inside, ratio)]

    assert places(0.25) == [[3], [4]]
    assert places(0.5) == [[1, 3], [3, 4]]
    assert places(0.75) == [[1, 3, 4], [2, 3, 4]]
    assert places(0.0) == [[], []] and places(1.0) == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("length", [3, 8])
def test_masks_are_the_states_that_the_teacher_was_in(teacher, tmp_path, length):
    """At every ratio k / n the first view masks what stood masked in one of the teacher's own steps."""
    run, taught = tiny_text(), gen.load(teacher)
    taught = replace(taught, decoding=replace(taught.decoding, stopping_rules=()))  # else some places are never decided
    answers = make_answers(
        taught, LISTS, tmp_path / "answers", 12, only_correct=False, plan=ShardPlan(quiet=True)
    ).open("train")
    net = Given(torch.zeros(LISTS.shape[0], run.model.vocab_size), run.model.mask_token_id)
    for i in range(len(answers)):
        item = {k: v[None] for k, v in answers[i].items()}
        x, start, end = item["x"], int(item["prompt"]), int(item["length"])
        states = [torch.ones(end - start, dtype=torch.bool)]
        for now in decode_steps(taught.net, [x[0, :start]], end - start, sequential_decoding(taught.decoding)):
            states.append(now.tokens[0, start:end] == run.model.mask_token_id)
        for k in range(7):
            method = Trajectory(blocks=(length,), ratio=(0.0, k / 6), ramp_updates=1)
            batch = texts(x, start, end, step=5, commit_step=item["commit_step"])
            inside, hit = method.masks(net, token_batch(batch, net), batch)
            n = int(inside.sum())
            assert int(hit.sum()) == round(n * k / 6) and not bool((hit & ~inside).any())
            mine = inside[0, start:end]
            assert any(torch.equal(hit[0, start:end], state & mine) for state in states)


def test_the_curriculum_rises_and_stays():
    method = Trajectory(blocks=(4, 6, 8), ratio=(0.0, 0.8), ramp_updates=90)
    assert [method.stage(k)[0] for k in (0, 29, 30, 59, 60, 90, 500)] == [4, 4, 6, 6, 8, 8, 8]
    assert [method.stage(k)[1] for k in (0, 45, 90, 500)] == pytest.approx([0, 0.4, 0.8, 0.8])


def test_the_loss_is_that_of_dparallel_on_other_masks():
    """At full ratio the first view masks the whole answer: what dParallel's does at ratio 1."""
    x = torch.arange(6).remainder(MASK).expand(8, 6)
    net = Given(torch.randn(6, MASK + 1, dtype=torch.float64), MASK)
    when = torch.arange(6).expand(8, 6)
    method, batch = Trajectory(blocks=(6,), ratio=(0.0, 1.0), ramp_updates=1), texts(x, 1, 6, step=1, commit_step=when)
    ours = method.loss(net, batch)[0]
    theirs = DParallel(block=None, ratio=1.0).loss(net, texts(x, 1, 6))[0]
    assert torch.equal(ours, theirs) and torch.equal(*net.seen)


def test_validation_is_that_of_the_end():
    x = torch.arange(6).remainder(MASK).expand(8, 6)
    net = Given(torch.randn(6, MASK + 1, dtype=torch.float64), MASK)
    method, when = Trajectory(blocks=(2, 6), ramp_updates=10), torch.arange(6).expand(8, 6)
    late, early = (method.validate(roles(net), texts(x, 0, 6, k, commit_step=when)) for k in (10, 0))
    assert not torch.equal(*(n == MASK for n in net.seen[0].chunk(2)))
    assert torch.equal(late.detach(), early.detach())


def test_the_command_makes_a_student(teacher, tmp_path):
    folder = tmp_path / "student"
    own = ["--objective.prompts", "60", "--objective.blocks", "[2,3]", "--objective.ramp_updates", "4"]
    command = ["distill", "trajectory", "--teacher", str(teacher), "--out", str(folder), "--steps", "4", *own]
    assert main(command) == 0
    student = gen.load(folder)
    assert student.decoding.policy == Entropy() and student.decoding.block_schedule == Multi(length=3)
    assert len(student.generate("copy : a b =", 4).texts) == 1


def test_what_is_wrong_is_refused():
    with pytest.raises(UserError, match=r"Trajectory: blocks = \(\)"):
        Trajectory(blocks=())
    with pytest.raises(UserError, match=r"ratio = \(0.0, 1.5\)"):
        Trajectory(ratio=(0.0, 1.5))
    with pytest.raises(UserError, match="needs answers with the step of each token"):
        next(Trajectory()(roles(Given(torch.zeros(4, 5), MASK)), texts(torch.zeros(2, 4, dtype=torch.int64), 0, 4)))
    method = Trajectory(blocks=(4, 8))
    assert build("distillers", spec_of(method)) == method
