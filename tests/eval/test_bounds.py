"""What parallel decoding costs at best: closed forms, exact optima, and that no policy is better than the front."""

import itertools
import math

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.bounds import ancestral, optimal_front, optimal_partition, replace_success, shuffle_success
from gen.samplers.decoding_policies.entropy_bound import EntropyBound
from gen.samplers.decoding_policies.factor import Factor
from gen.samplers.decoding_policies.threshold import Threshold
from gen.samplers.decoding_policies.topk import TopK
from gen.text.worlds import (
    JointDistribution,
    decoded_distribution,
    insert_joint,
    parity_joint,
    remove_joint,
    replace_joint,
    shuffle_joint,
)


def test_closed_forms_are_those_of_one_step_and_of_one_token_at_a_time():
    assert replace_success(6, [6]) == pytest.approx((5 / 6) ** 5)
    assert replace_success(6, [1] * 6) == pytest.approx(1)
    assert shuffle_success(5, [5]) == pytest.approx(math.factorial(5) / 5**5)
    assert shuffle_success(5, [1] * 5) == pytest.approx(1)
    assert shuffle_success(5, [2, 0, 2, 1]) == shuffle_success(5, [2, 2, 1]) == pytest.approx(0.53333, abs=5e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize(("success", "joint"), [(replace_success, replace_joint), (shuffle_success, shuffle_joint)])
def test_closed_forms_are_the_law_of_k_tokens_a_step(success, joint, k):
    sizes = [k] * (4 // k) + [4 % k]
    assert success(4, sizes) == pytest.approx(
        decoded_distribution(joint(4), TopK(k, "left_to_right")).success, abs=1e-12
    )


@pytest.mark.parametrize(
    ("success", "n", "values"),
    [
        (shuffle_success, 5, {1: 0.0384, 2: 0.1776, 4: 0.42966, 8: 0.66198}),
        (replace_success, 6, {1: 0.40188, 2: 0.60512, 4: 0.77889, 8: 0.88371}),
    ],
)
def test_ancestral_sampling_is_the_mean_over_all_plans(success, n, values):
    for steps, value in values.items():
        assert ancestral(success, n, steps) == pytest.approx(value, abs=5e-6)


@pytest.mark.parametrize(
    ("joint", "values"),
    [
        (replace_joint(5), [0.89257, 0.39217, 0.15518, 0.05053, 0]),
        (shuffle_joint(4), [2.36712, 0.98083, 0.28768, 0]),
        (insert_joint(4), [2.34683, 0.29110, 0]),
        (parity_joint(4), [0.69315, 0]),
    ],
)
def test_the_least_divergence_of_so_many_steps(joint, values):
    found = [optimal_partition(joint, t) for t in range(1, len(values) + 1)]
    assert [b.kl for b in found] == pytest.approx(values, abs=5e-6)
    assert all(a.success <= b.success + 1e-12 for a, b in itertools.pairwise(found))
    assert sorted(i for part in found[-1].parts for i in part) == list(range(joint.support.shape[1]))


def test_the_best_two_steps_of_an_insertion_are_the_odd_places_first():
    assert optimal_partition(insert_joint(4), 2).parts == ((1, 3), (0, 2, 4))
    assert optimal_partition(replace_joint(5), 1).kl == pytest.approx(4 * math.log(5 / 4))
    assert optimal_partition(shuffle_joint(4), 1).kl == pytest.approx(4 * math.log(4) - math.log(24))
    assert optimal_partition(shuffle_joint(4), 2).success == pytest.approx(shuffle_success(4, [2, 2]))


POLICIES = [
    Threshold(0.9),
    Threshold(0.7),
    Threshold(0.4),
    Factor(1.0),
    Factor(1.5),
    EntropyBound(0.1),
    EntropyBound(1.0),
    TopK(1),
    TopK(2),
    TopK(3, "left_to_right"),
    TopK(9),
]


@pytest.mark.parametrize(
    "joint", [replace_joint(5), shuffle_joint(4), insert_joint(4), remove_joint(5), parity_joint(4)]
)
def test_no_policy_is_above_the_front(joint):
    corners = optimal_front([(joint, 1.0)])
    forwards = [(joint.support.shape[1] / rate, success) for rate, success in reversed(corners)]
    assert forwards == sorted(forwards)
    assert forwards[-1][1] == pytest.approx(1)
    for policy in POLICIES:
        found = decoded_distribution(joint, policy)
        assert found.success <= height(forwards, found.nfe) + 1e-9, policy


def height(corners, x):
    """The front at so many forwards."""
    if x >= corners[-1][0]:
        return corners[-1][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        if x0 <= x + 1e-9 and x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    raise AssertionError(f"{x} is less than one forward")


def test_the_front_of_tokens_that_are_independent_is_a_point():
    bits = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    joint = JointDistribution(bits, torch.tensor([0.42, 0.28, 0.18, 0.12], dtype=torch.float64), 2)
    assert optimal_front([(joint, 1.0)]) == [(pytest.approx(2), pytest.approx(1))]


def test_the_front_of_a_pair_by_hand():
    """Two bits that are equal: one after the other is right in two forwards, both at once is half right in one."""
    joint = JointDistribution(torch.tensor([[0, 0], [1, 1]]), torch.tensor([0.5, 0.5], dtype=torch.float64), 2)
    assert optimal_front([(joint, 1.0)]) == [
        (pytest.approx(1), pytest.approx(1)),
        (pytest.approx(2), pytest.approx(0.5)),
    ]
    one = JointDistribution(torch.tensor([[0, 1]]), torch.tensor([1.0], dtype=torch.float64), 2)
    mixed = optimal_front([(joint, 1.0), (one, 1.0)])
    assert mixed == [(pytest.approx(4 / 3), pytest.approx(1)), (pytest.approx(2), pytest.approx(0.75))]


@pytest.mark.parametrize(
    "ask",
    [
        lambda: optimal_partition(shuffle_joint(3), 4),
        lambda: optimal_partition(replace_joint(8), 1),
        lambda: replace_success(3, [2, 2]),
    ],
)
def test_what_has_no_answer_is_refused(ask):
    with pytest.raises(UserError):
        ask()
