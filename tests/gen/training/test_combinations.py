"""Options of a run that save memory or time: any two of them train what neither does, up to rounding."""

import itertools

import pytest

from gen import load
from gen.training.trainer import train
from tests.gen.tiny import tiny

OPTIONS = {
    "micro_batch_size": 4,
    "gradient_checkpointing": True,
    "ema_device": "cpu",
    "fused": True,
    "precision": "bf16",
    "compile": True,
}
PAIRS = list(itertools.combinations(OPTIONS, 2))


def trained(folder, **changes):
    run = tiny(steps=3, optim={"name": "tests.contracts.my_optimiser:SGD"}, **changes)
    train(run, folder, quiet=True)
    return load(folder, allow=["tests"]).denoiser.net.state_dict()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # PyTorch's own compiler
@pytest.mark.parametrize(
    "pair", [pytest.param(p, marks=[pytest.mark.slow] * ("compile" in p), id=" and ".join(p)) for p in PAIRS]
)
def test_two_options_train_what_none_does(plain, tmp_path, pair):
    ours = trained(tmp_path / "run", **{name: OPTIONS[name] for name in pair})
    assert ours.keys() == plain.keys()
    worst = max(float((ours[key] - plain[key]).abs().max()) for key in plain)
    assert worst < (1e-3 if "precision" in pair else 1e-6)
