"""U-REPA: the head before the resampling, the teacher on its own grid, angles beside directions."""

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.alignment import Features, manifold, negative_cosine, resample
from gen.training.objectives.urepa import UREPA
from tests.gen.training.objectives.aligned import batch_of, roles_of, run_of


def test_the_head_comes_before_the_resampling():
    """They do not commute: what is compared is the head's output, resampled, with the teacher as it is."""
    objective = UREPA(weight=0.7, manifold_weight=2.0)
    h, y = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 16, 6, dtype=torch.float64)
    head = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.SiLU()).double()
    loss, logs = objective.align(head, h, Features(y, None))
    projected = resample(head(h), 4)
    torch.testing.assert_close(logs["alignment"], negative_cosine(projected, y))
    torch.testing.assert_close(logs["manifold"], manifold(projected, y))
    torch.testing.assert_close(loss, 0.7 * (logs["alignment"] + 2.0 * logs["manifold"]))
    assert not torch.allclose(projected, head(resample(h, 4)))


def test_a_feature_map_is_as_good_as_tokens():
    objective, head = UREPA(), torch.nn.Linear(5, 64)
    h, y = torch.randn(3, 5, 2, 2), torch.randn(3, 16, 64)
    map_, tokens = (objective.align(head, v, Features(y, None))[0] for v in (h, h.flatten(2).mT))
    assert torch.equal(map_, tokens)


def test_pairs_of_the_batch_are_others_than_pairs_within():
    h, y = torch.randn(3, 16, 6), torch.randn(3, 16, 6)
    intra, all_ = (
        float(UREPA(pairs=pairs).align(torch.nn.Identity(), h, Features(y, None))[1]["manifold"])
        for pairs in ("intra", "all")
    )
    assert intra != all_
    assert (UREPA().weight, UREPA().manifold_weight, UREPA().site) == (0.5, 3.0, "middle")


def test_it_trains_the_middle_of_a_unet():
    run = run_of("urepa", model={"name": "unet", "preset": "digits"}, objective={"name": "urepa", "hidden": 32})
    roles = roles_of(run)
    ((_, loss, logs),) = run.objective(roles, batch_of(run))
    loss.backward()
    grads = [p.grad for p in roles["net"].net.parameters() if p.requires_grad]
    assert loss.isfinite() and logs["manifold"] > 0 and all(g is not None and g.isfinite().all() for g in grads)


def test_wrong_wishes():
    with pytest.raises(UserError, match=r"manifold_weight = -1\.0"):
        UREPA(manifold_weight=-1.0)
    with pytest.raises(UserError, match="no tokens at 'middle'"):
        run = run_of("urepa", objective="urepa")
        run.objective.roles(run.model.build(), None)
    with pytest.raises(UserError, match="17 tokens, which are no square grid"):
        UREPA(site="hidden.1").check_grid(17)
