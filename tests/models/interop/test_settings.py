"""What a file says of its own training is heard: path and prediction, the model's name, the number of classes."""

from __future__ import annotations

import argparse
import itertools
import json
import math

import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.config.spec import override
from gen.diffusion.path import GVP, Flow
from gen.diffusion.sampling import integrate
from gen.models.interop.checkpoints import import_checkpoint
from tests.models.interop import published


def imported(tmp_path, state, settings, origin=None, name="args"):
    torch.save({"ema": state, name: settings}, tmp_path / "a.pt")
    done = import_checkpoint(tmp_path / "a.pt", origin, out=tmp_path / "out")
    return done, gen.load(tmp_path / "out")


def sit_path(kind, t):
    """SiT's alpha, sigma and their slopes at its own time t, whose 1 is the data: paths as its transport has them."""
    if kind == "Linear":
        return t, 1 - t, 1.0, -1.0
    if kind == "GVP":
        c, s = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
        return s, c, math.pi / 2 * c, -math.pi / 2 * s
    log = -0.25 * (1 - t) ** 2 * 19.9 - 0.5 * (1 - t) * 0.1
    slope = 0.5 * (1 - t) * 19.9 + 0.05
    a = math.exp(log)
    s = math.sqrt(1 - a**2)
    return a, s, a * slope, -(a**2) * slope / s


@pytest.mark.parametrize("prediction", ["velocity", "noise", "score"])
@pytest.mark.parametrize("kind", ["Linear", "GVP", "VP"])
@torch.no_grad()
def test_a_sit_of_any_path_and_prediction_predicts_the_data(tmp_path, kind, prediction):
    """All were imported as linear velocities."""
    settings = argparse.Namespace(model="SiT-S/2", path_type=kind, prediction=prediction)
    _, pipeline = imported(tmp_path, published.dit(), settings)
    f, g = pipeline.denoiser, torch.Generator().manual_seed(0)
    net = f.net.double()
    x, cond, t = torch.randn(3, 4, 8, 8, generator=g).double(), {"y": torch.tensor([1, 2, 3])}, 0.7
    raw = type(net)(override(net.spec, {"time_convention": "noise"})).double()
    raw.load_state_dict(net.state_dict())
    out = raw(x, torch.full((3,), t, dtype=torch.float64), cond)
    a, s, da, ds = sit_path(kind, t)
    eps = {"velocity": (a * out - da * x) / (a * ds - s * da), "noise": out, "score": -s * out}[prediction]
    ours = f(x, torch.tensor(1 - t, dtype=torch.float64), cond)
    torch.testing.assert_close(ours.eps, eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.x0, (x - s * eps) / a, rtol=1e-9, atol=1e-9)
    net.float()
    assert torch.isfinite(pipeline.sample(2, steps=4, solver="heun").x).all()  # theirs is adaptive, the net random


@pytest.mark.parametrize(
    ("kind", "prediction"),
    [
        ("Linear", "noise"),
        pytest.param("GVP", "score", marks=pytest.mark.slow),
        pytest.param("VP", "velocity", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_a_sit_s_ode_begins_and_ends_where_theirs_does(tmp_path, kind, prediction):
    """Noise and score from 0.001 to 0.999 in their time, VP from 0: their drift, here by a fine classical rule."""
    settings = argparse.Namespace(model="SiT-S/2", path_type=kind, prediction=prediction)
    _, pipeline = imported(tmp_path, published.dit(), settings)
    how, f, labels = pipeline.plan(guide="none"), pipeline.denoiser, {"y": torch.tensor([1, 4])}
    net, unit = f.net.double(), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()

    def drift(x, t):
        a, s, da, ds = sit_path(kind, t)
        out = net(x, torch.full((2,), 1 - t, dtype=torch.float64), labels)
        score = out if prediction == "score" else out / -s
        return out if prediction == "velocity" else da / a * x + (da / a * s**2 - s * ds) * score

    begin = 0.0 if kind == "VP" else 1e-3
    lams = torch.linspace(*f.path.lam(torch.tensor([1 - begin, 1e-3]).double()), 301, dtype=torch.float64)
    times = (1 - f.path.t_from_lambda(lams)).tolist()
    x = unit
    for t, s in itertools.pairwise([begin, *times[1:-1], 1 - 1e-3]):
        h = s - t
        k = drift(x, t)
        k2 = drift(x + h / 2 * k, t + h / 2)
        k3 = drift(x + h / 2 * k2, t + h / 2)
        x = x + h / 6 * (k + 2 * k2 + 2 * k3 + drift(x + h * k3, s))
    ours = integrate(f, unit, how.grid.times(f.path, how.steps), how.solver, cond=labels)
    assert float((ours - x).norm() / x.norm()) < 1e-3


@pytest.mark.parametrize("make", [published.repa, published.reg], ids=["repa", "reg"])
def test_a_cosine_path_is_repas(tmp_path, make):
    settings = argparse.Namespace(model="SiT-XL/2", path_type="cosine", prediction="v")
    done, pipeline = imported(tmp_path, make(), settings)
    assert done.run.path == GVP()
    low = 0.7 if make is published.repa else 0.85
    assert pipeline.sampler.guide.interval[1] == pytest.approx(math.tan(low * math.pi / 2))
    assert torch.isfinite(pipeline.sample(2, steps=3).x).all()


def test_gvp_is_trig_in_another_unit_of_time():
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    trig, at = gen.build("diffusion.path", "trig"), t * math.pi / 2
    for name, factor in {"alpha": 1, "sigma": 1, "dalpha": math.pi / 2, "dsigma": math.pi / 2}.items():
        torch.testing.assert_close(getattr(GVP(), name)(t), factor * getattr(trig, name)(at))
    torch.testing.assert_close(GVP().t_from_lambda(GVP().lam(t)), t)


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (published.dit, {"model": "SiT-S/2", "path_type": "Cubic"}, "path_type cubic, prediction velocity; allowed"),
        (published.dit, {"model": "SiT-S/2", "prediction": "x0"}, "prediction x0; allowed: linear, gvp"),
        (published.repa, {"path_type": "linear", "prediction": "x"}, "prediction x; allowed: .* with velocity$"),
        (published.lightning_dit, {"transport": {"prediction": "noise"}}, "prediction noise; allowed"),
        (published.rae, {"transport": {"prediction": "score"}}, "prediction score; allowed"),
    ],
    ids=["path", "sit", "repa", "lightning_dit", "rae"],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, make, settings, words):
    with pytest.raises(UserError, match=words):
        imported(tmp_path, make(), settings, name="config")


def test_sections_of_omegaconf_and_of_lightning_are_heard(tmp_path):
    config = {"transport": {"path_type": "GVP", "prediction": "velocity"}, "model": {"model_type": "LightningDiT-B/1"}}
    assert imported(tmp_path, published.lightning_dit(), config, name="config")[0].run.path == GVP()


@pytest.mark.parametrize("family", ["DiT", "SiT"])
def test_the_models_name_tells_dit_from_sit(tmp_path, family):
    settings = argparse.Namespace(model=f"{family}-XL/2")
    done, _ = imported(tmp_path, published.dit(), settings)
    assert done.origin == family.lower()
    other = {"DiT": "sit", "SiT": "dit"}[family]
    with pytest.raises(UserError, match=f"settings are of a {family}, not of a .*: give --from {family.lower()}"):
        import_checkpoint(tmp_path / "a.pt", other, out=tmp_path / "b")


def test_heads_and_autoencoder_are_those_of_the_settings(tmp_path):
    settings = argparse.Namespace(model="DiT-XL/2", num_heads=16, vae="mse")
    done, _ = imported(tmp_path, published.dit(), settings)
    assert (done.run.model.heads, done.latent["autoencoder"]) == (16, "stabilityai/sd-vae-ft-mse")


def test_ten_classes_without_no_class_are_ten(tmp_path):
    """They were imported as nine, the last of which was taken for no class."""
    state = published.dit()
    state["y_embedder.embedding_table.weight"] = state["y_embedder.embedding_table.weight"][:10]
    done, pipeline = imported(tmp_path, state, argparse.Namespace(model="DiT-S/2", num_classes=10))
    assert (done.run.model.classes, done.run.model.null_class, pipeline.sampler.guide) == (10, False, None)
    assert pipeline.sample(2, [0, 9], steps=2).x.shape == (2, 4, 8, 8)
    with pytest.raises(UserError, match="no class that means none"):
        pipeline.sample(2, steps=2, guide="cfg")
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(UserError, match="has 10 rows, and the weights do not show"):
        import_checkpoint(tmp_path / "b.pt", "dit", out=tmp_path / "b")
    nine = import_checkpoint(tmp_path / "b.pt", {"name": "dit", "classes": 9}, out=tmp_path / "b").run.model
    assert (nine.classes, nine.null_class) == (9, True)
    with pytest.raises(UserError, match="10 rows for 4 classes"):
        import_checkpoint(tmp_path / "b.pt", {"name": "dit", "classes": 4}, out=tmp_path / "c")


def test_settings_that_say_nothing_change_nothing(tmp_path):
    done, _ = imported(tmp_path, published.dit(), {"lr": 1e-4, "global_batch_size": 256}, "sit", name="hparams")
    assert done.run.path == Flow() and json.dumps(done.latent)


LIGHTNING = """
ckpt_path: 'path'
model: {model_type: LightningDiT-S/1, use_qknorm: false}
transport:
  path_type: GVP
  prediction: velocity
optimizer: {lr: 0.0002, beta2: 0.95}
"""


@pytest.mark.parametrize(
    ("name", "text", "make", "path"),
    [
        ("args.json", json.dumps({"model": "SiT-S/2", "path_type": "cosine", "prediction": "v"}), "repa", GVP()),
        ("config.yaml", LIGHTNING, "lightning_dit", GVP()),
        ("hparams.yaml", "transport: {path_type: Linear}\nmodel: {num_heads: [16, 16]}\n", "lightning_dit", Flow()),
    ],
)
@pytest.mark.parametrize("above", [False, True])
def test_settings_beside_the_weights_are_read_as_those_inside(tmp_path, name, text, make, path, above):
    folder = tmp_path / "exp" / "checkpoints" if above else tmp_path / "exp"
    folder.mkdir(parents=True)
    (tmp_path / "exp" / name).write_text(text)
    torch.save({"ema": getattr(published, make)()}, folder / "0400000.pt")
    done = import_checkpoint(folder / "0400000.pt", out=tmp_path / "out")
    assert done.run.path == path
    info = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert name in info["source"]["files"]


def test_the_settings_in_the_file_come_before_those_beside_it(tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"path_type": "cosine"}))
    settings = argparse.Namespace(model="SiT-XL/2", path_type="linear", prediction="v")
    assert imported(tmp_path, published.repa(), settings)[0].run.path == Flow()


def test_a_ddt_s_settings_say_where_its_encoder_ends(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "model:\n  denoiser:\n    init_args: {num_encoder_blocks: 1, num_blocks: 2}\n"
    )
    torch.save(published.ddt(), tmp_path / "a.pt")
    done = import_checkpoint(tmp_path / "a.pt", {"name": "ddt", "size": 8}, out=tmp_path / "out")
    assert done.run.model.encoder == 1


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "refers to other parts"),
        ("[" * 40 + "]" * 40, "nested deeper"),
        ("a: 1\na: 2\n", "'a' twice"),
        ("a: !!python/object/apply:os.system [true]\n", "no YAML of settings"),
        ("a: [", "no YAML of settings"),
        ("x" * (2**20 + 1), "at most"),
    ],
)
def test_settings_that_are_no_plain_yaml_are_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    torch.save({"model": published.dit()}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=message) as caught:
        import_checkpoint(tmp_path / "a.pt", "dit", out=tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
