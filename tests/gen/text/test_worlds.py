"""Exact laws of parallel decoding: golden numbers, closed forms, and what is promised of each policy."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.ancestral import Ancestral
from gen.samplers.decoding_policies.credit import Credit
from gen.samplers.decoding_policies.dream import Dream
from gen.samplers.decoding_policies.entropy_bound import EntropyBound
from gen.samplers.decoding_policies.factor import Factor
from gen.samplers.decoding_policies.local_leap import LocalLeap
from gen.samplers.decoding_policies.rcr import RCR
from gen.samplers.decoding_policies.remdm import ReMDM
from gen.samplers.decoding_policies.threshold import Threshold
from gen.samplers.decoding_policies.topk import TopK
from gen.text.contracts import CommitDecision, DecodingPolicy, StepView
from gen.text.decoding import Decoding, TokenSampling
from gen.text.loop import decode
from gen.text.worlds import (
    JointDistribution,
    decoded_distribution,
    insert_joint,
    parity_joint,
    remove_joint,
    replace_joint,
    shuffle_joint,
)

# Tasks, policies, and what comes out: success, total variation, KL in nats, expected evaluations

TASKS = {
    "replace-6": replace_joint(6),
    "shuffle-5": shuffle_joint(5),
    "insert-5": insert_joint(5),
    "remove-6": remove_joint(6),
    "parity-5": parity_joint(5),
}
POLICIES = {
    "two, left to right": TopK(2, "left_to_right"),
    "two surest": TopK(2),
    "threshold .9": Threshold(0.9),
    "threshold .7": Threshold(0.7),
    "threshold .5": Threshold(0.5),
    "factor 1": Factor(1.0),
    "factor 1.5": Factor(1.5),
    "bound .1": EntropyBound(0.1),
    "bound 1": EntropyBound(1.0),
    "at once": Threshold(0.0),
    "leap": LocalLeap(0.9, 0.75, 4),
    "bold leap": LocalLeap(0.8, 0.6, 2),
}
EXACT = (1, 0, 0)
GOLDEN = {
    "replace-6": {
        "two, left to right": (0.73351, 0.26649, 0.32124, 2.901),
        "two surest": (0.73351, 0.26649, 0.32124, 2.901),
        "threshold .9": (*EXACT, 4.333),
        "threshold .7": (0.40188, 0.59812, 0.91161, 1),
        "factor 1.5": (0.40188, 0.59812, 0.91161, 1),
        "bound .1": (*EXACT, 4.333),
        "bound 1": (0.86163, 0.22891, 0.19644, 2.440),
        "at once": (0.40188, 0.59812, 0.91161, 1),
        "leap": (*EXACT, 4.333),
        "bold leap": (0.40188, 0.59812, 0.91161, 1),
    },
    "shuffle-5": {
        "two, left to right": (0.53333, 0.46667, 0.62861, 2.333),
        "two surest": (0.53333, 0.46667, 0.62861, 2.333),
        "threshold .9": (*EXACT, 5),
        "threshold .7": (*EXACT, 5),
        "threshold .5": (0.5, 0.5, 0.69315, 4),
        "factor 1": (*EXACT, 5),
        "bound .1": (*EXACT, 5),
        "bound 1": (0.5, 0.5, 0.69315, 4),
        "at once": (0.0384, 0.9616, 3.25970, 1),
        "leap": (*EXACT, 5),
        "bold leap": (*EXACT, 5),
    },
    "insert-5": {
        "two, left to right": (0.40972, 0.59028, 1.05650, 2.236),
        "two surest": (0.73351, 0.26649, 0.32124, 2.901),
        "threshold .9": (*EXACT, 4.333),
        "threshold .7": (0.92882, 0.12847, 0.09019, 3.014),
        "factor 1": (0.92882, 0.12847, 0.09019, 3.014),
        "factor 1.5": (0.64300, 0.39609, 0.61344, 2.106),
        "bound .1": (*EXACT, 4.333),
        "bound 1": (0.64300, 0.39609, 0.61344, 2.106),
        "at once": (0.08230, 0.91770, 2.86730, 1),
        "leap": (*EXACT, 4.333),
        "bold leap": (0.49383, 0.50617, 1.07554, 1.802),
    },
    "remove-6": {
        "two, left to right": (0.81944, 0.33333, 0.36335, 2.708),
        "two surest": (0.92882, 0.12847, 0.09019, 2.901),
        "threshold .9": (*EXACT, 4),
        "threshold .7": (0.92882, 0.12847, 0.09019, 2.623),
        "factor 1": (0.92882, 0.12847, 0.09019, 2.623),
        "factor 1.5": (0.78189, 0.32202, 0.38239, 1.833),
        "bound .1": (*EXACT, 4),
        "bound 1": (0.78189, 0.32202, 0.38239, 1.833),
        "at once": (0.49383, 0.50617, 1.07554, 1),
        "leap": (*EXACT, 4),
        "bold leap": (0.67901, 0.32099, 0.61344, 1.679),
    },
    "parity-5": {
        "two, left to right": (*EXACT, 3),
        "two surest": (*EXACT, 3),
        "threshold .9": (*EXACT, 5),
        "threshold .7": (*EXACT, 5),
        "factor 1": (*EXACT, 5),
        "bound .1": (*EXACT, 5),
        "bound 1": (*EXACT, 3),
        "at once": (0.5, 0.5, 0.69315, 1),
    },
}
CELLS = [(task, policy) for task, line in GOLDEN.items() for policy in line]


def check(found, success, tv, kl, nfe):
    assert (found.success, found.total_variation, found.kl) == pytest.approx((success, tv, kl), abs=5.1e-6)
    assert found.nfe == pytest.approx(nfe, abs=5.1e-4)


@pytest.mark.parametrize(("task", "policy"), CELLS)
def test_golden_numbers(task, policy):
    check(decoded_distribution(TASKS[task], POLICIES[policy]), *GOLDEN[task][policy])


@pytest.mark.parametrize(
    ("joint", "factor", "below", "above"),
    [
        (replace_joint(6), 1.0, (0.86806, 0.28086, 0.24153, 2.350), (0.80376, 0.43146, 0.46105, 1.804)),
        (shuffle_joint(5), 1.5, (*EXACT, 5), (0.5, 0.5, 0.69315, 4)),
        (parity_joint(5), 1.5, (*EXACT, 5), (*EXACT, 3)),
    ],
)
def test_golden_numbers_on_both_sides_of_a_tie(joint, factor, below, above):
    """Such as 5/6 > 1 - 1/6: the rule is strict, but rounding would decide."""
    check(decoded_distribution(joint, Factor(factor - 1e-9)), *below)
    check(decoded_distribution(joint, Factor(factor + 1e-9)), *above)


@pytest.mark.parametrize(
    ("joint", "expected"),
    [(replace_joint(6), (0.73351, 0.26649, 0.30992, 2.901)), (insert_joint(5), (0.68368, 0.31632, 0.39528, 2.536))],
)
def test_golden_numbers_of_a_random_order(joint, expected):
    check(decoded_distribution(joint, TopK(2, "random"), over_orders=True), *expected)


# Closed forms


@pytest.mark.parametrize("n", [3, 5])
def test_total_correlation_of_one_step(n):
    """KL of decoding all at once is the sum of the entropies less the joint's."""
    assert decoded_distribution(replace_joint(n), TopK(n)).kl == pytest.approx(
        (n - 1) * math.log(n / (n - 1)), rel=1e-12
    )
    assert decoded_distribution(shuffle_joint(n), TopK(n)).kl == pytest.approx(
        n * math.log(n) - math.log(math.factorial(n)), rel=1e-12
    )
    assert decoded_distribution(parity_joint(n), TopK(n)).kl == pytest.approx(math.log(2), rel=1e-12)
    assert decoded_distribution(parity_joint(n), TopK(n - 1)).kl == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("steps", "shuffled", "replaced"),
    [
        (1, 0.0384, 0.40188),
        (2, 0.1776, 0.60512),
        pytest.param(4, 0.42966, 0.77889, marks=pytest.mark.slow),
        pytest.param(8, 0.66198, 0.88371, marks=pytest.mark.slow),
    ],
)
def test_ancestral_sampling(steps, shuffled, replaced):
    """The numbers of the closed form, the mean over all plans (gen.eval.bounds.ancestral)."""
    for joint, success in ((shuffle_joint(5), shuffled), (replace_joint(6), replaced)):
        assert decoded_distribution(joint, Ancestral(steps)).success == pytest.approx(success, abs=5.1e-6)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_evaluations_of_ancestral_sampling(steps):
    """Where no text can be lost: the steps in which at least one of L tokens is committed."""
    bits = torch.tensor(list(itertools.product((0, 1), repeat=4)))
    free = JointDistribution(bits, torch.full((16,), 1 / 16, dtype=torch.float64), 2)
    assert decoded_distribution(free, Ancestral(steps)).nfe == pytest.approx(
        steps * (1 - (1 - 1 / steps) ** 4), rel=1e-12
    )


# What is promised


def random_joint(seed, words=3, length=4):
    """All texts, their probabilities far from independent."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.tensor(list(itertools.product(range(words), repeat=length)))
    p = torch.rand(len(texts), generator=generator, dtype=torch.float64) ** 4
    return JointDistribution(texts, p / p.sum(), words)


def test_one_random_place_at_a_time_is_exact():
    found = decoded_distribution(random_joint(1), TopK(1, "random"), over_orders=True)
    assert found.total_variation < 1e-12
    assert found.nfe == pytest.approx(4)


def coins(n, p=0.25):
    """n independent tosses; p = 1/4 is exact in binary, so that no tie between places is decided by rounding."""
    texts = torch.tensor(list(itertools.product((0, 1), repeat=n)))
    return JointDistribution(texts, torch.tensor([1 - p, p], dtype=torch.float64)[texts].prod(1), 2)


def tossed(n, p):
    """The law of tossing all coins, keeping the first with the likeliest outcome, and tossing the others anew."""
    q = {}

    def toss(state, chance):
        left = [i for i in range(n) if state[i] is None]
        if not left:
            q[state] = q.get(state, 0.0) + chance
        for sides in itertools.product((0, 1), repeat=len(left)) if left else []:
            kept = sides.index(min(sides)) if p < 0.5 else sides.index(max(sides))
            new = tuple(sides[kept] if i == left[kept] else side for i, side in enumerate(state))
            toss(new, chance * math.prod(p if side else 1 - p for side in sides))

    toss((None,) * n, 1.0)
    return q


@pytest.mark.parametrize("n", [2, 3])
def test_an_order_that_uses_samples_is_biased(n):
    """Even one at a time: unlikely tokens wait, and are drawn again."""
    joint, q = coins(n), tossed(n, 0.25)
    tv = (
        sum(
            abs(q[tuple(text)] - p)
            for text, p in zip(joint.support.tolist(), joint.probabilities.tolist(), strict=True)
        )
        / 2
    )
    assert tv > 0.1
    assert TopK(1, "sample").order_depends_on_samples
    assert decoded_distribution(joint, TopK(1, "sample")).total_variation == pytest.approx(tv, rel=1e-12)
    assert decoded_distribution(joint, TopK(1)).total_variation < 1e-12


@pytest.mark.parametrize(("joint", "tv"), [(coins(2, 0.3), 0.147), (replace_joint(4), 0.28993)])
def test_golden_numbers_of_an_order_that_uses_samples(joint, tv):
    assert decoded_distribution(joint, TopK(1, "sample")).total_variation == pytest.approx(tv, abs=5.1e-6)


def test_two_coins_whose_order_uses_samples():
    """.637 instead of .49 for the likelier pair."""
    q = decode(
        coins(2, 0.3), [[]] * 4000, 2, Decoding(TopK(1, "sample"), stopping_rules=(), sampling=TokenSampling(1.0))
    )
    assert float((q.tokens.sum(1) == 0).double().mean()) == pytest.approx(0.637, abs=4 * (0.637 * 0.363 / 4000) ** 0.5)


@pytest.mark.parametrize("bound", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_an_entropy_bound_bounds_what_is_lost(seed, bound):
    found = decoded_distribution(random_joint(seed), EntropyBound(bound))
    assert -1e-12 < found.kl <= bound * found.nfe + 1e-12
    assert bound == 0 or found.nfe < 4 + 1e-12


def peaked(seed, length=5):
    """A joint with one text that is likelier than all others, more or less."""
    joint = random_joint(seed, 2, length)
    generator = torch.Generator().manual_seed(100 + seed)
    top = int(torch.randint(len(joint.probabilities), (), generator=generator))
    share = 0.4 + 0.6 * float(torch.rand((), generator=generator))
    p = joint.probabilities * (1 - share)
    p[top] += share
    return JointDistribution(joint.support, p, 2)


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_a_factor_of_at_most_one_commits_what_the_joint_holds_for_likeliest(factor):
    """Wu et al. 2025, theorem 1, at every state of many joints; and it does commit several."""
    several = 0
    for seed in range(60):
        joint = peaked(seed)
        state = torch.full((1, 5), joint.mask_token_id)
        while bool((state == joint.mask_token_id).any()):
            seen = StepView.of_block(joint(state).log_softmax(-1), state, joint.mask_token_id)
            places = Factor(factor).select(seen, {})[0].commit[0].nonzero()[:, 0]
            weights = joint.consistent_mass(state)[0]
            groups = {}
            for text, p in zip(joint.support[:, places].tolist(), weights.tolist(), strict=True):
                groups[tuple(text)] = groups.get(tuple(text), 0.0) + p
            if len(places) > 1:
                several += 1
                assert max(groups, key=groups.get) == tuple(seen.sampled[0, places].tolist())
            state = torch.where(torch.isin(torch.arange(5), places), seen.sampled, state)
    assert several > 20


def test_the_bound_of_the_factor_is_tight():
    """Just beyond it, n tokens that are each the likeliest make a text of probability 0."""
    n, eta = 4, 1e-3
    texts = torch.cat([torch.eye(n, dtype=torch.int64), torch.zeros(1, n, dtype=torch.int64)])
    p = torch.tensor([1 / (n + 1) + eta / n] * n + [1 / (n + 1) - eta], dtype=torch.float64)
    joint = JointDistribution(texts, p, 2)
    assert float(joint(torch.full((1, n), 2)).softmax(-1)[0, 0, 0]) > 1 - 1.01 / (n + 1)
    state = torch.full((1, n), 2)
    seen = StepView.of_block(joint(state).log_softmax(-1), state, joint.mask_token_id)
    assert Factor(1.1).select(seen, {})[0].commit.all()
    assert not bool(p.argmax() == n)
    assert Factor(1.0).select(seen, {})[0].commit.sum() < n


@pytest.mark.parametrize(("n", "success", "nfe"), [(9, 1, 9), (12, 0, 1)])
def test_a_threshold_does_not_see_dependence(n, success, nfe):
    """One of n items is replaced. Where 1 - 1/n passes, the likeliest are all written at once: none is replaced."""
    found = decoded_distribution(replace_joint(n), Threshold(0.9), greedy=True)
    assert (found.success, found.nfe) == (success, nfe)
    assert decoded_distribution(replace_joint(n), Factor(1.0 - 1e-9), greedy=True).success == 1


# The best that any order can do


@dataclass(frozen=True)
class Plan(DecodingPolicy):
    """Commits given places at each step."""

    parts: tuple[tuple[int, ...], ...]

    def select(self, view, state):
        now = torch.tensor(self.parts[int(view.step[0])])
        return CommitDecision(torch.isin(view.positions, now) & view.masked), state


@pytest.mark.parametrize(
    ("parts", "kl"), [(((0, 1, 2, 3, 4),), 2.34683), (((1, 3), (0, 2, 4)), 0.29110), (((1,), (3,), (0, 2, 4)), 0)]
)
def test_an_insertion_is_found_in_three_steps(parts, kl):
    assert decoded_distribution(insert_joint(4), Plan(parts)).kl == pytest.approx(kl, abs=5.1e-6)


# The enumeration against draws, and what it refuses


@pytest.mark.parametrize("policy", [TopK(2), EntropyBound(1.0), Ancestral(3), Dream(2)], ids=repr)
def test_draws_agree_with_the_law(policy):
    joint, rows = replace_joint(5), 3000
    exact = decoded_distribution(joint, policy)
    found = decode(joint, [[]] * rows, 5, Decoding(policy, "whole", stopping_rules=(), sampling=TokenSampling(1.0)))
    hits = (found.tokens[:, None] == joint.support).all(-1).any(1).double().mean()
    assert float(hits) == pytest.approx(exact.success, abs=4 * (exact.success * (1 - exact.success) / rows) ** 0.5)


@pytest.mark.parametrize("policy", [ReMDM(), RCR(), Credit()], ids=repr)
def test_a_law_is_refused_where_it_is_not_summed(policy):
    with pytest.raises(UserError, match="takes tokens back or draws its own"):
        decoded_distribution(shuffle_joint(4), policy)


def test_a_joint_knows_its_conditionals():
    joint = random_joint(3)
    state = torch.tensor([[3, 1, 3, 0]])
    table = joint(state).softmax(-1)[0]
    fits = (joint.support[:, 1] == 1) & (joint.support[:, 3] == 0)
    for token in range(3):
        p = joint.probabilities[fits & (joint.support[:, 2] == token)].sum() / joint.probabilities[fits].sum()
        assert float(table[2, token]) == pytest.approx(float(p), rel=1e-12)
    assert float(table[1, 1]) == 1
    assert float(table[:, joint.mask_token_id].sum()) == 0
