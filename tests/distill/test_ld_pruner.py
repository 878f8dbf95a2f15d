"""LD-Pruner: what does nothing scores nothing, scores order what does something, and the pruned network is smaller."""

import json

import pytest
import torch
from torch import nn

import gen
from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import X0
from gen.diffusion.path import Flow
from gen.diffusion.tap import Skip
from gen.distillers.ld_pruner import LDPruner, SkippingDenoiser, find_operators, latent_score
from gen.pipeline import Pipeline
from gen.training.run import Sampler

GAINS = {"blocks.0": 0.0, "blocks.1": 0.05, "blocks.2": 0.4, "blocks.3": -0.1}

SHIFTS = {"blocks.0": 0.0, "blocks.1": 0.0, "blocks.2": 0.0, "blocks.3": 0.2}


class Linear(nn.Module):
    """x0 = x (1 + sum of gains) + shifts: operator i adds gain_i x + shift_i; the last changes the shape."""

    def forward(self, x, t, cond, *, s=None, tap=None):
        out = x
        for site, gain in GAINS.items():
            added = lambda h, site=site, gain=gain: gain * x + SHIFTS[site]  # noqa: E731
            out = out + (added(out) if tap is None else tap(site, added, out))
        wide = lambda h: torch.cat([h, h], 1)  # noqa: E731
        return (wide(out) if tap is None else tap("blocks.4", wide, out))[:, : x.shape[1]]


def toy():
    return Pipeline(Denoiser(Linear(), Flow(), X0()), (3, 2, 2), name="toy")


PRUNER = LDPruner(samples=64, sampler=Sampler("euler", steps=1))


def test_scores_of_a_linear_toy_are_its_shifts():
    """One step: latents are the noise times the sum of gains, plus the shifts: each moves both so much."""
    z = toy().sample(64, solver="euler", steps=1, seed=1).x / 1.35 - 0.2 / 1.35
    scores = PRUNER.scores(toy(), list(GAINS))
    for site, gain in GAINS.items():
        mean = (gain * z.mean(0) + SHIFTS[site]).norm()
        assert scores[site] == pytest.approx(float(mean + abs(gain) * z.std(0).norm()), rel=1e-4, abs=1e-6)
    assert scores["blocks.0"] == 0
    assert sorted(scores, key=scores.__getitem__)[:2] == ["blocks.0", "blocks.1"]


def test_the_same_seeds_make_the_score_of_nothing_zero_and_others_do_not():
    first, again = (PRUNER.latents(toy(), ()) for _ in range(2))
    assert torch.equal(first, again) and latent_score(first, again) == 0
    other = LDPruner(samples=64, sampler=Sampler("euler", steps=1), seed=2).latents(toy(), ())
    assert latent_score(first, other) > 0.1
    shuffled = first[torch.randperm(64)]
    assert latent_score(first, shuffled) < 1e-5  # statistics of the whole, whatever its order


def test_operators_that_no_identity_can_replace_are_told_apart():
    assert find_operators(toy(), ("blocks.*",)) == (list(GAINS), ["blocks.4"])
    assert find_operators(toy(), ("nothing",)) == ([], [])


def trained_dit(depth=3, seed=0):
    torch.manual_seed(seed)
    net = gen.build("models", {**SPEC, "depth": depth}).build()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    return net


SPEC = {"name": "dit", "size": 8, "patch": 4, "channels": 1, "classes": 10, "width": 16, "heads": 2}


def test_a_block_with_zero_gates_is_the_first_to_go():
    net = trained_dit()
    with torch.no_grad():
        net.blocks[1].mlp.fc2.weight.zero_()
        net.blocks[1].mlp.fc2.bias.zero_()
    f = Denoiser(net.eval(), Flow(), gen.build("diffusion.parameterisation", "velocity"))
    chosen = LDPruner(samples=8, sampler=Sampler("euler", steps=2), share=0.05).choose_operators(
        Pipeline(f, (1, 8, 8), 10), net.spec
    )
    assert chosen["scores"][0]["blocks.1.mlp"] == 0
    assert chosen["removed"][0] == "blocks.1.mlp"
    assert set(chosen["weights"]) == {f"blocks.{i}.{part}" for i in range(3) for part in ("attn", "mlp")}
    assert chosen["weights"]["blocks.1.mlp"] == sum(p.numel() for p in net.blocks[1].mlp.parameters())


def test_scoring_again_after_each_removal():
    net = trained_dit()
    pipeline = Pipeline(
        Denoiser(net.eval(), Flow(), gen.build("diffusion.parameterisation", "velocity")), (1, 8, 8), 10
    )
    pruner = LDPruner(samples=4, sampler=Sampler("euler", steps=1), share=0.3, rescore=True)
    again = pruner.choose_operators(pipeline, net.spec)
    assert len(again["scores"]) == len(again["removed"]) > 1
    assert again["removed"][0] not in again["scores"][1]


# The pruned network


@pytest.mark.parametrize("block", [("blocks.1",), ("blocks.1.attn", "blocks.1.mlp")])
def test_a_pruned_network_is_the_whole_one_with_its_sites_left_out(block):
    net = trained_dit().double().eval()
    sites = ("blocks.0.attn", *block, "blocks.2.mlp")
    pruned = gen.build("models", {"name": "pruned", "inner": {**SPEC, "depth": 3}, "sites": list(sites)}).build()
    pruned.double().load_state_dict(net.state_dict())
    x, t, cond = torch.randn(2, 1, 8, 8).double(), torch.rand(2).double(), {"y": torch.tensor([1, 2])}
    assert torch.equal(pruned(x, t, cond), net(x, t, cond, tap=Skip(sites)))
    left, whole = (sum(p.numel() for p in n.parameters()) for n in (pruned, net))
    gone = [*net.blocks[0].attn.parameters(), *net.blocks[1].parameters(), *net.blocks[2].mlp.parameters()]
    assert whole - left == sum(p.numel() for p in gone)
    copied = gen.build("models", {"name": "pruned", "inner": {**SPEC, "depth": 3}, "sites": list(sites)}).build()
    copied.double().load_state_dict(pruned.state_dict())
    assert torch.equal(copied(x, t, cond), pruned(x, t, cond))
    with pytest.raises(RuntimeError, match=r"(?s)Missing key|Unexpected key"):
        pruned.load_state_dict({"other": torch.zeros(1)})


def test_wrong_sites_are_one_line():
    for sites, message in ((["blocks.7"], "no site 'blocks.7'"), (["final"], "output unlike its input")):
        with pytest.raises(UserError, match=message):
            gen.build("models", {"name": "pruned", "inner": {**SPEC, "depth": 3}, "sites": sites}).build()


def test_without_is_the_denoiser_with_a_skip():
    f = Denoiser(trained_dit().eval(), Flow(), gen.build("diffusion.parameterisation", "velocity"))
    x, t, cond = torch.randn(2, 1, 8, 8), torch.tensor(0.5).double(), {"y": torch.tensor([1, 2])}
    tapped = SkippingDenoiser(f, ("blocks.1",))
    assert torch.equal(tapped(x, t, cond).x0, f(x, t, cond, tap=Skip(("blocks.1",))).x0)
    assert tapped.path == f.path and torch.equal(tapped.null(cond)["y"], f.null(cond)["y"])


def test_a_student_is_pruned_and_trained_from_a_run_folder(teacher, tmp_path):
    changes = {"objective.samples": 4, "objective.sampler.steps": 1, "objective.share": 0.1, "steps": 3}
    done = gen.distill("ld_pruner", teacher, tmp_path / "student", changes=changes, quiet=True)
    pipeline, whole = done.pipeline(), gen.load(teacher)
    assert pipeline.params <= 0.9 * whole.params
    assert pipeline.sample(3).x.isfinite().all()
    told = json.loads((done.folder / "operators.json").read_text())
    assert tuple(told["removed"]) == pipeline.denoiser.net.spec.sites
    stamp = (done.folder / "operators.json").stat().st_mtime_ns
    more = gen.distill("ld_pruner", teacher, tmp_path / "student", changes={**changes, "steps": 4}, quiet=True)
    assert more.step == 4 and (done.folder / "operators.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="pruned already"):
        gen.distill("ld_pruner", done.folder, tmp_path / "again", quiet=True)
