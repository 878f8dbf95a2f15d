"""Power-function averages, and those of other lengths made of them afterwards."""

import math

import pytest
import torch
from torch import nn

from gen.cli import main
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.pipeline import load
from gen.training.averages import Averages
from gen.training.ema import Classic, Power, gamma_from_std
from gen.training.posthoc_ema import coefficients, reconstruct
from gen.training.trainer import train
from tests.gen.tiny import tiny

TWO = (Power(std=0.05), Power(std=0.10))


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.9722), (0.10, 6.9372), (0.15, 3.5579), (0.20, 1.8262)])
def test_exponents_are_the_published_ones(std, gamma):
    found = gamma_from_std(std)
    assert found == pytest.approx(gamma, abs=1e-4)
    assert math.sqrt((found + 1) / ((found + 2) ** 2 * (found + 3))) == pytest.approx(std, rel=1e-14)
    assert Power(std=std).decay_at(100) == pytest.approx((1 - 1 / 100) ** (found + 1))
    assert Power(std=std).decay_at(1) == 0  # the first update is copied


def test_the_weighting_is_a_power_of_time_with_its_standard_deviation():
    steps, profile = 4000, Power(std=0.1)
    weights = torch.zeros(steps, dtype=torch.float64)
    for t in range(1, steps + 1):
        decay = profile.decay_at(t)
        weights *= decay
        weights[t - 1] += 1 - decay
    place = (torch.arange(steps, dtype=torch.float64) + 1) / steps
    spread = ((weights * place**2).sum() - (weights * place).sum() ** 2).sqrt()
    assert float(weights.sum()) == pytest.approx(1)
    assert float(spread) == pytest.approx(0.1, rel=1e-3)
    torch.testing.assert_close(weights[2000:] / weights[-1], place[2000:] ** profile.gamma, rtol=3e-3, atol=0)


def test_several_profiles_have_names_of_their_own():
    assert [p.label for p in TWO] == ["power-0.050", "power-0.100"]
    assert Power(label="long", std=0.2).label == "long"
    with pytest.raises(UserError, match=r"two averages are called 'power-0\.050'"):
        tiny(ema=(Power(), Power()))
    for std in (0.0, 0.3):
        with pytest.raises(UserError, match=f"std = {std}"):
            Power(std=std)


def test_a_role_without_parameters_is_averaged_by_copying():
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

    net = Memory()
    averages = Averages((Classic(), Power()), {"memory": net})
    averages.follow({"memory": net})
    net.seen.fill_(3)
    averages.update(5)
    assert [float(average.seen) for average in averages.nets.values()] == [3, 3]


STEPS, SNAPSHOTS, WIDTH = 4096, 16, 400


@pytest.fixture(scope="module")
def walk():
    """A random walk, and its averages by std: {std: {step: average}}."""
    x = torch.randn(STEPS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)
    averages = {}
    for std in (0.03, 0.05, 0.07, 0.10, 0.15, 0.20):
        running, profile = torch.zeros(WIDTH, dtype=torch.float64), Power(std=std)
        averages[std] = {}
        for t in range(1, STEPS + 1):
            running.lerp_(x[t - 1], 1 - profile.decay_at(t))
            if t % (STEPS // SNAPSHOTS) == 0:
                averages[std][t] = running.clone()
    return averages


@pytest.mark.parametrize(("std", "bound"), [(0.03, 2.5e-3), (0.07, 2e-4), (0.15, 4e-4), (0.20, 3e-3)])
def test_two_averages_at_sixteen_steps_give_any_other(walk, std, bound):
    known = [(t, s) for t in walk[0.05] for s in (0.05, 0.10)]
    gammas = [gamma_from_std(s) for _, s in known]
    shares, error = coefficients([t for t, _ in known], gammas, STEPS, gamma_from_std(std))
    found = sum(share * walk[s][t] for share, (t, s) in zip(shares, known, strict=True))
    truth = walk[std][STEPS]

    def off(estimate):
        return float((estimate - truth).norm() / truth.norm())

    assert off(found) < bound < min(off(walk[s][STEPS]) for s in (0.05, 0.10)) / 20
    assert error < 0.05 and float(shares.sum()) == pytest.approx(1)


def test_what_was_tracked_is_itself():
    steps, gammas = [10, 10, 20, 20], [gamma_from_std(s) for s in (0.05, 0.1)] * 2
    shares, error = coefficients(steps, gammas, 20, gammas[1])
    assert shares.tolist() == pytest.approx([0, 0, 0, 1], abs=1e-12) and error < 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that tracked a third average, the truth."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("posthoc") / "run"
    run = tiny(ema=(*TWO, Power(label="truth", std=0.08)), steps=64, save_every=4, keep=100, validate_every=0)
    train(run, place, quiet=True)
    return place


def of(pipeline):
    return torch.cat([v.flatten() for v in pipeline.denoiser.net.state_dict().values()])


@pytest.mark.parametrize("step", [None, 48])
def test_a_run_gives_an_average_it_did_not_track(folder, tmp_path, step):
    made = reconstruct(folder, 0.08, tmp_path / "made", step=step, labels=("power-0.050", "power-0.100"))
    place = folder / "checkpoints" / checkpoints.checkpoint_name(step or 64)
    truth, raw, near = (of(load(place, w)) for w in ("truth", "raw", "power-0.100"))
    loaded = load(tmp_path / "made")
    found = of(loaded)
    assert loaded.weights == "power-0.080" and loaded.info["step"] == made.step == (step or 64)
    assert torch.equal(of(load(tmp_path / "made", "raw")), raw)
    assert (found - truth).norm() < 0.05 * (near - truth).norm()  # and the nearest that was tracked is not it
    assert made.checkpoints == made.step // 4 and made.profiles == 2 and made.error < 0.02
    assert loaded.sample(2, steps=1).x.isfinite().all()


def test_the_command_writes_a_checkpoint_and_says_how_well(folder, tmp_path, capsys):
    assert main(["ema", str(folder), "--std", "0.12", "--out", str(tmp_path / "a")]) == 0
    assert "std 0.12 at step 64 from 16 checkpoints with 3 averages; weighting off by 0." in capsys.readouterr().out
    assert main(["sample", str(tmp_path / "a"), "-n", "2", "--steps", "1", "--out", str(tmp_path / "a.png")]) == 0
    assert main(["ema", str(folder), "--std", "0.12", "--out", str(tmp_path / "a")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_too_little_is_refused_by_number(folder, tmp_path):
    train(tiny(ema=TWO, steps=8, save_every=2, keep=2, validate_every=0), tmp_path / "pruned", quiet=True)
    with pytest.raises(
        UserError, match=r"2 checkpoints with 2 averages come no closer than \d\d% to std 0.2 at step 8"
    ):
        reconstruct(tmp_path / "pruned", 0.2, tmp_path / "out")
    with pytest.raises(UserError, match=r"1 power averages given where two are needed.*--ema"):
        reconstruct(folder, 0.1, tmp_path / "out", labels=("truth",))
    train(tiny(steps=2, validate_every=0), tmp_path / "classic", quiet=True)
    with pytest.raises(UserError, match="0 power averages given"):
        reconstruct(tmp_path / "classic", 0.1, tmp_path / "out")
    with pytest.raises(UserError, match=r"no power average 'other'; it has power-0\.050, power-0\.100"):
        reconstruct(folder, 0.1, tmp_path / "out", labels=("other",))
    with pytest.raises(UserError, match=r"has no checkpoint of step 5; it has 4, 8"):
        reconstruct(folder, 0.1, tmp_path / "out", step=5)
    with pytest.raises(UserError, match="nowhere holds no checkpoints of a training: give the folder of a run"):
        reconstruct(tmp_path / "nowhere", 0.1, tmp_path / "out")
    with pytest.raises(UserError, match=r"std = 0\.5"):
        reconstruct(folder, 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_power_averages_resume_to_the_bit(tmp_path):
    train(tiny(ema=TWO), tmp_path / "whole", quiet=True)
    train(tiny(ema=TWO, steps=3), tmp_path / "parts", quiet=True)
    train(tiny(ema=TWO), tmp_path / "parts", quiet=True)
    files = [checkpoints.read(tmp_path / name / "final")["files"] for name in ("whole", "parts")]
    assert files[0] == files[1] and "net-power-0.100.safetensors" in files[0]
