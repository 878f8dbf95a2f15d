"""A user's network, outside gen: two convolutions, with time and class between them."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class MyModel:
    size: int = 8
    channels: int = 1
    classes: int = 10
    width: int = 16

    def build(self):
        return MyNet(self)


class MyNet(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.first = nn.Conv2d(spec.channels, spec.width, 3, padding=1)
        self.time = nn.Linear(1, spec.width)
        self.label = nn.Embedding(spec.classes + 1, spec.width)  # the last row is "no class"
        self.last = nn.Conv2d(spec.width, spec.channels, 3, padding=1)

    def forward(self, x, t, cond, *, s=None, tap=None):
        c = self.time(t[:, None].to(x)) + self.label(cond["y"])
        return self.last((self.first(x) + c[:, :, None, None]).relu())

    def null(self, cond):
        return {**cond, "y": torch.full_like(cond["y"], self.spec.classes)}
