"""Lion against three steps by hand; groups, weight decay and state."""

import pytest
import torch
from torch import nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build, names
from gen.training.optim import decouple_weight_decay
from gen.training.optim.adamw import AdamW
from gen.training.optim.lion import Lion
from gen.training.trainer import train
from tests.gen.tiny import tiny


def test_three_steps_are_those_by_hand():
    """lr .1, weight decay .5, betas .9, .99: p <- .95 p -+ .1, whatever the gradient's size."""
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optim = Lion(lr=0.1, betas=(0.9, 0.99), weight_decay=0.5).build([{"params": [p], "scale": 1.0}])
    by_hand = [
        # gradient, sign of .9 m + .1 g, m after
        ([3.0, -1e-3, 0.0], [1.0, -1.0, 0.0], [0.03, -1e-5, 0.0]),
        ([-0.2, 1.0, 1.0], [1.0, 1.0, 1.0], [0.0277, 0.0099901, 0.01]),
        ([-1.0, -0.05, -0.2], [-1.0, 1.0, -1.0], [0.017423, 0.009390199, 0.0079]),
    ]
    expected = p.detach().clone()
    for gradient, sign, momentum in by_hand:
        p.grad = torch.tensor(gradient, dtype=torch.float64)
        optim.step()
        expected = 0.95 * expected - 0.1 * torch.tensor(sign, dtype=torch.float64)
        torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-15)
        m = torch.tensor(momentum, dtype=torch.float64)
        torch.testing.assert_close(optim.state[p]["exp_avg"], m, rtol=0, atol=1e-15)


def test_what_has_no_gradient_stays():
    moving, still = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optim = Lion(lr=0.1, weight_decay=0.1).build([moving, still])
    moving.grad = torch.ones(2)
    optim.step()
    assert torch.equal(still, torch.ones(2)) and still not in optim.state
    assert torch.allclose(moving, torch.full((2,), 0.89))


@pytest.mark.parametrize("name", names("training.optim"))
def test_the_product_of_rate_and_weight_decay_is_the_same_in_every_group(name):
    given = [{"params": [nn.Parameter(torch.ones(2))], "scale": scale} for scale in (1.0, 0.25)]
    optim = build("training.optim", {"name": name, "weight_decay": 0.02}).build(given)
    assert [g["weight_decay"] for g in optim.param_groups] == [0.02, 0.08]
    assert [g["scale"] for g in optim.param_groups] == [1.0, 0.25]
    for group in optim.param_groups:  # as the trainer does
        group["lr"] = 0.1 * group["scale"]
        for p in group["params"]:
            p.grad = torch.zeros(2)
    optim.step()
    assert all(torch.allclose(g["params"][0], torch.full((2,), 1 - 0.1 * 0.02)) for g in optim.param_groups)
    plain = nn.Parameter(torch.ones(1))
    assert decouple_weight_decay([plain], 0.1) == [{"params": plain, "weight_decay": 0.1}]


def test_it_trains_and_resumes_to_the_bit(tmp_path):
    optim = Lion(lr=1e-3, weight_decay=0.1)
    train(tiny(optim=optim), tmp_path / "whole", quiet=True)
    train(tiny(optim=optim, steps=3), tmp_path / "parts", quiet=True)
    train(tiny(optim=optim), tmp_path / "parts", quiet=True)
    last = "checkpoints/step-0000006"
    files = [checkpoints.read(tmp_path / name / last)["files"] for name in ("whole", "parts")]
    assert files[0] == files[1] and "state/net.safetensors" in files[0]
    state = checkpoints.read_tensors(
        tmp_path / "parts" / last, "state/net.safetensors", checkpoints.read(tmp_path / "parts" / last)
    )
    assert state and all(key.endswith("/exp_avg") for key in state)
    train(tiny(optim=AdamW(lr=1e-3)), tmp_path / "adam", quiet=True)
    assert checkpoints.read(tmp_path / "adam" / last)["files"] != files[0]


@pytest.mark.parametrize("bad", [lambda: Lion(lr=0), lambda: Lion(betas=(0.9, 1.0))])
def test_wrong_numbers_are_refused(bad):
    with pytest.raises(UserError, match="Lion: "):
        bad()
