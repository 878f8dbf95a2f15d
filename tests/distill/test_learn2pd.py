"""Learn2PD: replays of exact joints in closed form, the filter against Bayes, and a student that may be moved."""

import shutil

import pytest
import torch

import gen
from gen.cli import main
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import spec_of
from gen.diffusion.noise import training_noise
from gen.distillers.learn2pd import Learn2PD, filter_rates, held_out_rates, replay
from gen.distillers.lib.answers import sequential_decoding
from gen.samplers.block_schedules.multi import Multi
from gen.samplers.block_schedules.semi_ar import SemiAR
from gen.samplers.block_schedules.whole import Whole
from gen.samplers.decoding_policies.learned import Filter, Learned
from gen.text.decoding import Decoding
from gen.text.worlds import JointDistribution, parity_joint
from gen.training.objectives import Batch
from gen.training.trainer import train
from tests.distill.texts import roles, texts, tiny_text

SURE = torch.tensor([0.8, 0.6, 0.75, 0.55], dtype=torch.float64)  # p(token = 1) at each place, all independent
NOISE = training_noise(0, 0, [])  # nothing is drawn


@pytest.fixture
def teacher(text_teacher):
    return text_teacher


def independent():
    bits = torch.cartesian_prod(*[torch.arange(2)] * 4)
    return JointDistribution(bits, torch.where(bits == 1, SURE, 1 - SURE).prod(1), 2)


def steps_of(joint, answers, blocks, size):
    how = Decoding(policy="topk", block_schedule=blocks, stopping_rules=())
    b, n = answers.shape
    return replay(joint, [[] for _ in range(b)], [n] * b, answers, how, size)


def test_a_replay_commits_what_is_right_and_then_the_rest():
    """A step for what is right at once and, where anything is not, one more, in which all that is left is wrong."""
    joint = independent()
    steps = steps_of(joint, joint.support, Whole(), 4)
    rows = steps["row"]
    for i, text in enumerate(joint.support):
        right = text == 1
        mine = {key: value[rows == i] for key, value in steps.items()}
        assert len(mine["masked"]) == (1 if bool(right.all() | ~right.any()) else 2)
        assert bool(mine["masked"][0].all()) and torch.equal(mine["correct"][0], right)
        torch.testing.assert_close(mine["confidence"][0], SURE.float())
        if len(mine["masked"]) == 2:
            assert torch.equal(mine["masked"][1], ~right) and not bool(mine["correct"][1].any())
            torch.testing.assert_close(mine["confidence"][1], torch.where(right, 1.0, SURE.float()))


def test_what_depends_on_one_another_is_right_later():
    """The last bit of a parity is certain once the others stand, whatever was guessed before."""
    joint = parity_joint(3)
    steps = steps_of(joint, torch.tensor([[0, 1, 1]]), Whole(), 3)
    assert steps["correct"].tolist() == [[True, False, False], [False, False, False]]
    torch.testing.assert_close(steps["confidence"], torch.tensor([[0.5, 0.5, 0.5], [1, 0.5, 0.5]]))
    steps = steps_of(joint, torch.tensor([[0, 0, 0]]), SemiAR(2), 2)
    assert steps["masked"].tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(steps["confidence"], torch.tensor([[0.5, 0.5], [1, 1]]))


def trained(method, columns, steps, lr=0.03):
    """A filter, trained by the method's own loss on columns of replays at a falling rate; the last logs."""
    made = Filter(method.block, method.hidden, method.layers)
    optim = torch.optim.Adam(made.parameters(), lr)
    n = len(columns["correct"])
    for step in range(steps):
        rows = torch.randint(n, (500,))
        cond = {key: value[rows] for key, value in columns.items()}
        ((role, loss, logs),) = method(roles(made, "filter"), Batch(cond["confidence"], cond, NOISE))
        assert role == "filter"
        optim.zero_grad()
        loss.backward()
        optim.step()
        for group in optim.param_groups:
            group["lr"] = lr * (1 - step / steps)
    return made, logs


def test_the_filter_of_a_known_joint_reaches_bayes():
    """Independent places: at first place i is right with probability SURE[i], and what is left after that is wrong.

    So at a threshold of 0.68 Bayes accepts places 0 and 2 of an empty window and nothing of any other; of the wrong
    tokens, which are met twice each, it accepts sum of (1 - SURE) over these two, over twice that of all. A text that
    is wrong everywhere is met but once.
    """
    joint, threshold = independent(), 0.68
    generator = torch.Generator().manual_seed(0)
    answers = joint.support[torch.multinomial(joint.probabilities, 6000, replacement=True, generator=generator)]
    columns = steps_of(joint, answers, Whole(), 4)
    wrong, taken = 1 - SURE, SURE.gt(threshold)
    once = wrong.prod() * 4
    bayes = float(wrong[taken].sum() / (2 * wrong.sum() - once))
    found = float(SURE[taken].sum() / SURE.sum())
    made, logs = trained(Learn2PD(block=4, threshold=threshold), columns, 250)
    reached = filter_rates(made(columns["confidence"]), columns["correct"], columns["masked"], threshold)
    chosen = columns["confidence"].lt(1).all(1)[:, None] & taken
    exact = filter_rates(torch.where(chosen, 9.0, -9.0), columns["correct"], columns["masked"], threshold)
    assert exact.false_positive_rate == pytest.approx(bayes, abs=0.01) and exact.recall == pytest.approx(
        found, abs=0.01
    )
    assert reached.false_positive_rate == pytest.approx(bayes, abs=0.01)
    assert reached.recall == pytest.approx(found, abs=0.02)
    assert set(logs) == {"loss", "false_positive_rate", "recall"}
    alone = columns["confidence"] > threshold  # the threshold policy sees no stuck window, and errs again there
    naive = filter_rates(torch.where(alone, 9.0, -9.0), columns["correct"], columns["masked"], threshold)
    assert naive.false_positive_rate > 1.5 * reached.false_positive_rate


def test_only_open_places_are_learned_from():
    method = Learn2PD(block=3, hidden=4)
    cond = {
        "confidence": torch.rand(5, 3),
        "masked": torch.tensor([[1, 0, 1]] * 5).bool(),
        "correct": torch.tensor([[1, 0, 0]] * 5).bool(),
    }
    net = Filter(3, 4)
    _, loss, _ = next(method(roles(net, "filter"), Batch(cond["confidence"], cond, NOISE)))
    p = net(cond["confidence"]).sigmoid()
    torch.testing.assert_close(loss, -(p[:, 0].log() + (1 - p[:, 2]).log()).mean() / 2)
    loss.backward()
    assert float(net.layers[-1].bias.grad[1]) == 0


def test_rates_count_what_is_open():
    logits = torch.tensor([[9.0, 9, -9, -9], [9, 9, 9, 9]])
    right = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 0]]).bool()
    open_ = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    found = filter_rates(logits, right, open_, 0.96)
    rates = found.false_positive_rate, found.recall, found.false_discovery_rate
    assert (*rates, found.tokens) == pytest.approx((2 / 3, 2 / 3, 0.5, 6))
    assert filter_rates(logits, right, ~open_ & open_, 0.96).false_positive_rate == 0


def in_shards(folder, name):
    """Lay a file of a checkpoint in two shards, as two processes of a sharded run write it."""
    manifest, unfinished = checkpoints.read(folder), folder.parent / "unfinished"
    beside = {n: (folder / n).read_bytes() for n in manifest["files"] if n != name}
    whole = checkpoints.read_tensors(folder, name, manifest)
    shards, slices = {}, {}
    for rank in (0, 1):
        cuts = {k: (rank * len(v) // 2, (rank + 1) * len(v) // 2) for k, v in whole.items()}
        shard = name.replace(".", f"-{rank + 1:05d}-of-00002.", 1)
        shards[shard] = {k: v[slice(*cuts[k])].clone() for k, v in whole.items()}
        slices[shard] = {k: {"start": a, "stop": b, "shape": list(whole[k].shape)} for k, (a, b) in cuts.items()}
    written = checkpoints.write_files(folder, unfinished, shards, beside)
    for shard, cut in slices.items():
        written[shard] |= {"shard_of": name, "slices": cut}
    checkpoints.complete(folder, unfinished, {k: v for k, v in manifest.items() if k != "sha256"}, written)


def test_the_student_is_the_teacher_with_a_filter_beside_it_wherever_it_lies(teacher, tmp_path):
    folder = tmp_path / "student"
    options = ["--steps", "3", "--objective.prompts", "60", "--batch_size", "16", "--validate_every", "3"]
    assert main(["distill", "learn2pd", "--teacher", str(teacher), "--out", str(folder), *options]) == 0
    before = gen.load(folder).generate("sort : b a =", 5)
    moved = tmp_path / "elsewhere" / "student"
    moved.parent.mkdir()
    shutil.move(folder, moved)
    student, taught = gen.load(moved), gen.load(teacher)
    policy = student.decoding.policy
    assert isinstance(policy, Learned) and policy.file == str(moved / "final" / "filter.safetensors")
    assert policy.threshold == 0.96 and policy.filter.length == 3  # the teacher's blocks
    pairs = zip(student.net.state_dict().values(), taught.net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert student.generate("sort : b a =", 5).texts == before.texts
    assert main(["decode", str(moved), "--prompt", "sort : b a =", "--gen-length", "5"]) == 0
    again = student.generate("sort : b a =", 5, policy="topk")
    assert again.texts == taught.generate("sort : b a =", 5).texts
    in_shards(moved / "final", "filter.safetensors")
    assert not (moved / "final" / "filter.safetensors").exists()
    assert gen.load(moved).generate("sort : b a =", 5).texts == before.texts
    spoilt = moved / "final" / "filter-00002-of-00002.safetensors"
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="damaged"):
        gen.load(moved).generate("sort : b a =", 5)


@pytest.mark.parametrize("method", ["reflow", "degradation", "dmd2", "tcm", "ld_pruner"])
def test_a_text_model_teaches_no_pictures(teacher, tmp_path, method, capsys):
    assert main(["distill", method, "--teacher", str(teacher), "--out", str(tmp_path / "x")]) == 2
    assert "is a text model: take dparallel, learn2pd, trajectory or diffu_grpo" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_was_held_out_is_counted(teacher, tmp_path):
    changes = {"steps": 3, "objective.prompts": 60, "batch_size": 16}
    done = gen.distill("learn2pd", teacher, tmp_path / "student", changes=changes, quiet=True)
    found = held_out_rates(done.folder)
    assert found.tokens > 0 and 0 <= found.false_positive_rate <= 1
    in_shards(done.folder / "final", "filter.safetensors")
    assert held_out_rates(done.folder) == found
    with pytest.raises(UserError, match="no run of learn2pd"):
        held_out_rates(teacher)


def test_windows_without_a_length_must_be_told_one(teacher, tmp_path):
    run = tiny_text(sampler=Decoding(policy="topk", block_schedule=Multi(3)))
    train(run, tmp_path / "teacher", quiet=True)
    with pytest.raises(UserError, match="say how long a window is with block"):
        gen.distill("learn2pd", tmp_path / "teacher", tmp_path / "student", changes={"objective.prompts": 9})
    made = gen.distill(
        "learn2pd", tmp_path / "teacher", tmp_path / "student", quiet=True,
        changes={"objective.prompts": 40, "objective.block": 2, "steps": 1},
    )  # fmt: skip
    assert gen.load(made.folder).decoding.block_schedule == SemiAR(2)


def test_replays_are_decoded_one_token_at_a_time_and_greedily():
    how = Decoding(policy="entropy", kv_plan="prefix")
    assert spec_of(sequential_decoding(how).policy)["name"] == "topk" and sequential_decoding(how).kv_plan is None


def test_other_data_are_refused():
    with pytest.raises(UserError, match="needs replays"):
        next(Learn2PD()({}, texts(torch.zeros(2, 4, dtype=torch.int64), 0, 4)))
