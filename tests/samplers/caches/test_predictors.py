import math

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, names
from gen.samplers.caches.lib.memory import Memory
from gen.samplers.caches.predictors.chebyshev import Chebyshev
from gen.samplers.caches.predictors.hermite import Hermite
from gen.samplers.caches.predictors.newton import Newton
from gen.samplers.caches.predictors.reuse import Reuse
from gen.samplers.caches.predictors.taylor import Taylor

UNEVEN = [9.0, 6.5, 6.0, 2.0, 1.0]  # newest first
FALLING = [0.2, 0.5, 0.6, 0.95, 1.0]
EVERY = [build("samplers.caches.predictors", name) for name in names("samplers.caches.predictors")]
SHARP = [*EVERY, *(Newton(k) for k in range(5)), Taylor(4), Hermite(1, math.sqrt(0.5)), Chebyshev(3, 5)]


def published_ladder(features, nodes, x, order, first=0):
    """TaylorSeer's update and formula as its code has them: oldest first, the ladder rebuilt at each full step."""
    ladder, before = [], None
    for i, (f, node) in enumerate(zip(features, nodes, strict=True)):
        rungs = [f]
        if before is not None and i >= first:
            for k in range(min(order, len(ladder))):
                rungs.append((rungs[k] - ladder[k]) / (node - before))
        ladder, before = rungs, node
    return sum(rung * (x - before) ** k / math.factorial(k) for k, rung in enumerate(ladder))


def predict(predictor, nodes, features, x):
    """By weights, newest first."""
    return sum(w * f for w, f in zip(predictor.weights(nodes[: predictor.size], x), features, strict=False))


@pytest.mark.parametrize("nodes", [UNEVEN, FALLING], ids=["rising", "falling"])
@pytest.mark.parametrize("predictor", SHARP, ids=repr)
def test_polynomials_up_to_the_degree_are_exact_in_both_directions(predictor, nodes):
    for x in (nodes[0] + 0.3 * (nodes[0] - nodes[1]), nodes[0] + 1.5 * (nodes[0] - nodes[1])):
        for degree in range(predictor.degree + 1):
            features = [node**degree for node in nodes]
            assert predict(predictor, nodes, features, x) == pytest.approx(x**degree, rel=1e-10)
        if predictor.degree + 1 < predictor.size or predictor.size < 5:
            features = [node ** (predictor.degree + 1) for node in nodes]
            assert predict(predictor, nodes, features, x) != pytest.approx(x ** (predictor.degree + 1), rel=1e-4)


@pytest.mark.parametrize("predictor", SHARP, ids=repr)
def test_weights_sum_to_one_with_any_number_of_snapshots(predictor):
    for n in range(1, predictor.size + 1):
        weights = predictor.weights(UNEVEN[:n], 11.0)
        assert len(weights) <= n
        assert sum(weights) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("order", range(5))
@pytest.mark.parametrize("seen", range(1, 9))
def test_taylor_is_the_published_ladder(order, seen):
    torch.manual_seed(seen)
    nodes = sorted({*torch.randperm(40)[:seen].tolist()})
    features, x = torch.randn(seen, dtype=torch.float64).tolist(), nodes[-1] + 3
    ours = predict(Taylor(order), [float(n) for n in nodes[::-1]], features[::-1], x)
    assert ours == pytest.approx(published_ladder(features, nodes, x, order), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("warmup", [1, 2, 3, 4])
@pytest.mark.parametrize("seen", range(1, 9))
def test_taylor_s_warm_up_grows_no_differences(warmup, seen):
    """Published: a difference is taken at a full step once its index is warmup - 1 or more."""
    torch.manual_seed(seen)
    nodes = [*range(warmup), *(warmup - 1 + 4 * k for k in range(1, 9))][:seen]
    features, x = torch.randn(seen, dtype=torch.float64).tolist(), nodes[-1] + 2
    ours = predict(Taylor(3, since=warmup - 1.0), [float(n) for n in nodes[::-1]], features[::-1], x)
    assert ours == pytest.approx(published_ladder(features, nodes, x, 3, warmup - 1), rel=1e-12, abs=1e-12)


def test_taylor_s_error_on_a_square():
    """f'' k (k + N) / 2 at order 1, f'' N k / 2 above: the ladder lags; k steps after the last of many, N apart."""
    n, k = 4, 3
    nodes = [float(40 - n * j) for j in range(5)]
    for order, error in ((1, 2 * k * (k + n) / 2), (2, 2 * n * k / 2), (3, 2 * n * k / 2)):
        assert (40 + k) ** 2 - predict(Taylor(order), nodes, [x**2 for x in nodes], 40.0 + k) == pytest.approx(error)


@pytest.mark.parametrize(("order", "ladder", "exact"), [(1, 2.5, 2.5), (2, 3.6, 5.1), (3, 4.2, 9.9), (4, 4.4, 19.0)])
def test_noise_is_amplified_as_it_should_be(order, ladder, exact):
    nodes = [float(-4 * j) for j in range(5)]
    total = {type(w): sum(map(abs, w.weights(nodes[: w.size], 3.0))) for w in (Taylor(order), Newton(order))}
    assert total[Taylor] == pytest.approx(ladder, abs=0.05)
    assert total[Newton] == pytest.approx(exact, abs=0.06)


def test_chebyshev_averages_noise_out():
    nodes = [float(-4 * j) for j in range(6)]
    amplified = [sum(w**2 for w in Chebyshev(1, window).weights(nodes[:window], 3.0)) for window in (2, 3, 6)]
    assert amplified == sorted(amplified, reverse=True)
    assert Chebyshev(1, 2).weights(nodes[:2], 3.0) == pytest.approx(Newton(1).weights(nodes[:2], 3.0), abs=1e-12)


def test_hermite_halves_the_slope():
    assert predict(Hermite(1), [4.0, 0.0], [1.0, 0.0], 6.0) == pytest.approx(1 + 0.5 * 2 / 4)


@pytest.mark.parametrize(
    "make", [lambda: Taylor(-1), lambda: Newton(-1), lambda: Hermite(1, 0.0), lambda: Chebyshev(4, 4)]
)
def test_wrong_numbers_are_refused(make):
    with pytest.raises(UserError):
        make()


# Memory


def remembered(predictor, nodes, features):
    """A memory that took the features [n, B, D] at nodes, oldest first."""
    memory = Memory()
    for x, f in zip(nodes, features, strict=True):
        memory = memory.update(x, f, [True], predictor.size)
    return memory


@pytest.mark.parametrize("predictor", SHARP, ids=repr)
def test_memory_says_what_the_weights_say(predictor):
    features = torch.randn(5, 2, 3, dtype=torch.float64)
    memory = remembered(predictor, UNEVEN[::-1], features)
    expected = predict(predictor, UNEVEN, list(features.flip(0)), 11.0)
    torch.testing.assert_close(memory.predict(11.0, predictor), expected, rtol=1e-12, atol=1e-12)
    assert memory.bytes == predictor.size * 6 * 8


@pytest.mark.parametrize("predictor", SHARP, ids=repr)
def test_memory_keeps_each_row_s_own_history(predictor):
    """Rows that were computed at different steps, against a memory for each row."""
    generator = torch.Generator().manual_seed(0)
    memory, alone = Memory(), [Memory() for _ in range(4)]
    for step in range(9):
        features = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        rows = [step == 0 or bool((step + row) % (row + 1) == 0) for row in range(4)]
        memory = memory.update(float(step), features, rows, predictor.size)
        for i, row in enumerate(rows):
            if row:
                alone[i] = alone[i].update(float(step), features[i : i + 1], [True], predictor.size)
        expected = torch.cat([m.predict(step + 0.5, predictor) for m in alone])
        torch.testing.assert_close(memory.predict(step + 0.5, predictor), expected, rtol=1e-11, atol=1e-11)
    assert len(set(memory.nodes)) > 1 or predictor.size == 1


@pytest.mark.parametrize("predictor", EVERY, ids=repr)
def test_a_constant_is_predicted_to_the_bit(predictor):
    feature = torch.randn(3, 5)
    memory = remembered(predictor, [0.0, 1.0, 4.0, 9.0], [feature] * 4)
    assert torch.equal(memory.predict(11.0, predictor), feature)


def test_memory_is_float32_and_answers_in_the_feature_s_dtype():
    """1 + 2^-7 is the next bfloat16 after 1."""
    low, high = (torch.tensor([[v]], dtype=torch.bfloat16) for v in (1.0, 1 + 2.0**-7))
    memory = remembered(Taylor(1), [0.0, 4.0], [low, high])
    assert memory.newest.dtype == torch.float32
    out = memory.predict(8.0, Taylor(1))
    assert out.dtype == torch.bfloat16
    assert float(out) == 1 + 2 * 2.0**-7
    assert remembered(Reuse(), [0.0], [low.double()]).newest.dtype == torch.float64


def test_a_memory_is_a_value():
    memory = remembered(Taylor(1), [0.0, 1.0], torch.randn(2, 1, 3))
    before = memory.predict(2.0, Taylor(1))
    memory.update(2.0, torch.randn(1, 3), [True], 2)
    assert torch.equal(memory.predict(2.0, Taylor(1)), before)


def test_another_batch_size_is_refused():
    memory = remembered(Reuse(), [0.0], torch.randn(1, 3, 2))
    with pytest.raises(UserError, match="start one session for each batch"):
        memory.update(1.0, torch.randn(4, 2), [True], 1)
