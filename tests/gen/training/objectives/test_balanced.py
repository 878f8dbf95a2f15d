"""Balanced: Switch's loss of a mixture of memories, added to any objective."""

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import training_noise
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.training.objectives import Batch
from gen.training.objectives.balanced import Balanced
from gen.training.objectives.denoise import Denoising
from gen.training.objectives.lib.routing import routers


def network(mixer):
    torch.manual_seed(0)
    spec = {"name": "mixer", "mixer": mixer, "size": 4, "patch": 1, "channels": 1, "classes": 0, "width": 8, "depth": 2}
    return build("models", spec).build().double()


def loss_of(objective, net, rows):
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[rows]
    batch = Batch(x, {}, training_noise(0, 0, range(4)[rows]))
    objective.roles(net, None)
    [(role, loss, logs)] = objective({"net": Denoiser(net, Flow(), Velocity())}, batch)
    assert role == "net"
    return loss, logs


def test_the_imbalance_is_that_of_each_picture_s_memories_however_the_batch_is_cut():
    net, rows = network({"name": "mom", "memories": 4, "chosen": 2}), slice(0, 4)
    for router in routers(net):
        torch.nn.init.zeros_(router.weight)
    loss, logs = loss_of(Balanced(weight=0.5), net, rows)
    plain = loss_of(Denoising(), net, rows)[0]
    assert float(logs["imbalance"]) == pytest.approx(1, abs=1e-12)  # P is 1/4 of each, whatever f is
    torch.testing.assert_close(loss, plain + 0.5)
    for router in routers(net):  # the first two get all
        router.register_forward_hook(
            lambda router, given, out: (torch.tensor([0, 1]).expand_as(out[0]), out[1], torch.tensor([0.5, 0.5, 0, 0])
            .double().expand_as(out[2]))
        )  # fmt: skip
    assert float(loss_of(Balanced(), net, rows)[1]["imbalance"]) == pytest.approx(2, abs=1e-12)
    net = network("mom")
    parts = [loss_of(Balanced(), net, part)[0] for part in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(loss_of(Balanced(), net, rows)[0], (parts[0] + 3 * parts[1]) / 4)
    loss = loss_of(Balanced(), net, rows)[0] - loss_of(Denoising(), net, rows)[0]
    loss.backward()
    assert all(router.weight.grad.abs().max() > 0 for router in routers(net))


def test_what_has_no_router_is_refused():
    with pytest.raises(UserError, match="no router"):
        Balanced().roles(network("gla"), None)
    with pytest.raises(UserError, match="balanced already"):
        Balanced(Balanced())
