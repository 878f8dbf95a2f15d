"""Adapters: they alone are trained and stored, a run with them resumes to the bit, and loading adds them up."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import torch

import gen
from gen.cli import main
from gen.config import checkpoints
from gen.config.errors import MissingDependency, UserError
from gen.config.spec import override
from gen.config.trust import allowing
from gen.data.lists import Lists
from gen.eval.provenance import checkpoint, loading_options
from gen.training.lora import LoRA, adapted
from gen.training.merging import merge_adapters
from gen.training.resume import load_init
from gen.training.run import run_from, run_spec
from gen.training.trainer import Trainer, train
from tests.distill.texts import tiny_text
from tests.gen.tiny import tiny
from tests.models.test_families import inputs

DATA = Lists(("copy", "sort"), low=2, high=3, items=5, n=400)


def text_run(**changes):
    return tiny_text(data=DATA, **changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return train(text_run(steps=4), tmp_path_factory.mktemp("base") / "run", quiet=True).folder


def adapting(base, **changes):
    return override(text_run(init=str(base), steps=4, save_every=2, lora=LoRA(2, 4.0, ("q", "v", "w2"))), changes)


def test_adapters_alone_are_trained_and_stored_and_loading_adds_them_up(base, tmp_path):
    done = train(adapting(base), tmp_path / "whole", quiet=True)
    info = checkpoints.read(done.folder / "final")
    stored = checkpoints.read_tensors(done.folder / "final", "net.safetensors", info)
    layers = ("attn.q", "attn.v", "mlp.w2")
    assert {name.partition(".lora_")[0] for name in stored} == {f"blocks.0.{layer}" for layer in layers}
    assert info["run"]["init"] == str(base) and info["run"]["lora"]["rank"] == 2 and info["sources"]["init"]
    before, after = (gen.load(folder, weights="raw").net.state_dict() for folder in (base, done.folder))
    start = gen.load(base).net.state_dict()  # its average
    for name, weight in after.items():
        moved = name.removesuffix(".weight").removeprefix("blocks.0.") in layers
        assert torch.equal(weight, start[name]) != moved, name
        if moved:
            a, b = (stored[name.replace(".weight", f".lora_{k}.default.weight")] for k in "AB")
            torch.testing.assert_close(weight, start[name] + 2.0 * b @ a)
    assert before.keys() == after.keys()
    assert len(gen.load(done.folder).generate("copy : a b =", 4).texts) == 1


LORAS = [LoRA(2, 4.0, ("q", "v")), LoRA(2, 3.0, init="pissa"), LoRA(2, method="dora"), LoRA(2, method="lokr")]


@pytest.mark.parametrize(
    "lora", [*LORAS, LoRA(2, method="miss"), LoRA(2, method="rslora", init="olora"), LoRA(2, init="lora_ga")]
)
def test_what_the_trainer_computes_is_what_is_loaded(lora, base, tmp_path):
    trainer = Trainer(dataclasses.replace(adapting(base, ema=[]), lora=lora), tmp_path / "run", "never", "test", True)
    for batch in trainer.batches():
        trainer.step(batch)
    trainer._open()
    trainer._finish()
    x = torch.randint(5, (3, DATA.shape[0]))
    with torch.no_grad():
        torch.testing.assert_close(gen.load(tmp_path / "run").net(x), trainer.nets["net"].eval()(x))
    trainer.output.close()


RESUMED = [
    LoRA(2, dropout=0.2),
    LoRA(2, 3.0, method="dora", init="pissa"),
    LoRA(2, method="dora"),
    *(LoRA(2, init=init, targets=("attn.*",)) for init in ("pissa", "eva", "lora_ga")),
]


@pytest.mark.parametrize("lora", RESUMED)
def test_a_run_with_adapters_resumes_to_the_bit(lora, base, tmp_path):
    run = dataclasses.replace(adapting(base), lora=lora)
    whole = train(run, tmp_path / "whole", quiet=True)
    half = whole.folder / "checkpoints" / "step-0000002"
    info = checkpoints.read(half)
    parts = train(run_from(info["run"], half), tmp_path / "parts", resume=str(half), quiet=True)
    files = [checkpoints.read(folder / "final")["files"] for folder in (whole.folder, parts.folder)]
    assert files[0] == files[1]


def test_adapters_go_on_from_adapters_and_into_new_weights(base, tmp_path):
    first = train(adapting(base), tmp_path / "first", quiet=True).folder
    second = train(adapting(first), tmp_path / "second", quiet=True).folder
    whole = train(text_run(init=str(second), steps=1), tmp_path / "third", quiet=True).folder
    assert len(gen.load(whole).net.state_dict()) == len(gen.load(second).net.state_dict())
    assert run_spec(run_from(checkpoints.read(whole / "final")["run"], whole))["lora"] is None


def test_pictures_too(tmp_path):
    outer = {"name": "tests.contracts.my_optimiser:SGD", "lr": 1e-3}  # in the base alone, and allowed for it
    teacher = train(tiny(steps=2, optim=outer), tmp_path / "base", quiet=True).folder
    lora = LoRA(2, init="lora_ga")
    with allowing(["tests"]):
        done, again = (
            train(tiny(steps=3, init=str(teacher), lora=lora), tmp_path / name, quiet=True) for name in ("run", "again")
        )
    assert checkpoints.read(done.folder / "final")["files"] == checkpoints.read(again.folder / "final")["files"]
    a, b = (gen.load(folder, allow=["tests"]).denoiser.net.state_dict() for folder in (teacher, done.folder))
    with pytest.raises(UserError, match="allow it with --allow tests"):
        gen.load(done.folder)
    moved = [name for name in a if not torch.equal(a[name], b[name])]
    assert moved and all(a[name].ndim == 2 for name in moved)
    assert gen.load(done.folder, allow=["tests"]).sample(2).x.isfinite().all()
    own, added = ["--allow", "tests"], gen.load(teacher, allow=["tests"], adapters=[(done.folder, 0.5)])
    words = ["sample", str(teacher), *own, "-n", "2", "--quiet", "--adapters", f"{done.folder}=0.5"]
    assert main([*words, "--out", str(tmp_path / "a.npz")]) == 0
    drawn = np.load(tmp_path / "a.npz")["arr_0"]
    assert (drawn == added.sample(2).uint8().movedim(1, -1).numpy()).all() and added.name == "base + run 0.5"
    about = checkpoint(added)["adapters"]  # of a record, and of the command that repeats it
    assert about["runs"][0]["sha256"] == checkpoints.manifest_of(done.folder)["sha256"] and about["ties"] is None
    assert loading_options(added)["adapters"] == [f"{done.folder.absolute()}=0.5"]
    others = override(tiny(steps=1, init=str(teacher), lora=LoRA(2)), {"model.classes": 12})
    with (
        allowing(["tests"]),
        pytest.raises(UserError, match=r"lora: .* has 10 classes and this run 12: adapters change no labels"),
    ):
        load_init(others, others.model.build())


def test_edm2_too(tmp_path):
    """Its weights stay as they are, though all passes of training normalise those that are trained."""
    spec = {"name": "edm2", "preset": "digits", "width": 4, "multipliers": [5], "attention": [], "uncertainty": 0}
    teacher = train(tiny(steps=2, model=spec), tmp_path / "base", quiet=True).folder
    run = tiny(steps=3, model=spec, init=str(teacher), lora=LoRA(2, targets=("*conv*",)), ema=())
    trainer = Trainer(run, tmp_path / "run", "never", "test", True)
    begun = {key: p.clone() for key, p in trainer.nets["net"].state_dict().items() if "base_layer" in key}
    for batch in trainer.batches():
        trainer.step(batch)
    trainer._open()
    trainer._finish()
    trainer.output.close()
    net = trainer.nets["net"].eval()
    assert begun and all(torch.equal(net.state_dict()[key], p) for key, p in begun.items())
    x, t, cond = inputs(net, dtype=torch.float32)
    with torch.no_grad():
        loaded, first = (gen.load(folder).denoiser.net for folder in (tmp_path / "run", teacher))
        torch.testing.assert_close(loaded(x, t, cond), net(x, t, cond), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(first(x, t, cond), net(x, t, cond), rtol=1e-3)


def test_what_does_not_go_together_is_refused_in_one_line(base, tmp_path, monkeypatch):
    run = adapting(base)
    with pytest.raises(UserError, match=r"Run: lora with no init, whose weights adapters belong to"):
        dataclasses.replace(run, init=None)
    with pytest.raises(
        UserError, match=r"lora.targets: no linear layer or convolution is called 'query'. Allowed: blocks.0"
    ):
        train(override(run, {"lora.targets": ["q", "query"]}), tmp_path / "run", quiet=True)
    assert override(text_run(init=str(base)), {"lora.rank": "3"}).lora == LoRA(3)
    done = train(run, tmp_path / "moved", quiet=True)
    info = checkpoints.manifest_of(done.folder)
    monkeypatch.setattr("gen.training.stored_network.weights_hash", lambda folder: "other")
    with pytest.raises(UserError, match=r"the adapters belong to other weights than those that .* has now"):
        gen.load(done.folder)
    assert info["run"]["lora"]["targets"] == ["q", "v", "w2"]
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDependency, match=r"lora needs peft: pip install 'gen-diffusion\[lora\]'"):
        adapted(run.model.build(), run.lora)


@pytest.fixture(scope="module")
def two(base, tmp_path_factory):
    """Two runs with adapters of one model, of different layers and kinds."""
    folder = tmp_path_factory.mktemp("two")
    run, data = adapting(base), Lists(("reverse",), low=2, high=3, items=5, n=400)
    loras = LoRA(2, 8.0, ("q", "v")), LoRA(2, targets=("q", "w2"), init="pissa")
    runs = (dataclasses.replace(run, lora=lora, data=d) for lora, d in zip(loras, (run.data, data), strict=True))
    return [train(each, folder / str(i), quiet=True).folder for i, each in enumerate(runs)]


def weights_of(folder, **how):
    return gen.load(folder, **how).net.state_dict()


def test_adapters_of_several_runs_are_added_by_factors(base, two, tmp_path, capsys):
    start, (a, b) = weights_of(base), map(weights_of, two)
    sum_ = weights_of(base, adapters=[(two[0], 0.5), (two[1], -2)])
    for name in start:
        torch.testing.assert_close(
            sum_[name], start[name] + 0.5 * (a[name] - start[name]) - 2 * (b[name] - start[name])
        )
    one = weights_of(base, adapters=[(two[0], 1)])
    assert all(torch.allclose(one[name], a[name], atol=1e-7) for name in a)
    none = weights_of(base, adapters=[(two[0], 1), (two[0], -1)])
    assert all(torch.allclose(none[name], start[name], atol=1e-7) for name in a)
    out = merge_adapters(base, [(two[0], 0.5), (two[1], -2)], tmp_path / "merged")
    assert all(torch.equal(tensor, sum_[name]) for name, tensor in weights_of(out).items())
    assert len(gen.load(out).generate("copy : a b =", 4).texts) == 1
    words = ["merge", str(base), "--adapters", f"{two[0]}=0.5", f"{two[1]}=-2", "--out", str(tmp_path / "verb")]
    assert main(words) == 0
    assert checkpoints.manifest_of(tmp_path / "verb")["files"] == checkpoints.manifest_of(out)["files"]
    capsys.readouterr()
    decode, said = ["--prompt", "copy : a b =", "--gen-length", "4"], []
    for given in ([str(out)], [str(base), "--adapters", f"{two[0]}=0.5,{two[1]}=-2"], [str(base)]):
        assert main(["decode", *given, *decode, "--temperature", "1"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["decode", str(base), "--ties", "0.5", *decode]) == 2
    assert train(adapting(out, steps=1), tmp_path / "on", quiet=True).folder.is_dir()


def test_ties_keeps_the_largest_changes_whose_signs_agree(base, two):
    start, (a, b) = weights_of(base), map(weights_of, two)
    got = weights_of(base, adapters=[(two[0], 1.0), (two[1], 1.0)], ties=0.25)

    def trimmed(change):
        flat = change.abs().flatten()
        return change * (change.abs() >= flat.topk(flat.numel() // 4).values[-1])

    for name in start:
        changes = torch.stack([trimmed(some[name] - start[name]) for some in (a, b)])
        agree = (changes.sign() == changes.sum(0).sign()) & (changes != 0)
        wanted = (changes * agree).sum(0) / agree.sum(0).clamp(min=1)
        torch.testing.assert_close(got[name] - start[name], wanted, rtol=1e-2, atol=1e-6)


def test_merging_refuses_in_one_line(base, two, tmp_path):
    for given, said in (
        ([(base, 1.0)], "has none, it trained all weights"),
        ([two[0]], "allowed: a pair of a run's folder and its factor"),
        ([(two[0], float("nan"))], "allowed: a pair"),
    ):
        with pytest.raises(UserError, match=said):
            gen.load(base, adapters=given)
    with pytest.raises(UserError, match="belong to other weights than those of"):
        gen.load(two[0], adapters=[(two[1], 1.0)])
    with pytest.raises(UserError, match=r"ties = 2.0; allowed: in \(0, 1\]"):
        gen.load(base, adapters=[(two[0], 1.0)], ties=2)
    with pytest.raises(UserError, match="adapters belong to a model's first weights"):
        gen.load(base, "raw", adapters=[(two[0], 1.0)])
    with pytest.raises(UserError, match="allowed: pairs of a run's folder and its factor"):
        merge_adapters(base, [], tmp_path / "none")
    assert main(["merge", str(base), "--adapters", "runs/a=x", "--out", str(tmp_path / "x")]) == 2
    with pytest.raises(UserError, match="exists already"):
        merge_adapters(base, [(two[0], 1.0)], tmp_path)
