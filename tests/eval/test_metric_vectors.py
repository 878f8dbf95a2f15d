"""Numbers that the field's tools give for the same rows, from seeds: two sets of 24 features after a ReLU."""

import numpy as np
import pytest
import torch

from gen.config.spec import build
from gen.eval.metrics.lib.moments import Moments


@pytest.fixture(scope="module")
def sets() -> tuple[torch.Tensor, torch.Tensor]:
    """1200 samples and 1000 reference rows, float32."""
    g, mix = np.random.default_rng(20260301), np.random.default_rng(5).standard_normal((24, 24)) / np.sqrt(24)
    x = np.maximum(0, g.standard_normal((1200, 24)) @ mix + 0.3).astype(np.float32)
    y = np.maximum(0, g.standard_normal((1000, 24)) @ mix * 1.1 + 0.35).astype(np.float32)
    assert float(x.sum(dtype=np.float64)) == pytest.approx(16073.613678338099, rel=1e-12)
    assert float(y.sum(dtype=np.float64)) == pytest.approx(15056.391747655282, rel=1e-12)
    return torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.parametrize(
    ("spec", "value", "rel"),
    [
        ("fid", 0.36305153635555, 1e-12),  # pytorch-fid, torchmetrics
        ("kid", 0.05139366876371465, 1e-12),  # the definition in float64
        ("precision", 0.948333333333, 1e-9),  # torch-fidelity; ADM's arithmetic in float32
        ("recall", 0.744, 1e-9),
        ({"name": "precision", "strict": True}, 0.948333333333, 1e-9),  # prdc
        ({"name": "recall", "strict": True}, 0.744, 1e-9),
        ({"name": "density", "nearest": 3}, 1.417222222222, 1e-9),
        ({"name": "coverage", "nearest": 3}, 0.944, 1e-9),
        ({"name": "precision", "nearest": 5, "strict": True}, 0.979166666667, 1e-9),
        ({"name": "recall", "nearest": 5, "strict": True}, 0.849, 1e-9),
        ("density", 1.408333333333, 1e-9),
        ("coverage", 0.985, 1e-9),
        ({"name": "kid_subsets", "size": 500}, (0.05184706, 0.01403073), 1e-5),  # torch-fidelity, in float32
        ("kid_subsets", (0.05151741, 0.00323930), 1e-5),
        ("cmmd", 0.01815109135527848, 1e-9),  # numpy in float64; cmmd-pytorch's float32 has .0180006
        ("authpct", 0.5475, 1e-9),  # dgm-eval
    ],
    ids=str,
)
def test_is_the_tools_number(sets, spec, value, rel) -> None:
    found = build("eval.metrics", spec)(*sets)
    estimates = found if isinstance(found, tuple) else (found,)
    assert [estimate.value for estimate in estimates] == pytest.approx(list(np.atleast_1d(value)), rel=rel)


def test_standard_error_and_moments_alone(sets) -> None:
    fid, (x, y) = build("eval.metrics", "fid"), sets
    assert fid(x, y).se == pytest.approx(0.03235044263670, rel=1e-11)
    mean, covariance = y.double().mean(0), torch.cov(y.T.double())
    ours = fid(x, Moments.of_covariance(mean, covariance))  # as a file of statistics holds them
    assert ours.value == pytest.approx(0.36305153635555, rel=1e-12) and ours.se == pytest.approx(fid(x, y).se)


def test_vendi_is_dgm_evals_up_to_its_float32(sets) -> None:
    found = build("eval.metrics", "vendi")(sets[0][:300], sets[1]).value
    assert found == pytest.approx(9.855082880018513, rel=1e-11)  # numpy in float64
    assert found == pytest.approx(9.855182647705, rel=2e-5)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"splits": 10, "shuffle": 2020}, 4.157741271627406),  # torch-fidelity
        ({"splits": 10}, 4.136457029514356),
        ({}, 4.295036729402379),  # ADM, one block
        ({"block": 300}, 4.254326254989105),
    ],
    ids=str,
)
def test_inception_score_of_random_logits(options, value) -> None:
    logits = torch.from_numpy(np.random.default_rng(9).standard_normal((1000, 50)).astype(np.float32) * 2)
    found = build("eval.metrics", {"name": "inception_score", **options})(logits)
    assert found.value == pytest.approx(value, rel=1e-12) and 0.05 < found.se < 0.12


@pytest.mark.parametrize(
    ("control", "value"),
    [("none", 0.2987136730757393), ("lower", 0.288281508324192), ("upper", 0.28923687903458484)],
)
def test_sliced_wasserstein_is_that_of_the_published_code(control, value) -> None:
    g = np.random.default_rng(11)
    x, y = g.standard_normal((500, 16)), g.standard_normal((500, 16)) * 1.5 + 0.2
    metric = build("eval.metrics", {"name": "sliced_wasserstein", "directions": 50, "control": control, "seed": 3})
    assert metric(torch.from_numpy(x), torch.from_numpy(y)).value == pytest.approx(value, rel=1e-12)
