"""ERW: what the first phase leaves alone, what it sees, and how the second one fades."""

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import EDMPrecond
from gen.diffusion.path import EDM
from gen.diffusion.tap import Chain, FeatureRecorder
from gen.training.objectives.erw import ERW, StopAfter
from gen.training.trainer import train
from tests.gen.training.objectives.aligned import batch_of, roles_of, run_of
from tests.gen.training.test_trainer import weights


def test_the_first_phase_trains_nothing_after_its_site(tmp_path):
    """Weight decay and momentum included: what has no gradient is not touched."""
    optim = {"name": "adamw", "lr": 1e-2, "weight_decay": 0.5}
    train(run_of("erw", optim=optim, steps=1, validate_every=0), tmp_path / "one", quiet=True)
    train(run_of("erw", optim=optim, steps=4, validate_every=0), tmp_path / "four", quiet=True)
    train(run_of("erw", optim=optim, steps=5, validate_every=0), tmp_path / "five", quiet=True)
    one, four, five = (
        {k.partition("/")[2]: v for k, v in weights(tmp_path / n).items() if k.startswith("net.safetensors/")}
        for n in ("one", "four", "five")
    )
    later = {k for k in one if k.startswith(("blocks.1", "blocks.2", "final_layer"))}
    early = {k for k in one if k.startswith(("blocks.0", "x_embedder", "t_embedder", "y_embedder"))}
    assert later | early | {"pos_embed"} == set(one)
    assert all(torch.equal(one[k], four[k]) for k in later)
    assert not any(torch.equal(one[k], four[k]) for k in early)
    changed = {k for k in later if not torch.equal(four[k], five[k])}
    assert "final_layer.linear.bias" in changed and any(k.startswith("blocks.1") for k in changed)


def test_the_first_phase_sees_clean_images_at_time_zero():
    run = run_of("erw")
    roles, batch = roles_of(run), batch_of(run, step=0)
    f = roles["net"]
    ((trained, loss, logs),) = run.objective(roles, batch)
    t, cond = run.objective.draw(f, batch)
    record = FeatureRecorder(("hidden.0",))
    f.net(batch.x, 0 * t.float(), cond, tap=record)
    y = run.objective.encoder.load()(batch.x).tokens
    expected = -torch.cosine_similarity(roles["head"].net(record.features["hidden.0"]), y, dim=-1).mean()
    assert trained == ("net", "head") and set(logs) == {"alignment"}
    torch.testing.assert_close(logs["alignment"], expected)
    torch.testing.assert_close(loss, 0.5 * expected)


def test_later_blocks_are_not_computed():
    run = run_of("erw")
    f, batch, record, tap = roles_of(run)["net"], batch_of(run), FeatureRecorder(), StopAfter("hidden.0")
    f.output(batch.x, torch.zeros(8), batch.cond, tap=Chain((tap, record)))
    assert "blocks.0.attn" in record.features and "blocks.1.attn" not in record.features
    assert torch.equal(tap.value, record.features["hidden.0"])


def test_the_second_phase_is_repa_with_a_weight_that_halves():
    run = run_of("erw")
    objective = ERW(site="hidden.1", warm_site="hidden.0", warmup=10, weight=3.0, halflife=20.0, hidden=32)
    roles = roles_of(run)
    shares = []
    for step in (10, 30, 70):
        ((_, loss, logs),) = objective(roles, batch_of(run, step=step))
        shares.append(float(((loss - logs["denoising"]) / logs["alignment"]).detach()))
    assert shares == pytest.approx([3.0, 1.5, 0.375], rel=1e-4)
    assert (ERW().warmup, ERW().warm_weight, ERW().halflife) == (100_000, 0.5, 50_000.0)


def test_wrong_wishes_are_one_line():
    run = run_of("erw")
    for fields, message in (
        ({"warmup": -1}, "warmup = -1"),
        ({"halflife": 0.0}, r"halflife = 0\.0"),
        ({"warm_site": "hidden.7"}, r"no tokens at 'hidden\.7'"),
    ):
        with pytest.raises(UserError, match=message):
            ERW(**{"site": "hidden.1", **fields}).roles(run.model.build(), None)
    with pytest.raises(UserError, match=r"\[16, 16\] at hidden\.1 and \[64, 1\] at final"):
        ERW(site="hidden.1", warm_site="final").roles(run.model.build(), None)
    roles = roles_of(run)
    roles["net"] = Denoiser(roles["net"].net, EDM(), EDMPrecond())
    with pytest.raises(UserError, match="t = 0, for which EDM has no finite time value"):
        next(run.objective(roles, batch_of(run)))
