"""SiD: the value and the gradient of its loss, in closed form."""

import pytest
import torch

from gen.diffusion.worlds import Gaussian
from gen.distillers.sid import SiD
from tests.distill.gaussians import PATH, at_nodes, student, world
from tests.distill.test_f_distill import nets, points, scattered

LEVEL = 0.7


def expectations(alpha, mean, std, teacher=(0.4, 1.0)):
    """SiD's expected loss with an exact fake score, its gradient, E|gap|^2, and its true gradient; in (mean, std)."""
    f, real = student(mean, std), world(*teacher)
    theta = (f.net.mean, f.net.std)
    y, eps, t, w = at_nodes(f, LEVEL)
    roles = {"net": f, "fake": world(*theta), "teacher": real}
    losses, _ = SiD(alpha=alpha, weight="none").losses(roles, y, eps, t, {})
    value = (w * losses).sum()
    x = PATH.mix(y, eps, t)
    moving = Gaussian(PATH, *theta)  # the fake score that follows the student
    square = (w * ((real(x, t).x0 - moving(x, t).x0) ** 2)[:, 0]).sum()
    gradients = (torch.cat(torch.autograd.grad(v, theta, retain_graph=True)) for v in (value, square))
    return value.detach(), next(gradients), square.detach(), next(gradients)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_the_value_is_one_minus_alpha_of_the_fisher_divergence(alpha):
    value, _, square, _ = expectations(alpha, -0.1, 0.8)
    assert float(square) > 0.01
    assert float(value) == pytest.approx((1 - alpha) * float(square), abs=1e-10)


def test_the_gradient_is_half_the_true_one_at_alpha_one_half_alone():
    for alpha in (0.0, 0.5, 1.0, 1.2):
        _, got, _, true = expectations(alpha, -0.1, 0.8)
        assert float((got - true / 2).abs().max() < 1e-9) == (alpha == 0.5), alpha


@pytest.mark.parametrize("alpha", [0.5, 1.2])
def test_a_difference_in_mean_alone_is_unbiased_at_every_alpha(alpha):
    _, got, _, true = expectations(alpha, -0.1, 1.0)
    assert float(got[0]) == pytest.approx(float(true[0]) / 2, abs=1e-9)


def test_gradients_go_through_both_scores_to_the_student_and_to_no_other():
    objective = SiD()
    roles, batch = nets(objective), points()
    scattered(roles["fake"].net, 1)
    for role, loss, logs in objective(roles, batch):
        loss.backward()
        last = logs
        for name in ("net", "fake", "teacher"):
            given = [p.grad for p in roles[name].net.parameters() if p.grad is not None and bool(p.grad.any())]
            assert bool(given) == (name == role), (role, name)
            roles[name].net.zero_grad(set_to_none=True)
    assert role == "net" and float(last["fake_lag"]) == 0  # nobody stepped
    x, eps, t = torch.randn(4, 2, 1, 1), torch.randn(4, 2, 1, 1), torch.rand(4).double()
    gradients = []
    for name in ("none", "fake", "teacher"):
        held = {**roles, **({name: Blind(roles[name])} if name in roles else {})}
        y = x.clone().requires_grad_()
        objective.losses(held, y, eps, t, {})[0].sum().backward()
        gradients.append(y.grad)
    assert not torch.allclose(gradients[0], gradients[1]) and not torch.allclose(gradients[0], gradients[2])


class Blind:
    """A denoiser without input gradients."""

    def __init__(self, inner):
        self.inner, self.path = inner, inner.path

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        return self.inner(x.detach(), t, cond)
