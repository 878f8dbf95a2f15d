"""Processes that step apart and meet: the outer steps on stacked replicas, in float64, and a run of one process."""

import itertools
import os
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.training.outer import random_pairs
from gen.training.outer.diloco import DiLoCo
from gen.training.outer.noloco import NoLoCo
from gen.training.replicas import Replicas
from gen.training.run import run_from, run_spec
from gen.training.trainer import train
from tests.gen.tiny import tiny
from tests.ranks import as_launched, spread


def of_all(x):
    return x.mean(-2, keepdim=True).expand_as(x)


def of_pairs(x, partners):
    return (x + x[..., partners, :]) / 2


def pairings(items):
    if not items:
        yield []
    for other in items[1:]:
        rest = [item for item in items if item not in (items[0], other)]
        yield from ([(items[0], other), *pairs] for pairs in pairings(rest))


def variance(phi):
    return float((phi - phi.mean(0)).square().sum())


def test_where_nothing_moves_random_pairs_shrink_the_disagreement_by_the_closed_form():
    """Exactly, over all pairings of n replicas; by (1 + (1 - pull)^2) / 2 for many: .545 at the published .7."""
    for n, pull in itertools.product((2, 4, 6), (0.7, 1.6)):
        phi = torch.randn(n, 5, dtype=torch.float64)
        means = []
        for pairs in pairings(list(range(n))):
            partners = torch.empty(n, dtype=torch.int64)
            for one, other in pairs:
                partners[[one, other]] = torch.tensor([other, one])
            outer = NoLoCo(momentum=0.0, pull=pull)
            after, _ = outer.update(phi, phi, torch.zeros_like(phi), partial(of_pairs, partners=partners))
            torch.testing.assert_close(after.mean(0), phi.mean(0), rtol=1e-13, atol=1e-13)
            means.append(variance(after) / variance(phi))
        assert len(means) == {2: 1, 4: 3, 6: 15}[n]
        factor = 1 - n * (1 - (1 - pull) ** 2) / (2 * (n - 1))
        assert sum(means) / len(means) == pytest.approx(factor, rel=1e-12, abs=1e-15)
    n = 10**6
    assert 1 - n * (1 - 0.3**2) / (2 * (n - 1)) == pytest.approx(0.545, abs=1e-5)


def test_partners_are_each_other_s_and_every_pairing_comes_as_often():
    drawn = [random_pairs(3, meeting, 4) for meeting in range(600)]
    assert all(pairs[pairs[i]] == i != pairs[i] for pairs in drawn for i in range(4))
    counts = [sum(pairs[0] == partner for pairs in drawn) for partner in (1, 2, 3)]
    assert sum((count - 200) ** 2 / 200 for count in counts) < 9.2  # chi-square, 2 degrees of freedom, 1 %
    assert sorted(random_pairs(0, 1, 5)) == list(range(5)) and random_pairs(0, 1, 1) == [0]


def descend(outer, target, rounds, inner=4, lr=0.1):
    """Replicas on |x - target|^2 / 2 with targets of their own; the outer weights after some meetings."""
    phi = torch.zeros_like(target)
    velocity = torch.zeros_like(phi)
    for meeting in range(1, rounds + 1):
        theta = target + (phi - target) * (1 - lr) ** inner
        partners = outer.partners(0, meeting, len(target))
        mean = of_all if partners is None else partial(of_pairs, partners=torch.tensor(partners))
        phi, velocity = outer.update(theta, phi, velocity, mean)
    return phi


def test_replicas_reach_the_known_minimum():
    target = torch.randn(8, 3, dtype=torch.float64)
    torch.testing.assert_close(descend(DiLoCo(), target, 200), of_all(target), rtol=1e-12, atol=1e-12)
    phi = descend(NoLoCo(), target, 400)
    assert (phi - of_all(target)).abs().max() < 0.5 * (target - of_all(target)).abs().max()
    same = target[:1].expand_as(target)
    torch.testing.assert_close(descend(NoLoCo(), same, 200), same, rtol=1e-12, atol=1e-12)
    one = descend(DiLoCo(1, 1.0, 0.0), target, 3)  # averaging of weights
    torch.testing.assert_close(one, of_all(target) * (1 - 0.9**12), rtol=1e-13, atol=1e-13)


def weights(folder, name="net.safetensors"):
    return checkpoints.read_tensors(folder, name, checkpoints.read(folder))


def test_one_process_that_averages_with_itself_trains_as_ever_and_resumes_to_the_bit(tmp_path):
    train(tiny(validate_every=0), tmp_path / "plain", quiet=True)
    train(tiny(validate_every=0, outer=DiLoCo(1, 1.0, 0.0)), tmp_path / "average", quiet=True)
    given = tiny(validate_every=3, save_every=4, outer=NoLoCo(3))
    assert run_from(run_spec(given), None) == given
    train(given, tmp_path / "noloco", quiet=True)
    half = str(tmp_path / "noloco/checkpoints/step-0000004")  # between two meetings
    train(given, tmp_path / "on", resume=half, quiet=True)
    ends = [checkpoints.read(tmp_path / name / "checkpoints/step-0000006") for name in ("noloco", "on")]
    assert ends[0]["files"] == ends[1]["files"] and ends[0]["replicas"] == ends[1]["replicas"]
    plain, average, other = (weights(tmp_path / name / "final") for name in ("plain", "average", "noloco"))
    for key, value in plain.items():
        torch.testing.assert_close(average[key], value, rtol=0, atol=1e-6)
    assert any((other[key] - value).abs().max() > 1e-4 for key, value in plain.items())


def four(**changes):
    return tiny(optim={"name": "tests.contracts.my_optimiser:SGD"}, clip=1e9, steps=4, validate_every=0, **changes)


def replicas():
    """Processes that average their weights at each step; and four that meet in pairs, straight and resumed."""
    as_launched()
    folder, count = Path(os.environ["FOLDER"]), dist.get_world_size()
    train(four(outer=DiLoCo(1, 1.0, 0.0)), folder / f"average-{count}", quiet=True)
    if count == 4:
        pairs = four(outer=NoLoCo(2, 1.0, 0.0, 1.0), save_every=3)  # a pair gets its mean; saved between two meetings
        train(pairs, folder / "pairs", quiet=True)
        train(pairs, folder / "on", resume=str(folder / "pairs/checkpoints/step-0000003"), quiet=True)
    return {"done": torch.tensor(True)}


@pytest.mark.slow
def test_two_and_four_processes_that_average_each_step_train_as_one_and_pairs_resume_to_the_bit(tmp_path):
    """Of gradient descent the mean of equal replicas' steps is that on the mean gradient, if nothing is clipped."""
    train(four(), tmp_path / "one", quiet=True)
    for count in (2, 4):
        spread(
            "tests.gen.training.test_outer:replicas",
            count,
            tmp_path / f"ranks-{count}",
            timeout=600,
            FOLDER=str(tmp_path),
        )
        for name in ("net.safetensors", "net-ema.safetensors"):
            average = weights(tmp_path / f"average-{count}/final", name)
            for key, value in weights(tmp_path / "one/final", name).items():
                torch.testing.assert_close(average[key], value, rtol=0, atol=1e-6)
    there = tmp_path / "pairs/checkpoints/step-0000004"
    assert checkpoints.read(there)["files"] == checkpoints.read(tmp_path / "on/checkpoints" / there.name)["files"]
    replicas = [weights(there, f"state/replica-{i}/net.safetensors") for i in range(4)]
    partners = random_pairs(0, 2, 4)
    for i, j in itertools.combinations(range(4), 2):
        same = all(torch.equal(value, replicas[j][key]) for key, value in replicas[i].items())
        assert same == (partners[i] == j)
    for key, value in weights(there).items():
        torch.testing.assert_close(value, torch.stack([r[key] for r in replicas]).mean(0), rtol=0, atol=1e-7)


def test_what_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="scale fp16 apart"):
        Replicas(tiny(precision="fp16", outer="diloco"), {})
    replicas = Replicas(tiny(outer="noloco"), {})
    with pytest.raises(UserError, match=r"is of 2 processes that step apart, and here are 1: start 2, or "):
        replicas.restored(tmp_path, {"replicas": [{}, {}]})
