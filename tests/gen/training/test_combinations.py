"""Options of a run that save memory or time: any two of them train what neither does, up to rounding."""

import itertools
from dataclasses import replace

import pytest

from gen import load
from gen.config.spec import override
from gen.training.log import read_metrics
from gen.training.recipes.lists import lists
from gen.training.recipes.lists_blocks import lists_blocks
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
SGD = {"name": "tests.contracts.my_optimiser:SGD"}
PAIRS = list(itertools.combinations(OPTIONS, 2))


def trained(folder, **changes):
    run = tiny(steps=3, optim=SGD, **changes)
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


SMALL = {"steps": 3, "batch_size": 8, "model.width": 16, "model.depth": 1, "model.heads": 2, "optim": SGD,
         "sample_every": 0, "validate_every": 3, "save_every": 0, "log_every": 1}  # fmt: skip


EXPERTS = {"model.experts": {"count": 4, "top_k": 2, "hidden": 16}, "objective.balance": 0.1}
CASES = [(lists, name, {}) for name in ("bd3", "cart", "fast_dllm", "llada", "mdlm")]
CASES += [(lists_blocks, "bd3", {}), (lists_blocks, "fast_dllm", EXPERTS), (lists, "mdlm", EXPERTS)]


@pytest.mark.parametrize(("recipe", "objective", "more"), CASES)
def test_losses_of_texts_do_not_depend_on_how_a_batch_is_cut(tmp_path, recipe, objective, more):
    """Texts have unlike numbers of trained tokens: a mean over tokens is none over micro-batches."""
    run, weights, logs = override(recipe(), SMALL | {"objective": objective} | more), [], []
    for size in (8, 2):
        train(replace(run, micro_batch_size=size), folder := tmp_path / f"{size}", quiet=True)
        weights.append(load(folder, allow=["tests"]).net.state_dict())
        logs.append(read_metrics(folder / "metrics.jsonl"))
    assert max(float((weights[0][key] - weights[1][key]).abs().max()) for key in weights[0]) < 1e-6
    assert logs[0][0]["loss"] == pytest.approx(logs[1][0]["loss"], rel=1e-5)
