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
    ],
    ids=str,
)
def test_is_the_tools_number(sets, spec, value, rel) -> None:
    assert build("eval.metrics", spec)(*sets).value == pytest.approx(value, rel=rel)


def test_standard_error_and_moments_alone(sets) -> None:
    fid, (x, y) = build("eval.metrics", "fid"), sets
    assert fid(x, y).se == pytest.approx(0.03235044263670, rel=1e-11)
    mean, covariance = y.double().mean(0), torch.cov(y.T.double())
    ours = fid(x, Moments.of_covariance(mean, covariance))  # as a file of statistics holds them
    assert ours.value == pytest.approx(0.36305153635555, rel=1e-12) and ours.se == pytest.approx(fid(x, y).se)
