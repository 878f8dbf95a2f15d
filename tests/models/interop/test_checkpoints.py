"""Public checkpoints, in small: names from the repositories, conventions, and every way a file can be wrong."""

from __future__ import annotations

import argparse

import pytest
import torch
from safetensors.torch import save_file

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build, find, names
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import EDMPrecond, Eps
from gen.diffusion.path import DDPM, EDM, GVP, Flow
from gen.models.interop.checkpoints import FOLDER, import_checkpoint
from gen.models.interop.weights import Weights, read
from tests.models.interop import published

DDT = {"name": "ddt", "size": 8, "encoder": 3}
EDM2 = {"name": "edm2", "head_width": 16}
ADM = {"name": "adm", "size": 8, "heads": 2}
# origin: (spec for --from, what a file of it holds)
DIMSUM = {"name": "dimsum", "heads": 4, "fusion_heads": 4, "levels": 1, "shared_every": 2}
ORIGINS = {
    "dit": ("dit", published.dit),
    "sit": ("sit", published.dit),
    "repa": (None, published.repa),
    "reg": (None, published.reg),
    "lightning_dit": (None, published.lightning_dit),
    "ddt": (DDT, published.lightning_ckpt),
    "rae": (None, published.rae),
    "edm2": (EDM2, published.edm2),
    "adm": (ADM, published.adm),
    "dimsum": (DIMSUM, published.dimsum),
}


def saved(tmp_path, content, name="a.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def imported(tmp_path, origin):
    spec, make = ORIGINS[origin]
    done = import_checkpoint(saved(tmp_path, make(), f"{origin}.pt"), spec, out=tmp_path / origin)
    return done, gen.load(tmp_path / origin)


def inputs(pipeline, n=3, seed=1):
    g = torch.Generator().manual_seed(seed)
    shape = getattr(pipeline.denoiser.net, "state_shape", pipeline.shape)
    x = torch.randn(n, *shape, generator=g, dtype=torch.float64)
    return x, {"y": torch.randint(0, published.CLASSES, (n,), generator=g)}


def test_every_origin_is_tested():
    assert set(names(FOLDER)) == {
        *ORIGINS,
        "diffusers",
        "dfm",
        "diffusers_autoencoder",
        "edm",
        "ldm_autoencoder",
        "mmdit",
        "pixart",
        "rae_autoencoder",
        "unet2d",
    }


@pytest.mark.parametrize("origin", ORIGINS)
def test_an_origin_is_imported_whole_and_samples(tmp_path, origin):
    done, pipeline = imported(tmp_path, origin)
    made = ORIGINS[origin][1]()
    there = published.ddt() if origin == "ddt" else made  # the average, not the weights beside it
    kept = {name: value for name, value in there.items() if not name.startswith("projectors.")}
    ours = pipeline.denoiser.net.state_dict()
    assert set(ours) == set(kept) and done.matched == len(kept) and len(done.dropped) == len(there) - len(kept)
    assert all(torch.equal(ours[name], value) for name, value in kept.items())
    sample = pipeline.sample(2, steps=3)
    assert sample.x.shape == (2, *pipeline.shape) and bool(torch.isfinite(sample.x).all())
    assert pipeline.info["source"]["origin"] == origin and "autoencoder" in pipeline.info["latent"]
    assert len(next(iter(pipeline.info["source"]["files"].values()))) == 64


@pytest.mark.parametrize("origin", ["sit", "lightning_dit", "ddt"])
@torch.no_grad()
def test_those_who_count_from_noise_to_data(tmp_path, origin):
    """Their net at 1 - t says the velocity towards data: ours at t is minus that."""
    pipeline = imported(tmp_path, origin)[1]
    f, (x, cond) = pipeline.denoiser, inputs(pipeline)
    net, raw = f.net.double(), type(f.net)(gen.config.spec.override(f.net.spec, {"time_convention": "noise"})).double()
    raw.load_state_dict(net.state_dict())
    t = torch.tensor(0.3, dtype=torch.float64)
    velocity = Flow().velocity(Denoiser(net, f.path, f.parameterisation)(x, t, cond), t)
    torch.testing.assert_close(velocity, -raw(x, (1 - t).expand(3), cond), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("origin", ["repa", "reg", "rae"])
@torch.no_grad()
def test_those_who_count_from_data_to_noise(tmp_path, origin):
    pipeline = imported(tmp_path, origin)[1]
    f, (x, cond) = pipeline.denoiser, inputs(pipeline)
    assert f.net.spec.time_convention == "noise"
    net, t = f.net.double(), torch.tensor(0.3, dtype=torch.float64)
    velocity = Flow().velocity(Denoiser(net, f.path, f.parameterisation)(x, t, cond), t)
    torch.testing.assert_close(velocity, net(x, t.expand(3), cond), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_dimsum_s_time_is_that_of_gvp_and_a_condition_that_is_never_read_goes(tmp_path):
    state = published.dimsum(condition=True)
    done = import_checkpoint(saved(tmp_path, {"model": state, "ema": state}), DIMSUM, out=tmp_path / "out")
    assert {name.split(".")[-2] for name in done.dropped} == {"cond_proj"} and done.weights == "ema"
    f, (x, cond) = (pipeline := gen.load(tmp_path / "out")).denoiser, inputs(pipeline)
    net, told = f.net.double(), torch.full((3,), 0.7, dtype=torch.float64)
    raw = type(net)(gen.config.spec.override(net.spec, {"time_convention": "noise"})).double().eval()
    raw.load_state_dict(net.state_dict())
    t = torch.tensor(0.3, dtype=torch.float64)
    assert f.path == GVP() and pipeline.sampler.guide.scale == 4.0
    torch.testing.assert_close(f.path.velocity(f(x, t, cond), t), -raw(x, told, cond), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_table_of_one_label_is_part_of_the_time_embedding(tmp_path):
    state, table = published.dimsum(), "y_embedder.embedding_table.weight"
    whole = import_checkpoint(saved(tmp_path, state), DIMSUM, out=tmp_path / "whole")
    one = import_checkpoint(saved(tmp_path, {**state, table: state[table][3:4]}, "b.pt"), DIMSUM, out=tmp_path / "one")
    assert one.run.model.classes == 0 and list(one.dropped) == [table] and one.run.sampler.guide is None
    (x, _), a, b = inputs(gen.load(whole.folder)), gen.load(whole.folder).denoiser, gen.load(one.folder).denoiser
    t, y = torch.tensor(0.4, dtype=torch.float64), torch.full((3,), 3)
    torch.testing.assert_close(b(x.float(), t).x0, a(x.float(), t, {"y": y}).x0, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_dit_takes_the_entry_of_the_table_and_predicts_the_noise(tmp_path):
    pipeline = imported(tmp_path, "dit")[1]
    f, (x, cond) = pipeline.denoiser, inputs(pipeline)
    f.net.double()
    assert (f.path, f.parameterisation, f.net.spec.learn_sigma) == (DDPM(), Eps(), True)
    told = f.net(x, torch.full((3,), 499.0, dtype=torch.float64), cond)
    torch.testing.assert_close(f(x, torch.tensor(500.0, dtype=torch.float64), cond).eps, told)


@torch.no_grad()
def test_edm2_is_preconditioned_as_published(tmp_path):
    """D = c_skip x + c_out F(c_in x; ln(sigma) / 4), written out."""
    pipeline = imported(tmp_path, "edm2")[1]
    f, (x, cond) = pipeline.denoiser, inputs(pipeline)
    f.net.double()
    assert (f.path, f.parameterisation) == (EDM(), EDMPrecond())
    sigma = torch.tensor(2.0, dtype=torch.float64)
    told = f.net(x / (0.25 + sigma**2).sqrt(), (sigma.log() / 4).expand(3), cond)
    clean = 0.25 / (sigma**2 + 0.25) * x + sigma * 0.5 / (sigma**2 + 0.25).sqrt() * told
    torch.testing.assert_close(f(x, sigma, cond).x0, clean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("origin", "scale", "channels", "interval"),
    [
        ("dit", 1.5, 3, None),
        ("sit", 1.5, 3, None),
        ("repa", 1.8, None, 0.7 / 0.3),
        ("reg", 2.3, None, 0.85 / 0.15),
        ("lightning_dit", 6.7, 3, 7.0),
        ("ddt", 2.0, None, 0.7 / 0.3),
        ("rae", None, None, None),
        ("edm2", None, None, None),
    ],
)
def test_they_are_guided_as_published(tmp_path, origin, scale, channels, interval):
    done, pipeline = imported(tmp_path, origin)
    guide = pipeline.sampler.guide
    assert done.run.objective is None and done.run.data is None
    if scale is None:
        assert guide is None
    else:
        assert (guide.scale, guide.channels) == (scale, channels)
        assert guide.interval is None if interval is None else guide.interval[1] == pytest.approx(interval)


# what a file may look like ------------------------------------------------------------------------------------------


def test_the_average_is_taken_unless_another_is_named(tmp_path):
    content = {"model": published.dit(seed=1), "ema": published.dit(seed=2), "opt": {}, "args": argparse.Namespace(a=1)}
    path = saved(tmp_path, content)
    ema, model = read(path), read(path, "model")
    assert ema.settings == {"a": 1}
    assert (ema.chosen, model.chosen, ema.unread) == ("ema", "model", ("model", "opt", "args"))
    for got, seed in ((ema, 2), (model, 1)):
        assert all(torch.equal(got.tensors[name], value) for name, value in published.dit(seed=seed).items())
    only = saved(tmp_path, {"model": published.dit()}, "only.pt")
    assert read(only).chosen == "model"
    with pytest.raises(UserError, match="has no ema weights; it has model"):
        read(only, "ema")
    with pytest.raises(UserError, match="leave out --weights ema"):
        read(saved(tmp_path, published.dit(), "bare.pt"), "ema")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix):
    wrapped = {f"{prefix}{name}".replace("blocks.1.", "blocks.1._orig_mod."): v for name, v in published.dit().items()}
    assert set(read(saved(tmp_path, wrapped)).tensors) == set(published.dit())


def test_safetensors_half_precision_views_and_legacy_files_are_read_alike(tmp_path):
    plain = {name: value.half() for name, value in published.dit().items()}
    save_file(plain, tmp_path / "a.safetensors")
    long = torch.cat([value.flatten() for value in plain.values()])
    views, first = {}, 0
    for name, value in plain.items():
        views[name] = long[first : first + value.numel()].view(value.shape)
        first += value.numel()
    torch.save(views, tmp_path / "views.pt")
    torch.save(plain, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for i, name in enumerate(("a.safetensors", "views.pt", "old.pt")):
        import_checkpoint(tmp_path / name, "dit", out=tmp_path / str(i))
        ours = gen.load(tmp_path / str(i)).denoiser.net.state_dict()
        assert all(torch.equal(ours[key], value.float()) for key, value in plain.items())


def test_a_table_of_positions_that_drifted_in_the_average_is_kept_as_it_is(tmp_path):
    """The repositories average pos_embed too; in float32 a constant does not survive that unchanged."""
    content, table = published.dit(), published.dit()["pos_embed"]
    drifted = table.clone()
    for _ in range(20_000):
        drifted.mul_(0.9999).add_(table, alpha=1 - 0.9999)
    assert 1e-5 < float((drifted - table).abs().max()) < 1e-3
    import_checkpoint(saved(tmp_path, {**content, "pos_embed": drifted}), "dit", out=tmp_path / "a")
    assert torch.equal(gen.load(tmp_path / "a").denoiser.net.pos_embed, drifted)


def test_first_releases_of_repa_numbered_their_blocks_otherwise(tmp_path):
    old = {name.replace("blocks.3.", "decoder_blocks.0."): value for name, value in published.repa().items()}
    import_checkpoint(saved(tmp_path, old), "repa", out=tmp_path / "a")
    ours = gen.load(tmp_path / "a").denoiser.net.state_dict()
    assert torch.equal(ours["blocks.3.mlp.fc1.weight"], published.repa()["blocks.3.mlp.fc1.weight"])


def test_the_released_sit_has_variances_and_ones_own_has_not(tmp_path):
    for i, learned in enumerate((True, False)):
        done = import_checkpoint(saved(tmp_path, published.dit(learned)), "sit", out=tmp_path / str(i))
        assert done.run.model.learn_sigma is learned and done.run.model.time_convention == "data"


def test_heads_are_looked_up_asked_for_or_taken_from_a_preset(tmp_path):
    path = saved(tmp_path, {k: v for k, v in published.dit().items() if not k.startswith("blocks.3.")})
    with pytest.raises(UserError, match="no published model has width 64, depth 3"):
        import_checkpoint(path, "dit", out=tmp_path / "a")
    done = import_checkpoint(path, {"name": "dit", "heads": 8}, out=tmp_path / "a")
    assert (done.run.model.heads, done.run.model.depth) == (8, 3)
    whole = saved(tmp_path, published.dit())
    assert import_checkpoint(whole, "dit", preset="digits", out=tmp_path / "b").run.model.heads == 4
    with pytest.raises(UserError, match="not of preset 'S/2': they have width 64, depth 4, heads 4"):
        import_checkpoint(whole, {"name": "dit", "heads": 4}, preset="S/2", out=tmp_path / "c")


@pytest.mark.parametrize(
    ("origin", "family", "preset"),
    [
        ("dit", "dit", "DiT-XL/2"),
        ("repa", "dit", "DiT-B/2"),
        ("reg", "reg", "REG-XL/2"),
        ("lightning_dit", "lightning_dit", "LightningDiT-XL/1"),
        ("rae", "lightning_dit", "RAE-DiT-XL/1"),
        ("rae", "dit_dh", "DiTDH-XL"),
        ("ddt", "ddt", "DDT-XL/2"),
        ("edm2", "edm2", "EDM2-XS"),
    ],
)
def test_published_sizes_are_recognised_by_their_shapes_alone(origin, family, preset):
    """On the meta device nothing is computed, so the tables that are compared are put there."""
    spec = find(family, "models").preset(preset)
    with torch.device("meta"):
        state = dict(spec.build().state_dict())
    if "pos_embed" in state:
        front = int(family == "reg")
        state["pos_embed"] = published.places(spec.width, spec.size // spec.patch, front)
    for name in [name.removesuffix(".freqs_cos") for name in state if name.endswith(".freqs_cos")]:
        dim = state[f"{name}.freqs_cos"].shape[1]
        state |= {f"{name}.{key}": value for key, value in published.turns(dim, spec.size // spec.patch).items()}
    weights = Weights(state, "bare", {})
    run = build(FOLDER, origin).read(weights, None).run
    assert run.model == spec
    if origin == "rae":
        assert run.sampler.grid.shift == pytest.approx((16 * 16 * 768 / 4096) ** 0.5)
    assert build(FOLDER, origin).read(weights, preset).run.model == spec


# what is wrong -------------------------------------------------------------------------------------------------------


def refused(capsys, tmp_path, *words):
    """The one line, when nothing is written and the code is 2."""
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(["import", *map(str, words), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gen: ") and err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    return err


def test_each_wrong_file_is_one_line(tmp_path, capsys):
    whole = saved(tmp_path, published.dit(), "whole.pt")
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:20_000])
    save_file(published.dit(), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:20_000])
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    saved(tmp_path, {"opt": {"a": 1}}, "opt.pt")
    saved(tmp_path, [1, 2], "list.pt")
    saved(tmp_path, {"a": torch.ones(1)}, "other.pt")
    said = {
        "absent.pt": "does not exist",
        "cut.pt": "is damaged",
        "cut.safetensors": "is damaged",
        "text.pt": "is damaged",
        "empty.pt": "is empty",
        "folder": "holds no diffusion_pytorch_model.safetensors or .bin",
        "opt.pt": "holds no state dict, but opt",
        "list.pt": "holds list, expected tensors by name",
        "other.pt": "is of no origin known here",
    }
    for name, expected in said.items():
        assert expected in refused(capsys, tmp_path, tmp_path / name), name


def test_each_wrong_content_is_one_line(tmp_path, capsys):
    good = published.dit()

    def said(content, *more):
        return refused(capsys, tmp_path, saved(tmp_path, content, "x.pt"), *(more or ("--from", "dit")))

    saved(tmp_path, {}, "x.pt")
    two = "may be of dit or sit, whose weights look alike: say which with --from"
    assert two in refused(capsys, tmp_path, saved(tmp_path, good, "x.pt"))
    assert "1 unexpected: blocks.0.extra" in said({**good, "blocks.0.extra": torch.ones(1)})
    without = {k: v for k, v in good.items() if k != "blocks.2.mlp.fc2.bias"}
    assert "51 tensors matched, 1 missing: blocks.2.mlp.fc2.bias" in said(without)
    assert "t_embedder.mlp.0.weight is [64, 128], expected [64, 256]" in said(
        {**good, "t_embedder.mlp.0.weight": torch.ones(64, 128)}
    )
    assert "not finite" in said({**good, "final_layer.linear.bias": torch.full((32,), torch.nan)})
    assert "blocks.N are [0, 2, 3]" in said({k: v for k, v in good.items() if not k.startswith("blocks.1.")})
    assert "no x_embedder.proj.weight" in said(published.edm2())
    assert "unexpected" in said(published.repa())  # projectors are not DiT's
    assert "no cls_projectors2.weight" in said(good, "--from", "reg")
    assert "Did you mean 'dit'" in said(good, "--from", "ditt")
    assert "feat_rope.freqs_cos differs" in said(
        {**published.lightning_dit(), "feat_rope.freqs_cos": torch.zeros(16, 16)}, "--from", "lightning_dit"
    )
    assert "how many of the 4 blocks are the encoder's" in said(
        {k: v[:48, :48] if v.ndim > 1 else v for k, v in published.ddt().items()}, "--from", "ddt"
    )


def test_nothing_that_exists_is_written_over(tmp_path, capsys):
    path = saved(tmp_path, published.dit())
    (tmp_path / "out").mkdir()
    assert main(["import", str(path), "--from", "dit", "--out", str(tmp_path / "out")]) == 2
    assert "out exists: give a new folder" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_the_report_tells_what_became_of_everything(tmp_path, capsys):
    path = saved(tmp_path, {"ema": published.repa(), "model": published.repa(3), "steps": 4})
    assert main(["import", str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    for expected in (
        "a.pt: repa, weights ema",
        "52 tensors",
        "missing 0, unexpected 0",
        "6 tensors (a projector, used in training only)",
        "model, steps",
        "velocity: toward noise",
        "scale 1.8",
        "decode(x / 0.18215 + 0.0) of stabilityai/sd-vae-ft-ema",
    ):
        assert expected in said
