"""What each optimiser does to a parameter, against its formula, another optimiser, or the package it comes from."""

import itertools

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build
from gen.training.optim.adamw import AdamW
from gen.training.optim.conda import Conda, basis, turned
from gen.training.optim.frugal import Frugal
from gen.training.optim.library import Library
from gen.training.optim.muon import Muon

SHAPES = [(6, 4), (3, 5), (8, 8), (5,), (2, 3, 4)]


def drawn(generator):
    """The first of what a generator draws for all shapes."""
    return next(iter([torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]))


def trained(optim, steps=7, rate=lambda k: 0.05, dtype=torch.float64):
    """Parameters after some steps on made-up gradients, and the optimiser."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in SHAPES]
    made = optim.build([{"params": parameters, "scale": 1.0}])
    for k in range(steps):
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
        for group in made.param_groups:
            group["lr"] = rate(k)
        made.step()
    return [p.detach() for p in parameters], made


def same(a, b, tol=0.0):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tol, atol=tol)


@pytest.mark.parametrize("by", ["matrices", "columns"])
def test_frugal_of_density_1_is_adamw_and_of_0_signs(by):
    how = {"betas": (0.8, 0.9), "weight_decay": 0.1}
    whole, _ = trained(AdamW(**how))
    same(trained(Frugal(density=1.0, gap=3 if by == "matrices" else 7, by=by, **how))[0], whole)
    ours, made = trained(Frugal(density=0.0, by=by, rest_scale=0.5, weight_decay=0.1))
    start, _ = trained(Frugal(), steps=0)
    generator = torch.Generator().manual_seed(0)
    for s in SHAPES:
        torch.randn(s, generator=generator, dtype=torch.float64)
    for _ in range(7):
        for p in start[:5]:
            grad = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if p.ndim == 2:
                p.mul_(1 - 0.05 * 0.1).sub_(0.05 * 0.5 * grad.sign())
    same(ours[:3], start[:3], 1e-14)
    assert all(p.ndim != 2 or not state for p, state in made.state.items())


def test_frugal_keeps_moments_of_its_share_and_draws_it_anew():
    """Of matrices of 24, 15 and 64 numbers a share of .3 holds the first or the second; columns are rounded."""
    for by, most in (("matrices", 0.3 * 103), ("columns", 6 * 1 + 3 * 2 + 8 * 2)):
        shares = []
        for steps in (3, 6, 9, 12, 15):
            _, made = trained(Frugal(density=0.3, gap=3, by=by), steps)
            held = {i: made.state.get(p, {}).get("exp_avg") for i, p in enumerate(made.param_groups[0]["params"])}
            numbers = sum(held[i].numel() for i in range(3) if held[i] is not None)
            assert numbers <= most and (by == "matrices" or numbers == most)
            assert held[3] is not None and held[4] is not None
            shares.append([held[i] is None for i in range(3)])
        assert by == "columns" or any(a != b for a, b in itertools.pairwise(shares))


def test_conda_is_adam_in_its_basis():
    """With the basis of the identity its formula is Adam's; and it does not depend on how rows are turned."""
    ours, made = trained(Conda(betas=(0.8, 0.9), gap=1000, weight_decay=0.1), 4)
    generator = torch.Generator().manual_seed(0)
    p = drawn(generator)
    m, v, q = torch.zeros_like(p), torch.zeros_like(p), None
    for k in range(1, 5):
        g = drawn(generator)
        m = 0.8 * m + 0.2 * g
        q = torch.linalg.svd(m.float(), full_matrices=False)[2].mT.double() if q is None else q
        v = 0.9 * v + 0.1 * (g @ q) ** 2
        change = (m @ q) / (v.sqrt() + 1e-8) @ q.mT
        p = p * (1 - 0.05 * 0.1) - 0.05 * (1 - 0.9**k) ** 0.5 / (1 - 0.8**k) * change
    torch.testing.assert_close(ours[0], p, rtol=1e-12, atol=1e-12)
    adam, _ = trained(AdamW(betas=(0.8, 0.9), eps=1e-300, weight_decay=0.1), 4)
    same(trained(Conda(betas=(0.8, 0.9), eps=1e-300, weight_decay=0.1), 4)[0][3:], adam[3:], 1e-12)
    for parameter, state in made.state.items():
        if parameter.ndim == 2:
            side = min(parameter.shape)
            assert state["basis"].shape == (side, side)
            torch.testing.assert_close(state["basis"] @ state["basis"].mT, torch.eye(side).double(), rtol=0, atol=1e-5)
    wide = torch.randn(3, 5, dtype=torch.float64)
    diagonal = turned(wide, basis(wide))  # its rows are orthogonal
    gram = diagonal @ diagonal.mT
    torch.testing.assert_close(gram, torch.diag(gram.diag()), rtol=0, atol=1e-5)


def test_muon_is_torchs_for_matrices_and_adamw_for_the_rest():
    ours, made = trained(Muon(betas=(0.8, 0.9), weight_decay=0.1))
    adam, _ = trained(AdamW(betas=(0.8, 0.9), weight_decay=0.1))
    same(ours[3:], adam[3:])
    assert [tuple(s) for s in made.state.values()] == [("momentum_buffer",)] * 3 + [
        ("step", "exp_avg", "exp_avg_sq")
    ] * 2
    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(1, 1, dtype=torch.float64))
    optim = Muon(weight_decay=0.0).build([{"params": [p], "scale": 1.0}])
    before = p.detach().clone()
    p.grad = torch.randn(1, 1, generator=generator, dtype=torch.float64)
    optim.step()
    assert 0.5 < float((p.detach() - before).abs() / (1e-3 * 0.2)) < 1.5  # one of size 1 times .2 sqrt(largest side)


NAMES = ["Adan", "AdaBelief", "Lamb", "DiffGrad", "AdamP", "EXAdam", "SOAP", "Prodigy", "CAME"]


@pytest.mark.parametrize("name", NAMES)
def test_the_librarys_are_the_librarys(name):
    from pytorch_optimizer import load_optimizer

    class Theirs:
        def build(self, groups):
            return load_optimizer(name)(groups, lr=0.05, weight_decay=0.1)

    same(trained(Library(name, weight_decay=0.1), dtype=torch.float32)[0], trained(Theirs(), dtype=torch.float32)[0])


def test_adan_is_the_papers():
    """Xie et al. 2022, algorithm 1, whose betas are 1 minus these."""
    ours, _ = trained(Library("adan", options={"betas": [0.98, 0.92, 0.99], "max_grad_norm": 0.0}), 3)
    generator = torch.Generator().manual_seed(0)
    p = drawn(generator)
    m, d, n, old = torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p), None
    for k in range(1, 4):
        g = drawn(generator)
        change = torch.zeros_like(g) if old is None else g - old
        m, d = 0.98 * m + 0.02 * g, 0.92 * d + 0.08 * change
        n, old = 0.99 * n + 0.01 * (g + 0.92 * change) ** 2, g
        step = m / (1 - 0.98**k) + 0.92 * d / (1 - 0.92**k)
        p = p - 0.05 * step / ((n / (1 - 0.99**k)).sqrt() + 1e-8)
    torch.testing.assert_close(ours[0], p, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optimizer": "adann"}, r"unknown optimizer 'adann'. Did you mean 'adan'"),
        ({"optimizer": "adan", "options": {"beta": 1}}, "adan has no option 'beta'. Did you mean 'betas'"),
        ({"optimizer": "adan", "options": {"lr": 1}}, "options has 'lr', which is a field beside it"),
        ({"optimizer": "schedulefreeadamw"}, "evaluates other weights than it trains"),
        ({"optimizer": "adan", "options": {"betas": [2.0, 0.9, 0.9]}}, "library: adan: "),
    ],
)
def test_wrong_ones_are_refused_in_one_line(given, said):
    with pytest.raises(UserError, match=said) as error:
        build("training.optim", {"name": "library", **given}).build([torch.nn.Parameter(torch.zeros(2, 2))])
    assert "\n" not in str(error.value)
