"""Calibration: the best mask, and the ratios of magnitudes."""

import itertools

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.tap import Context
from gen.samplers.caches.magcache import MagCache
from gen.samplers.caches.shared import SharedSteps, SimilarityCalibrator, anchor_steps, sharing_loss
from gen.samplers.caches.taylorseer import TaylorSeer
from tests.samplers.caches.toy import Toy, contexts, walk

ROWS = torch.tensor([[1.0], [0.3]], dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", range(3))
def test_the_mask_found_is_the_best_of_all(n, seed):
    torch.manual_seed(seed)
    similarity = torch.rand(n, n, dtype=torch.float64)
    similarity = (similarity + similarity.T) / 2
    similarity.fill_diagonal_(1)
    for count in range(1, n + 1):
        every = [
            tuple(i == 0 or i in chosen for i in range(n)) for chosen in itertools.combinations(range(1, n), count - 1)
        ]
        found = anchor_steps(similarity, count)
        assert sum(found) == count
        assert found[0]
        assert sharing_loss(similarity, found) == pytest.approx(
            min(sharing_loss(similarity, mask) for mask in every), abs=1e-12
        )
    assert sharing_loss(similarity, anchor_steps(similarity, n)) == 0


def test_an_impossible_count_is_refused():
    for count in (0, 5):
        with pytest.raises(UserError, match=f"{count} of 4 steps"):
            anchor_steps(torch.eye(4), count)


def uncalibrated():
    """The report of a loop that measures nothing."""
    session = TaylorSeer().start(2)
    walk(Toy(0), session, contexts(2), ROWS)
    return session.report()


def test_similarity_is_the_cosine_of_each_row():
    study = SimilarityCalibrator(3, rows=2)
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    for step, rows in enumerate(([a, a, b], [a, b, b], [b, b, b])):  # the third row is one too many
        study.observe(Context(step, 3, 0, 1.0), "trunk", torch.stack(rows))
    assert study.result()["similarity"] == [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]


def test_a_branch_that_was_not_seen_at_every_step_is_left_out():
    study = SimilarityCalibrator(2, rows=1)
    study.observe(Context(0, 2, 0, 1.0), "trunk", torch.ones(1, 2))
    assert study.result() == {}
    with pytest.raises(UserError, match="measured no similarity"):
        SharedSteps().calibrated(uncalibrated())


def test_shared_computes_where_features_turn():
    """Three plateaus: the mask begins each of them, at no cost."""
    net, levels = Toy(1), [0.9] * 5 + [0.1] * 3 + [-0.8] * 4
    net.coefficients[..., 0, :, :] = 0
    places = contexts(12, levels)
    run = SharedSteps().start(12)
    walk(net, run, places, ROWS)
    assert run.report().full == 24
    found = SharedSteps(keep=0.25).calibrated(run.report())
    assert [i for i, on in enumerate(found.mask) if on] in ([0, 5, 8],)
    used = found.start(12)
    torch.testing.assert_close(walk(net, used, places, ROWS), walk(net, None, places, ROWS))
    assert used.report().full == 6


def test_magcache_measures_what_features_do():
    """All that the blocks add is proportional to t: the ratio of a step is that of its time to the one before."""
    net, times = Toy(1), [1.0, 0.8, 0.72, 0.36, 0.3]
    net.coefficients[..., 0, :, :] = 0
    run = MagCache().start(5)
    walk(net, run, contexts(5, times), ROWS)
    assert run.report().calibration["ratios"] == pytest.approx([1.0, 0.8, 0.9, 0.5, 0.3 / 0.36])
    assert run.report().full == 10
    cache = MagCache(threshold=0.25, retention=0.0).calibrated(run.report())
    used = cache.start(5)
    walk(net, used, contexts(5, times), ROWS, ("main",))
    assert used.report().share_needed == (1.0, 0.0, 1.0, 1.0, 0.0)  # 0.2; then 0.2 + 0.28; alone 0.5; 0.17
    assert used.report().calibration == {}


def test_magcache_measures_across_branches_that_miss_steps():
    net = Toy(0)
    run = MagCache().start(4)
    for place in contexts(4):
        walk(net, run, [place], ROWS, ("main", "uncond") if place.step != 1 else ("main",))
    assert run.report().calibration["ratios"] == pytest.approx([1.0] * 4)
    with pytest.raises(UserError, match="measured no ratios"):
        MagCache().calibrated(uncalibrated())
