"""Plain gradient descent, for tests that compare gradients: what Adam does with one hardly depends on its size."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SGD:
    """Steps of lr along the gradient, with momentum, which is its state."""

    lr: float = 0.1
    momentum: float = 0.9

    def build(self, parameters):
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum)
