"""The data and the sizes of the comparison of adapters."""

import pytest
import torch

from gen.data.digits import Digits
from gen.training.lora import LoRA
from scripts.adapter_starts import BLOCKS, METHODS, Exchanged, _over, as_large, trained_numbers
from tests.models.test_families import digits


@pytest.mark.slow
def test_digits_are_exchanged_and_numbers_counted():
    data, plain = Exchanged("test"), Digits().open("test")
    assert len(data) == len(plain) and torch.equal(data[3]["x"], -plain[3]["x"]) and data[3]["y"] == plain[3]["y"]
    one, two = (trained_numbers(LoRA(rank), digits("dit").build()) for rank in (1, 2))
    assert two == 2 * one > 0
    equal = as_large(LoRA(4, targets=BLOCKS), digits("dit").build())
    assert tuple(lora.method for lora in equal) == METHODS and equal[0] == LoRA(4, targets=BLOCKS)
    numbers = [trained_numbers(lora, digits("dit").build()) for lora in equal]
    assert all(abs(n / numbers[0] - 1) < 0.1 for n in numbers)
    assert _over([{"loss": 1.0}, {"loss": 2.0}]) == {"loss": {"value": 1.5, "seeds": [1.0, 2.0]}}
