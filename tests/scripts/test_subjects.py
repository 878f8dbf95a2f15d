"""What the study of subjects and styles measures is there in the pictures that teach it, and in no others."""

import pytest
import torch

from gen.data.captioned_digits import CaptionedDigits, caption
from scripts.subjects import LEARNED, every


@pytest.mark.parametrize("learned", LEARNED, ids=lambda one: one.name)
def test_pictures_are_told_from_others(learned):
    (few, shown), others = learned.pictures(), CaptionedDigits().open("test")
    x = others[torch.arange(len(others))]["x"]
    assert learned.found(few).all() and not learned.found(x).any()
    assert not learned.found(learned.without(few)).any()
    assert all(weight == 1 for _, weight, _ in shown) and len(shown) == len(few)


def test_captions_get_the_word():
    subject, style = LEARNED
    assert subject.words(7, 0, 2, 1) == "the digit sks seven, thin and turned right"
    assert style.words(8, 2, 0, 2) == caption(8, 2, 0, 2).replace("eight", "sks eight")
    assert all(turn in range(3) and digit == 7 and weight != 1 for digit, weight, turn in subject.asked)
    assert {digit for digit, _, _ in style.asked} == {5, 6, 7, 8, 9} and len(every(range(10))) == 78
