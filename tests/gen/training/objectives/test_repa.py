"""What REPA and its relatives share: heads apart from the denoiser, a teacher that learns nothing, the same bits."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.alignment import Features
from gen.diffusion.tap import FeatureRecorder
from gen.pipeline import load
from gen.training.log import read_metrics
from gen.training.objectives.denoise import Denoising
from gen.training.objectives.repa import REPA, loaded, site_shape
from gen.training.trainer import train
from tests.gen.training.objectives.aligned import RUNS, SMALL, batch_of, roles_of, run_of
from tests.gen.training.test_trainer import same, weights


@pytest.mark.parametrize("name", RUNS)
def test_the_loss_is_finite_and_reaches_net_and_head_but_not_the_encoder(name):
    run = run_of(name)
    roles, batch = roles_of(run), batch_of(run, step=4)
    ((trained, loss, logs),) = run.objective(roles, batch)
    loss.backward()
    assert trained == ("net", "head") and loss.isfinite() and all(v.isfinite() for v in logs.values())
    for role in trained:
        missing = [n for n, p in roles[role].net.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, (role, missing)
    teacher = loaded(run.objective.encoder, "cpu")
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not any(teacher is net.net or teacher in net.net.modules() for net in roles.values())


@pytest.mark.parametrize("name", RUNS)
def test_the_same_seed_gives_the_same_loss(name):
    run = run_of(name)
    first, again, other = (
        float(next(run.objective(roles_of(run, seed), batch_of(run, step=4)))[1].detach()) for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_stopping_and_going_on_gives_the_same_bits(name, tmp_path):
    """ERW stops in its first phase and ends in its second."""
    train(run_of(name), tmp_path / "whole", quiet=True)
    train(run_of(name, steps=3), tmp_path / "parts", quiet=True)
    train(run_of(name), tmp_path / "parts", quiet=True)
    for place in ("final", "checkpoints/step-0000006"):
        whole = weights(tmp_path / "whole", place)
        assert same(whole, weights(tmp_path / "parts", place)) and any(k.startswith("head") for k in whole)
    logs = [read_metrics(tmp_path / folder / "metrics.jsonl") for folder in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert all("alignment" in entry for entry in logs[0] if entry["split"] == "train")


@pytest.mark.parametrize("name", RUNS)
def test_the_denoisers_file_knows_nothing_of_heads(name, tmp_path):
    run = run_of(name, steps=1, validate_every=0)
    train(run, tmp_path, quiet=True)
    files = checkpoints.read(tmp_path / "final")["files"]
    assert set(files) == {"net.safetensors", "net-ema.safetensors", "head.safetensors", "head-ema.safetensors"}
    with safe_open(tmp_path / "final" / "net.safetensors", "pt") as file:
        assert set(file.keys()) == set(run.model.build().state_dict())
    assert load(tmp_path).sample(2).x.shape == (2, 1, 8, 8)


def test_without_weight_the_network_learns_what_denoising_teaches_it():
    run = run_of("repa")
    plain, aligned = Denoising(), replace(run.objective, weight=0.0)
    grads = []
    for objective in (plain, aligned):
        roles, batch = roles_of(run), batch_of(run)
        next(objective(roles, batch))[1].backward()
        grads.append({n: p.grad for n, p in roles["net"].net.named_parameters() if p.requires_grad})
    assert same(*grads)
    assert torch.equal(plain.validate(roles, batch), aligned.validate(roles, batch))


def test_a_head_that_says_what_the_encoder_says_costs_minus_one():
    run = run_of("repa")
    features = run.objective.encode(batch_of(run))[0]
    loss, logs = run.objective.align(torch.nn.Identity(), 3 * features.tokens, features)
    assert float(logs["alignment"]) == pytest.approx(-1, abs=1e-6)
    assert float(loss) == pytest.approx(-0.5, abs=1e-6)


def test_the_encoder_sees_the_clean_image_and_the_head_the_noised_one():
    run = run_of("repa")
    roles, batch = roles_of(run), batch_of(run)
    ((_, loss, logs),) = run.objective(roles, batch)
    f, (t, cond) = roles["net"], run.objective.draw(roles["net"], batch)
    record = FeatureRecorder(("hidden.1",))
    f.output(f.path.mix(batch.x, batch.normal("eps"), t), t, cond, tap=record)
    h, y = roles["head"].net(record.features["hidden.1"]), run.objective.encoder.load()(batch.x).tokens
    expected = -torch.cosine_similarity(h, y, dim=-1).mean()
    torch.testing.assert_close(logs["alignment"], expected)
    torch.testing.assert_close(loss, logs["denoising"] + 0.5 * expected)


def test_repa_learns_to_agree(tmp_path):
    run = run_of("repa", optim={"name": "adamw", "lr": 5e-3}, steps=40, validate_every=0)
    train(run, tmp_path, quiet=True)
    seen = [entry["alignment"] for entry in read_metrics(tmp_path / "metrics.jsonl")]
    assert seen[-1] < seen[0] - 0.3


def test_an_encoder_is_loaded_once():
    one, other = (build("models.encoders", "digits_cnn") for _ in range(2))
    assert loaded(one, "cpu") is loaded(other, "cpu")


def test_a_site_has_a_shape_before_any_training():
    net = build("models", SMALL).build()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.random.get_rng_state()
    assert site_shape(net, "hidden.2") == (16, 16) == site_shape(net, "trunk")
    assert same(before, net.state_dict()) and torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"site": "hidden.9"}, r"no tokens at 'hidden\.9'\. Did you mean 'hidden\.[012]'"),
        ({"site": "blocks.0"}, "no tokens at 'blocks.0'"),
        ({"encoder": "resnet"}, "unknown name 'resnet'"),
        ({"weight": -1.0}, r"weight = -1\.0"),
        ({"encoder": {"name": "stored", "dim": 5, "grid": 3}}, "has 16 tokens and the encoder a grid of 3 x 3"),
        ({"class_dropout": 2.0}, "class_dropout"),
    ],
)
def test_wrong_wishes_are_refused_before_training(fields, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        train(run_of("repa", objective={"name": "repa", "site": "hidden.1", **fields}), tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


# Latents: the encoder's features come with the data.


def latents(folder, cls, n=24):
    """Latents [n, 1, 8, 8] with labels, and features of 16 places, a class token before them if cls."""
    g = torch.Generator().manual_seed(0)
    tensors = {
        "latents": torch.randn(n, 1, 8, 8, generator=g),
        "labels": torch.arange(n) % 10,
        "features": torch.randn(n, 16 + cls, 6, generator=g),
    }
    save_file(tensors, folder / "a.safetensors")
    return {"name": "latents", "path": str(folder / "a.safetensors"), "features": True}


@pytest.mark.parametrize("name", RUNS)
def test_stored_features_take_the_encoders_place(name, tmp_path):
    data = latents(tmp_path, cls=name == "reg")
    encoder = {"name": "stored", "dim": 6, "grid": 4, "cls": name == "reg"}
    model = {**RUNS[name]["model"], **({"cls_dim": 6} if name == "reg" else {})}
    objective = {**RUNS[name]["objective"], "encoder": encoder}
    done = train(run_of(name, data=data, objective=objective, model=model), tmp_path / "run", quiet=True)
    assert done.step == 6 and done.val_loss is not None
    assert load(tmp_path / "run").sample(2).x.shape == (2, 1, 8, 8)


def test_stored_features_never_reach_the_network():
    objective = REPA(encoder={"name": "stored", "dim": 6, "grid": 4}, site="hidden.1")
    run = run_of("repa")
    h = torch.randn(8, 16, 6)
    features, batch = objective.encode(batch_of(run, features=h))
    assert set(batch.cond) == {"y"} and torch.equal(features.tokens, h) and isinstance(features, Features)
    with pytest.raises(UserError, match=r"reads 'features', which this data does not give beside x; it gives y"):
        objective.encode(batch_of(run))
