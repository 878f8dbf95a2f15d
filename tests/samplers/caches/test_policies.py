import json

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.tap import Context
from gen.samplers.caches.custom import Custom
from gen.samplers.caches.policies.gate import Gate
from gen.samplers.caches.policies.indicator import Indicator
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.policies.lib.distance import relative_l1
from gen.samplers.caches.policies.magnitude import Magnitude
from gen.samplers.caches.policies.mask import Mask
from gen.samplers.caches.policies.residual import Residual
from gen.samplers.caches.policies.verify import Verify
from tests.samplers.caches.toy import Toy, contexts, walk


def decisions(policy, steps, present=None):
    """What a policy without a probe decides at the steps at which its branch is there."""
    state, out = policy.init(), {}
    for step in range(steps) if present is None else present:
        (out[step],), state = policy.decide(Context(step, steps, 0, 1 - step / steps), state, None, None)
    return out


def computed(policy, steps, present=None):
    return [step for step, full in decisions(policy, steps, present).items() if full]


def watched(policy, values, between=None):
    """A probed policy over a list of probe outputs [B, D] (inputs, for one that looks early): rows of decisions."""
    state, out = policy.init(), []
    for step, value in enumerate(values):
        h = value if policy.early else torch.zeros_like(value)
        rows, state = policy.decide(Context(step, len(values), 0, 1 - step / len(values)), state, h, value)
        out.append(list(rows))
    return out


@pytest.mark.parametrize(("interval", "full"), [(3, 18), (4, 14), (5, 11), (6, 10), (7, 8)])
def test_interval_has_the_published_full_steps_of_50(interval, full):
    assert len(computed(Interval(interval, warmup=2), 50)) == full


def test_interval_has_the_published_full_steps_of_flux():
    assert [len(computed(Interval(n, warmup=3), 50)) for n in (4, 5, 6, 7)] == [14, 12, 10, 9]


def test_interval_counts_from_the_branch_s_own_last_computed_step():
    assert computed(Interval(4, warmup=2), 12) == [0, 1, 5, 9]
    assert computed(Interval(4, warmup=2), 20, [7, 8, 9, 10, 11, 17, 18]) == [7, 11, 17]


def test_mask_is_followed_and_must_fit():
    mask = Mask((False, True, False, True))
    assert computed(mask, 4) == [0, 1, 3]  # nothing could stand for the first
    assert computed(mask, 4, [2, 3]) == [2, 3]
    assert computed(Mask(), 4) == [0, 1, 2, 3]
    with pytest.raises(UserError, match="a mask of 4 steps was given to a loop of 5"):
        computed(mask, 5)


def test_magnitude_spends_its_budget():
    """Ratios of 0.9: the product's distances from 1 are 0.1, 0.19, 0.271, in all 0.1, 0.29."""
    ratios = (1.0, *[0.9] * 9)
    assert computed(Magnitude(ratios, threshold=0.15, retention=0.2), 10) == [0, 1, 3, 5, 7, 9]
    assert computed(Magnitude(ratios, threshold=0.3, retention=0.2), 10) == [0, 1, 4, 7]
    assert computed(Magnitude((1.0,) * 10, threshold=0.1, longest=3, retention=0.0), 10) == [0, 4, 8]
    assert computed(Magnitude((), threshold=9.0), 10) == list(range(10))


def test_magnitude_takes_the_nearest_ratio_for_other_step_counts():
    ratios = tuple(1 + k / 100 for k in range(21))
    policy = Magnitude(ratios)
    assert [policy._ratio(step, 11) for step in (0, 5, 10)] == [ratios[0], ratios[10], ratios[20]]
    assert [policy._ratio(step, 41) for step in (0, 20, 40)] == [ratios[0], ratios[10], ratios[20]]


def test_magnitude_counts_the_steps_that_its_branch_missed():
    ratios = (1.0, *[0.9] * 9)
    there = computed(Magnitude(ratios, threshold=0.15, retention=0.0), 10, [0, 1, 4, 5])
    assert there == [0, 4]  # at 4 three more ratios have passed


def test_distance_is_of_each_row_alone():
    a, b = torch.tensor([[1.0, 3.0], [0.0, 0.0], [2.0, 2.0]]), torch.tensor([[2.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    assert relative_l1(a, b) == [0.5, 0.0, float("inf")]


def test_residual_compares_with_the_last_computed_step():
    """1, 1.05, 1.1, 1.15, 1.2, 1.25: no step is 8 % from the one before, but 1.1 is from 1, and 1.2 from 1.1."""
    values = [torch.tensor([[1 + 0.05 * k], [1.0]]) for k in range(6)]
    rows = watched(Residual(threshold=0.08), values)
    assert [row[0] for row in rows] == [True, False, True, False, True, False]
    assert [row[1] for row in rows] == [True, False, False, False, False, False]


def test_indicator_adds_up_step_by_step():
    """Each step adds 0.1: the sum reaches 0.25 at the third; the first and the last step are computed always."""
    values = [torch.full((1, 4), 1.1**k, dtype=torch.float64) for k in range(9)]
    rows = watched(Indicator(threshold=0.25), values)
    assert [row[0] for row in rows] == [True, False, False, True, False, False, True, False, True]
    doubled = watched(Indicator(threshold=0.25, coefficients=(2.0, 0.0)), values)
    assert [row[0] for row in doubled] == [True, False, True, False, True, False, True, False, True]


def test_indicator_s_polynomial_has_its_highest_power_first():
    policy = Indicator(coefficients=(2.0, -3.0, 0.5))
    assert policy._rescale(0.1) == pytest.approx(2 * 0.01 - 0.3 + 0.5)


def test_gate_trusts_what_it_could_have_predicted():
    """A straight line is never computed again; a bend is, from the step at which it shows."""
    line = [torch.tensor([[2.0 + k, 1.0 - k]]) for k in range(8)]
    bent = [torch.tensor([[2.0 + k + 5 * max(0, k - 4), 1.0]]) for k in range(8)]
    rows = watched(Gate(threshold=0.01, warmup=3), [torch.cat(pair) for pair in zip(line, bent, strict=True)])
    assert [row[0] for row in rows] == [True] * 3 + [False] * 4 + [True]
    assert [row[1] for row in rows][:6] == [True] * 3 + [False] * 2 + [True]


def test_gate_compares_with_the_row_s_own_last_computed_step():
    """Row 0 creeps: 5 % from the last computed step is trusted, 10 % is not, whatever row 1 does beside it."""
    values = [torch.tensor([[1 + 0.05 * k], [2.0**k]]) for k in range(6)]
    rows = watched(Gate(threshold=0.08, warmup=1, predictor="reuse"), values)
    assert [row[0] for row in rows] == [True, False, True, False, True, True]
    assert all(row[1] for row in rows)


def test_gate_computes_what_is_not_a_number():
    values = [torch.ones(1, 2), torch.ones(1, 2), torch.full((1, 2), torch.nan), torch.ones(1, 2), torch.ones(1, 2)]
    assert watched(Gate(threshold=0.5, warmup=1), values)[2] == [True]


def test_verify_computes_the_rows_whose_draft_failed():
    policy = Verify(threshold=0.3, decay=1.0, longest=3, warmup=1)
    context = lambda step: Context(step, 20, 0, 1.0)  # noqa: E731
    rows, state = policy.decide(context(0), None, None, None)
    assert rows == [True]
    rows, state = policy.decide(context(1), state, None, None)
    assert rows == [False]
    real = torch.ones(2, 3)
    state = policy.verify(context(1), state, torch.tensor([[1.2] * 3, [1.5] * 3]), real)
    rows, state = policy.decide(context(2), state, None, None)
    assert rows == [False, True]
    state = policy.verify(context(2), state, 9 * real, real)  # the computed row has no draft to blame
    rows, state = policy.decide(context(3), state, None, None)
    assert rows == [True, False]


def test_verify_drafts_no_further_than_longest_and_trusts_less_towards_the_end():
    policy = Verify(longest=3, warmup=1)
    assert computed(policy, 10) == [0, 4, 8]
    state, real = policy.decide(Context(0, 11, 0, 1.0), None, None, None)[1], torch.ones(1, 1)
    limits = [0.3, 0.3 * 0.05**0.5, 0.015]
    for step, limit in zip((0, 5, 10), limits, strict=True):
        context = Context(step, 11, 0, 1.0)
        old = state._replace(last=(-1,))
        assert policy.verify(context, old, real * (1 + 0.99 * limit), real).failed == (False,)
        assert policy.verify(context, old, real * (1 + 1.01 * limit), real).failed == (True,)


def test_verify_runs_the_last_block_on_a_skipped_step():
    net = Toy(1)
    run = Custom(policy=Verify(warmup=2), sites=("trunk",)).start(6)
    walk(net, run, contexts(6), torch.ones(2, 1, dtype=torch.float64), ("main",))
    report = run.report()
    skipped = dict(zip(report.sites, report.computed[3], strict=True))
    assert report.full == 2
    assert skipped["hidden.1"] and skipped["blocks.1.mlp.raw"] and skipped["final"]
    assert not skipped["hidden.0"] and not skipped["blocks.0.attn.raw"] and not skipped["trunk"]


def test_the_verified_block_s_real_output_is_what_is_used():
    """The last block's input is predicted exactly, its own features are not: they need no prediction."""
    net = Toy(3)
    net.coefficients[:, :2, 2:] = 0  # the first block is affine in t
    x = torch.tensor([[0.3], [0.1]], dtype=torch.float64)
    run, drafts = (
        Custom(policy=policy, sites=("trunk",)).start(9) for policy in (Verify(warmup=2), Interval(9, warmup=2))
    )
    exact = walk(net, None, contexts(9), x)["main"]
    assert (walk(net, drafts, contexts(9), x, ("main",))["main"] - exact).abs().max() > 0.01
    torch.testing.assert_close(walk(net, run, contexts(9), x, ("main",))["main"], exact, rtol=1e-11, atol=1e-11)
    assert run.report().full < 9


def test_a_probe_s_skip_runs_nothing_after_it():
    """TeaCache looks before the first attention: that, and all that it is inside of, is then not computed."""
    for policy, done in ((Indicator(), set()), (Residual(), {"hidden.0"}), (Gate(), {"hidden.0"})):
        net, run = Toy(0), Custom(policy=policy, predictor="reuse", sites=("trunk",), subtract="input").start(6)
        walk(net, run, contexts(6), torch.ones(2, 1, dtype=torch.float64), ("main",))
        report = run.report()
        ran = {site for site, yes in zip(report.sites, report.computed[4], strict=True) if yes}
        inside = {site for site in report.sites if done and "blocks.0" in site}
        assert ran == {"final"} | done | inside
        assert net.calls["blocks.1.mlp.raw"] == report.full < 6


WRONG = [
    (lambda: Interval(0), "interval = 0"),
    (lambda: Magnitude((1.0, 0.0)), "it must be in .0, inf"),
    (lambda: Gate(-1.0), "threshold = -1"),
    (lambda: Residual(-0.1), "threshold = -0.1"),
    (lambda: Indicator(coefficients=()), "coefficients"),
    (lambda: Verify(decay=0.0), "decay = 0"),
]


@pytest.mark.parametrize(("make", "says"), WRONG)
def test_wrong_numbers_are_refused_in_one_line(make, says):
    with pytest.raises(UserError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_row_may_be_skipped_while_another_is_computed():
    """The report tells what ran from what was needed."""
    run = Custom(policy=Indicator(0.3), predictor="reuse", sites=("trunk",)).start(12)
    walk(Toy(1), run, contexts(12), torch.tensor([[1.0], [0.4], [2.5]], dtype=torch.float64))
    report = run.report()
    assert any(0 < share < 1 for share in report.share_needed)
    assert report.fraction_per_row < report.fraction < 1
    assert json.loads(json.dumps(report.json()))["full"] == sum(share > 0 for share in report.share_needed)
