"""Label accuracy by hand."""

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.metrics.accuracy import Accuracy


def test_counts_the_labels_asked_for() -> None:
    scores = torch.eye(4)
    assert Accuracy()(scores, torch.tensor([0, 1, 2, 0])).value == 0.75
    assert Accuracy()(scores, torch.arange(4)).value == 1.0


def test_all_right_is_not_certain() -> None:
    scores, labels = torch.eye(2).repeat(50, 1), torch.arange(2).repeat(50)
    found = Accuracy()(scores, labels)
    assert found.value == 1.0 and found.n == 100
    assert found.se == pytest.approx((102 / 104 * 2 / 104 / 104) ** 0.5)


@pytest.mark.parametrize(
    ("labels", "says"),
    [(torch.arange(3), r"scores \[4, 4\] against labels \[3\]"), (torch.tensor([0, 1, 2, 4]), "label 4")],
)
def test_refuses_labels_that_do_not_fit(labels: torch.Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Accuracy()(torch.eye(4), labels)
