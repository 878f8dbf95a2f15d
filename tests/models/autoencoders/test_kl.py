"""The autoencoder that is trained here: diffusers' network inside, under the switches of a run."""

import torch

from gen.models.autoencoders.kl import KL
from gen.training.state import enable


def test_gradient_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    net = KL(size=16, width=16, multipliers=(1, 2), groups=4).build().train()
    x, t, kept = torch.randn(2, 3, 16, 16), torch.zeros(2), []
    for _ in range(2):
        net.zero_grad()
        net(x, t, {}).square().mean().backward()
        kept.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
        assert enable(net, "gradient_checkpointing")
    assert len(kept[0]) == len(kept[1]) and all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
