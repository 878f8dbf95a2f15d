"""A curriculum: which noise levels each stage trains, when it moves on, and that nothing of it is forgotten."""

import math

import pytest
import torch

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import EDM, VP, Flow, Trig
from gen.diffusion.times import LogitNormal, LogNormal, Shifted, UShaped
from gen.pipeline import load
from gen.training.log import read_metrics
from gen.training.objectives import Batch
from gen.training.objectives.curriculum import Curriculum, CurriculumState, TruncatedTimes
from gen.training.objectives.denoise import Denoising
from gen.training.trainer import train
from tests.gen.tiny import tiny

U = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
DENSITIES = [
    (LogitNormal(), Flow()),
    (LogNormal(-0.4, 1.0), EDM()),
    (UShaped(), Trig()),
    (Shifted(LogitNormal(), 3.0), VP()),
]


@pytest.mark.parametrize(("times", "path"), DENSITIES, ids=repr)
def test_stages_are_equal_shares_of_the_density_from_the_noisiest_on(times, path):
    objective = Curriculum(times=times, clusters=5)
    whole = times.at(U, path)
    for stage in range(1, 6):
        t = objective.stage_times(stage, path).at(U, path)
        lowest = times.at(torch.tensor(1 - stage / 5, dtype=torch.float64), path)
        assert float(t.min()) >= float(lowest)
        inside = whole[whole >= lowest]  # the density restricted to the stage's noise levels
        torch.testing.assert_close(t.quantile(U[::2000]), inside.quantile(U[::2000]), rtol=1e-3, atol=1e-6)
    assert objective.stage_times(5, path) is times and objective.stage_times(9, path) is times


@pytest.mark.parametrize(("times", "path"), DENSITIES, ids=repr)
def test_stages_may_be_equal_widths_of_log_snr(times, path):
    objective = Curriculum(times=times, clusters=4, by="log_snr")
    ends = torch.tensor([1e-3, 1 - 1e-3], dtype=torch.float64)
    clean, noisy = path.lam(times.at(ends, path)).tolist()
    lowest = [float(path.lam(objective.stage_times(k, path).at(torch.zeros(1).double(), path))) for k in (1, 2, 3)]
    assert lowest == pytest.approx([noisy + k / 4 * (clean - noisy) for k in (1, 2, 3)], abs=1e-9)


def roles(stage, **fields):
    torch.manual_seed(0)
    objective = Curriculum(**fields)
    nets = objective.roles(tiny().model.build(), None)
    torch.nn.init.normal_(nets["net"].final_layer.linear.weight, std=0.1)
    nets["curriculum"].stage.fill_(stage)
    return objective, {role: Denoiser(net, Flow(), Velocity()) for role, net in nets.items()}


def batch(n=64):
    noise = training_noise(0, 0, range(n))
    return Batch(noise.normal("data", (1, 8, 8)), {"y": noise.integers("y", 10)}, noise)


def test_the_last_stage_is_plain_denoising_to_the_bit():
    objective, nets = roles(20, times=LogitNormal())
    ((role, loss, logs),) = objective(nets, batch())
    ((plain_role, plain, _),) = Denoising(times=LogitNormal())(nets, batch())
    assert role == plain_role == "net" and torch.equal(loss, plain) and float(logs["stage"]) == 20
    _, early = roles(1, times=LogitNormal())
    assert not torch.equal(next(iter(objective(early, batch())))[1], plain)
    assert torch.equal(objective.validate(early, batch()), Denoising(times=LogitNormal()).validate(nets, batch()))


def test_a_stage_ends_when_the_mean_loss_stops_falling():
    state = CurriculumState()

    def stages(losses, smoothing=0.0, patience=3, longest=math.inf):
        return [state.update(loss, smoothing, patience, longest) or int(state.stage) for loss in losses]

    assert stages([5, 4, 3, 3, 3, 3]) == [1, 1, 1, 1, 1, 2]
    assert stages([9, 8, 8.5, 7, 8, 8, 8]) == [2, 2, 2, 2, 2, 2, 3]  # higher than the old stage's, and rising again
    assert stages([1, 0.9, 0.8, 0.7], longest=4) == [3, 3, 3, 4]
    assert stages([1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5], smoothing=0.9) == [4, 4, 4, 4, 4, 4, 4]  # 1 .9 .86 .82 ...


def test_the_last_stage_stays():
    objective, nets = roles(2, clusters=3, patience=1)
    for loss in (1.0, 1.0, 1.0, 1.0, 1.0):
        objective.observe(nets, {"loss": loss})
    assert int(nets["curriculum"].net.stage) == 3


def test_training_widens_its_noise_levels_and_resumes_to_the_bit(tmp_path):
    objective = Curriculum(times=LogitNormal(), clusters=4, patience=1, smoothing=0.0)
    settings = {"objective": objective, "validate_every": 0, "steps": 14}
    train(tiny(**settings), tmp_path / "whole", quiet=True)
    train(tiny(**settings | {"steps": 5}), tmp_path / "parts", quiet=True)
    middle = tmp_path / "parts/checkpoints/step-0000005"
    memory = checkpoints.read_tensors(middle, "curriculum.safetensors", checkpoints.read(middle))
    assert int(memory["stage"]) > 1  # so there is something to forget
    train(tiny(**settings), tmp_path / "parts", quiet=True)
    last = "checkpoints/step-0000014"
    files = [checkpoints.read(tmp_path / name / last)["files"] for name in ("whole", "parts")]
    assert files[0] == files[1] and "state/curriculum.safetensors" not in files[0]
    stages = [e["stage"] for e in read_metrics(tmp_path / "whole/metrics.jsonl")]
    assert stages[0] == 1 and stages == sorted(stages) and stages[-1] == 4
    assert load(tmp_path / "whole").sample(2, steps=1).x.isfinite().all()


def test_it_is_a_plug_in_like_the_others():
    objective = build("training.objectives", {"name": "curriculum", "times": "logit_normal", "clusters": 3})
    assert build("training.objectives", spec_of(objective)) == objective
    truncated = TruncatedTimes(LogitNormal(), 0.5)
    assert float(truncated.at(torch.zeros(1).double(), Flow())) == 0.5


@pytest.mark.parametrize("bad", [{"clusters": 0}, {"patience": 0}, {"longest": 0}, {"smoothing": 1.0}])
def test_wrong_numbers_are_refused(bad):
    ((name, value),) = bad.items()
    with pytest.raises(UserError, match=f"Curriculum: {name} = {value}"):
        Curriculum(**bad)
