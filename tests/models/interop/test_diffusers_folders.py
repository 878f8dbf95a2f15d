"""DiT folders of diffusers, to and from: equal outputs in float64, and what cannot be equal is refused."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import gen
from gen.cli import main
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.parameterisation import Eps, V, Velocity
from gen.diffusion.path import DDPM, VP, Flow, ZeroSNR
from gen.models.dit import DiT
from gen.models.interop.checkpoints import import_checkpoint
from gen.models.interop.diffusers_export import export
from gen.models.interop.diffusers_names import from_diffusers, to_diffusers
from gen.models.interop.public.diffusers import read_scheduler
from gen.training.resume import versions
from gen.training.run import Run, Sampler, run_spec
from tests.models.interop import published

CLASSES = 10


def diffusers():
    return importlib.import_module("diffusers")


def theirs(seed=0, **changes):
    """A small transformer of theirs whose every weight matters, its blocks' embedders alike as in published folders."""
    settings = {"out_channels": 8, "num_layers": 3, "sample_size": 8, "num_embeds_ada_norm": CLASSES} | changes
    torch.manual_seed(seed)
    model = diffusers().DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, **settings)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    first = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(first)
    return model.eval()


def unlike(model, net):
    """The largest difference of the two networks' outputs in float64, over the largest output."""
    x, t, y = inputs()
    with torch.no_grad():
        exact = model.double()(x, timestep=t, class_labels=y).sample[:, : x.shape[1]]
        return float((net.double()(x, t, {"y": y}) - exact).abs().max() / exact.abs().max())


def inputs():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, 8, 8, generator=g, dtype=torch.float64)
    return x, torch.tensor([0.0, 17.5, 999.0]), torch.tensor([1, 9, CLASSES])


def run_folder(folder, spec, path, param, seed=0, **settings):
    """A checkpoint of ours whose every weight matters."""
    torch.manual_seed(seed)
    net = spec.build()
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    about = {"role": "net", "step": 0, "shape": [spec.channels, spec.size, spec.size], "classes": spec.classes}
    run = run_spec(Run(model=spec, path=path, parameterisation=param, ema=(), **settings))
    checkpoints.write(folder, {"net.safetensors": net.state_dict()}, {"run": run, **about, "versions": versions()})
    return net.eval()


OURS = DiT(size=8, channels=4, classes=CLASSES, width=16, depth=3, heads=2, learn_sigma=True, freq_shift=1)


# in ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-5, 1e-6])
def test_an_imported_folder_computes_what_diffusers_does(tmp_path, eps):
    model = theirs(norm_eps=eps)
    model.save_pretrained(tmp_path / "x" / "transformer")
    done = import_checkpoint(tmp_path / "x", out=tmp_path / "a")
    assert (done.origin, done.run.model.freq_shift, done.run.model.mlp_norm_eps) == ("diffusers", 1, eps)
    pipeline = gen.load(tmp_path / "a")
    assert pipeline.sample(2, steps=2).x.shape == (2, 4, 8, 8)
    assert unlike(model, pipeline.denoiser.net) < 1e-13


def test_the_published_dit_is_theirs_with_two_conventions_set_and_not_without(tmp_path):
    """Weights of facebookresearch/DiT in both: equal with waves of freq_shift 0 and eps 1e-6, unequal as it comes."""
    torch.save(published.dit(), tmp_path / "a.pt")
    import_checkpoint(tmp_path / "a.pt", "dit", out=tmp_path / "a")
    net = gen.load(tmp_path / "a").denoiser.net
    sizes = {"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 4}
    make = diffusers().DiTTransformer2DModel

    def loaded(eps):
        model = make(sample_size=8, num_embeds_ada_norm=CLASSES, norm_eps=eps, **sizes)
        model.load_state_dict(to_diffusers(published.dit(), 4))
        return model.eval()

    assert unlike(loaded(1e-6), net) > 0.01
    model = loaded(1e-6)
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    assert unlike(model, net) < 1e-13
    model = loaded(1e-5)
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    assert unlike(model, net) > 1e-8


def test_old_names_bin_files_and_shards_are_read_alike(tmp_path):
    model = theirs()
    state, config = model.state_dict(), json.loads(model.to_json_string())
    places = {name: tmp_path / name for name in ("new", "old", "shards")}
    for place in places.values():
        place.mkdir()
        (place / "config.json").write_text(json.dumps(config))
    save_file(state, places["new"] / "diffusion_pytorch_model.safetensors")
    (places["old"] / "config.json").write_text(json.dumps(config | {"_class_name": "Transformer2DModel"}))
    torch.save(state, places["old"] / "diffusion_pytorch_model.bin")
    table = {name: f"diffusion_pytorch_model-{1 + ('1' in name)}.safetensors" for name in state}
    for file in set(table.values()):
        save_file({name: state[name] for name in state if table[name] == file}, places["shards"] / file)
    index = places["shards"] / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    nets = []
    for name, place in places.items():
        import_checkpoint(place, "diffusers", out=tmp_path / f"out-{name}")
        nets.append(gen.load(tmp_path / f"out-{name}").denoiser.net.state_dict())
    assert all(torch.equal(nets[0][key], other[key]) for other in nets[1:] for key in nets[0])


def test_the_scheduler_decides_the_path(tmp_path):
    theirs().save_pretrained(tmp_path / "x" / "transformer")
    kind = {
        "prediction_type": "v_prediction",
        "beta_schedule": "scaled_linear",
        "beta_start": 8.5e-4,
        "beta_end": 0.012,
    }
    diffusers().DDIMScheduler(**kind).save_pretrained(tmp_path / "x" / "scheduler")
    done = import_checkpoint(tmp_path / "x", out=tmp_path / "a")
    assert (done.run.path, done.run.parameterisation) == (DDPM("scaled_linear", 1000, 8.5e-4, 0.012), V())
    kind |= {"rescale_betas_zero_snr": True, "set_alpha_to_one": False, "steps_offset": 1}
    path, _, grid, _ = read_scheduler(kind, "scheduler_config.json")
    assert path == ZeroSNR(DDPM("scaled_linear", 1000, 8.5e-4, 0.012))
    assert grid["stop"] == 0 and build("samplers.grids", grid).times(path, 2).tolist() == [502, 2, 1]


@pytest.mark.parametrize(
    "settings", [{}, {"steps_offset": 1}, {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}]
)
@pytest.mark.parametrize("kind", ["DDIMScheduler", "DDPMScheduler"])
def test_the_timesteps_are_the_schedulers(tmp_path, kind, settings):
    """.21 off at 50 steps, before timestep_spacing was read."""
    scheduler = getattr(diffusers(), kind)(clip_sample=False, **settings)
    theirs().save_pretrained(tmp_path / "x" / "transformer")
    scheduler.save_pretrained(tmp_path / "x" / "scheduler")
    done = import_checkpoint(tmp_path / "x", out=tmp_path / "a")
    scheduler.set_timesteps(50)
    times = done.run.sampler.grid.times(done.run.path, 50)
    assert (times[:-1] - 1).tolist() == scheduler.timesteps.tolist()
    assert not [note for note in done.notes if "clip_sample" in note]


def test_what_a_scheduler_does_besides_is_said(tmp_path):
    theirs().save_pretrained(tmp_path / "x" / "transformer")
    diffusers().DDIMScheduler(set_alpha_to_one=False).save_pretrained(tmp_path / "x" / "scheduler")
    notes = "; ".join(import_checkpoint(tmp_path / "x", out=tmp_path / "a").notes)
    assert "its clip_sample is not applied" in notes and "set_alpha_to_one" in notes


def test_the_plan_of_an_exported_model_comes_back(tmp_path):
    """cfg 1.5 on 3 channels came back as 4.0 on all."""
    plan = Sampler(
        solver="euler",
        steps=7,
        grid="linear",
        guide={"name": "cfg", "scale": 1.5, "channels": 3, "interval": [0.1, 2.0]},
    )
    run_folder(tmp_path / "run", OURS, DDPM(), Eps(), sampler=plan)
    export(tmp_path / "run", tmp_path / "x")
    assert import_checkpoint(tmp_path / "x", out=tmp_path / "again").run.sampler == plan
    note = tmp_path / "x" / "transformer" / "gen.json"
    note.write_text(note.read_text().replace('"name": "cfg"', '"name": "evil:Guide"'))
    with pytest.raises(UserError, match=r"sampler is .*allowed: a spec of gen's own"):
        import_checkpoint(tmp_path / "x", out=tmp_path / "b")


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, "beta_schedule None"),
        ("DDIMScheduler", {"trained_betas": [0.1, 0.2]}, "trained_betas; allowed"),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas; allowed"),
    ],
)
def test_a_scheduler_of_another_path_is_refused(tmp_path, kind, fields, words):
    theirs().save_pretrained(tmp_path / "x" / "transformer")
    getattr(diffusers(), kind)(**fields).save_pretrained(tmp_path / "x" / "scheduler")
    with pytest.raises(UserError, match=words):
        import_checkpoint(tmp_path / "x", out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_each_wrong_folder_is_one_line(tmp_path, capsys):
    model = theirs()
    model.save_pretrained(tmp_path / "x")
    config, state = json.loads((tmp_path / "x" / "config.json").read_text()), model.state_dict()

    def said(changed=None, weights=None, *more):
        (tmp_path / "x" / "config.json").write_text(json.dumps(config | (changed or {})))
        save_file(state | (weights or {}), tmp_path / "x" / "diffusion_pytorch_model.safetensors")
        words = ["import", str(tmp_path / "x"), "--from", "diffusers", "--out", str(tmp_path / "a"), *more]
        assert main(words) == 2
        assert not (tmp_path / "a").exists()
        return capsys.readouterr().err

    assert "config.json is of 'UNet2DModel'; allowed: DiTTransformer2DModel" in said({"_class_name": "UNet2DModel"})
    assert "activation_fn is 'silu'; only 'gelu-approximate'" in said({"activation_fn": "silu"})
    assert "sample_size is None; expected a whole number" in said({"sample_size": None})
    assert "out_channels 5 for in_channels 4" in said({"out_channels": 5})
    assert "x_embedder.proj.bias is [16], expected [32]" in said({"sample_size": 16, "num_attention_heads": 4})
    assert "1 unexpected: extra.weight" in said(None, {"extra.weight": torch.ones(1)})
    name = "transformer_blocks.2.norm1.emb.timestep_embedder.linear_1.weight"
    assert f"{name} differs from that of another block by 1" in said(None, {name: state[name] + 1})
    assert "leave it out" in said(None, None, "--preset", "XL/2")
    (tmp_path / "x" / "diffusion_pytorch_model.safetensors").unlink()
    index = tmp_path / "x" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    assert main(["import", str(tmp_path / "x"), "--out", str(tmp_path / "a")]) == 2
    assert "names '../outside.safetensors', which is not in its folder" in capsys.readouterr().err
    index.unlink()
    assert main(["import", str(tmp_path / "x"), "--out", str(tmp_path / "a")]) == 2
    assert "holds no diffusion_pytorch_model" in capsys.readouterr().err


# out -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [OURS, replace(OURS, learn_sigma=False, mlp_norm_eps=1e-5, depth=2, patch=4)])
def test_an_exported_folder_computes_what_we_do(tmp_path, spec):
    net = run_folder(tmp_path / "run", spec, DDPM(), Eps())
    export(tmp_path / "run", tmp_path / "x")
    model = diffusers().DiTTransformer2DModel.from_pretrained(tmp_path / "x", subfolder="transformer")
    assert unlike(model.eval(), net) < 1e-13
    scheduler = diffusers().DDIMScheduler.from_pretrained(tmp_path / "x", subfolder="scheduler")
    alphas = DDPM().alpha(torch.arange(1, 1001, dtype=torch.float64)) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), alphas, rtol=1e-4, atol=1e-8)  # theirs is float32


def test_other_waves_are_refused_unless_mended_as_the_readme_says(tmp_path, capsys):
    net = run_folder(tmp_path / "run", replace(OURS, freq_shift=0), DDPM(), Eps())
    words = ["export", str(tmp_path / "run"), "--to", "diffusers", "--out", str(tmp_path / "x")]
    assert main(words) == 2
    assert "this model has 0" in capsys.readouterr().err and not (tmp_path / "x").exists()
    assert main([*words, "--patched"]) == 0
    transformer = diffusers().DiTTransformer2DModel.from_pretrained(tmp_path / "x", subfolder="transformer").eval()
    assert unlike(transformer, net) > 0.01
    code = (tmp_path / "x" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code, {"transformer": transformer})
    assert unlike(transformer, net) < 1e-13


def test_a_training_says_when_it_begins_that_its_waves_are_others(tmp_path, capsys):
    """It was learnt after training; the recipe digits has diffusers' waves."""
    words = ["train", "digits", "--steps", "1", "--sample_every", "0", "--validate_every", "0", "--batch_size", "4"]
    assert main([*words, "--model.freq_shift", "0", "--out", str(tmp_path / "a")]) == 0
    assert "note: --model.freq_shift is 0; diffusers' DiT has 1 built in" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    assert "freq_shift" not in capsys.readouterr().err
    export(tmp_path / "b", tmp_path / "x")


@pytest.mark.parametrize(
    ("spec", "path", "param", "scheduler"),
    [
        (OURS, DDPM(), Eps(), "DDIMScheduler"),
        (replace(OURS, time_scale=1000.0, learn_sigma=False), Flow(), Velocity(), "FlowMatchEulerDiscreteScheduler"),
        (replace(OURS, time_convention="data"), Flow(), Velocity("data"), None),
        (replace(OURS, freq_shift=0), VP(), V(), None),
    ],
)
def test_out_and_in_again_is_the_same_to_the_bit(tmp_path, spec, path, param, scheduler):
    net = run_folder(tmp_path / "run", spec, path, param)
    export(tmp_path / "run", tmp_path / "x", patched=True)
    done = import_checkpoint(tmp_path / "x", out=tmp_path / "again")
    assert (done.run.model, done.run.path, done.run.parameterisation) == (spec, path, param)
    again = gen.load(tmp_path / "again").denoiser.net.state_dict()
    assert all(torch.equal(again[name], value) for name, value in net.state_dict().items())
    config = tmp_path / "x" / "scheduler" / "scheduler_config.json"
    assert (json.loads(config.read_text())["_class_name"] if config.exists() else None) == scheduler


def test_timesteps_of_a_flow_are_a_thousand_times_t(tmp_path):
    """As FlowMatchEulerDiscreteScheduler counts them, and the output is the velocity it wants."""
    spec = replace(OURS, time_scale=1000.0, learn_sigma=False)
    net = run_folder(tmp_path / "run", spec, Flow(), Velocity()).double()
    export(tmp_path / "run", tmp_path / "x")
    model = diffusers().DiTTransformer2DModel.from_pretrained(tmp_path / "x", subfolder="transformer").double().eval()
    scheduler = diffusers().FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "x", subfolder="scheduler")
    scheduler.set_timesteps(4)
    x, _, y = inputs()
    start, times = x, torch.cat([scheduler.sigmas[:-1].double(), torch.zeros(1).double()])
    with torch.no_grad():
        for t in scheduler.timesteps:
            told = model(x, timestep=t.double().expand(3), class_labels=y).sample
            x = scheduler.step(told, t, x).prev_sample
        f = gen.load(tmp_path / "run").denoiser
        f.net.load_state_dict(net.state_dict())
        f.net.double()
        ours = gen.diffusion.sampling.integrate(f, start, times, gen.build("samplers.solvers", "euler"), cond={"y": y})
    torch.testing.assert_close(ours, x.double(), rtol=1e-4, atol=1e-4)  # theirs steps in float32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"qk_norm": True}, "has qk_norm False built in; this model has True"),
        ({"mup_base": 8}, "has mup_base None built in; this model has 8"),
        ({"mlp_ratio": 2.0}, "has mlp_ratio 4.0 built in; this model has 2.0"),
        ({"classes": 0}, "always embeds a class; this model has none"),
    ],
)
def test_what_diffusers_cannot_be_is_refused(tmp_path, changes, said):
    run_folder(tmp_path / "run", replace(OURS, **changes), DDPM(), Eps())
    with pytest.raises(UserError, match=said):
        export(tmp_path / "run", tmp_path / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_other_families_and_folders_that_exist_are_refused(tmp_path):
    torch.save(published.lightning_dit(), tmp_path / "a.pt")
    import_checkpoint(tmp_path / "a.pt", out=tmp_path / "a")
    with pytest.raises(UserError, match="is a LightningDiT; diffusers' DiTTransformer2DModel can only be a DiT"):
        export(tmp_path / "a", tmp_path / "x")
    with pytest.raises(UserError, match="exists: give a new folder"):
        export(tmp_path / "a", tmp_path / "a")


def test_names_go_there_and_back():
    state = dict(OURS.build().state_dict())
    table = state.pop("pos_embed")
    back = from_diffusers(to_diffusers({**state, "pos_embed": table}, OURS.depth))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())
