"""A user's optimiser, outside gen: plain gradient descent, whose steps show how large a gradient is."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SGD:
    lr: float = 0.1
    momentum: float = 0.9

    def build(self, parameters):
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)
