"""Training that can be trusted: the same bits after any stop, nothing non-finite, nothing lost."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import LoggerType
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

import gen
from gen.cli import main
from gen.config import checkpoints
from gen.config.errors import NonFinite, UserError
from gen.config.spec import names, spec_of
from gen.pipeline import load
from gen.training.log import read_metrics
from gen.training.objectives.denoise import Denoising
from gen.training.run import Sampler, run_spec
from gen.training.signals import Interrupted
from gen.training.speed import MEASURED
from gen.training.stream import ShuffledStream, iterate_steps
from gen.training.trainer import Trainer, train
from tests.gen.tiny import tiny


def weights(folder, name="final"):
    place = folder / name
    info = checkpoints.read(place)
    return {f"{file}/{k}": v for file in info["files"] for k, v in checkpoints.read_tensors(place, file, info).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_stopping_and_going_on_gives_the_same_bits(tmp_path):
    train(tiny(), tmp_path / "whole", quiet=True)
    train(tiny(steps=3), tmp_path / "parts", quiet=True)
    done = train(tiny(), tmp_path / "parts", quiet=True)
    assert done.step == 6
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    last = "checkpoints/step-0000006"
    assert same(weights(tmp_path / "whole", last), weights(tmp_path / "parts", last))
    whole, parts = (read_metrics(tmp_path / f / "metrics.jsonl") for f in ("whole", "parts"))
    assert whole == parts


def test_the_learning_rate_depends_on_the_total_so_a_longer_run_is_told_apart(tmp_path):
    """Constant schedules go on exactly; the test above would be empty if the optimiser state were lost."""
    train(tiny(steps=3), tmp_path / "a", quiet=True)
    state = weights(tmp_path / "a", "checkpoints/step-0000003")
    steps = [v for k, v in state.items() if k.endswith("/step")]
    assert steps and all(float(v) == 3 for v in steps)


def test_fused_blocks_change_rounding_only(tmp_path, monkeypatch):
    from gen.models.layers.block import Block

    used, after = [], Block.fused_forward
    monkeypatch.setattr(Block, "fused_forward", lambda self, *args: used.append(1) or after(self, *args))
    train(tiny(), tmp_path / "plain", quiet=True)
    assert not used
    train(tiny(fused=True), tmp_path / "fused", quiet=True)
    assert used
    plain, fused = weights(tmp_path / "plain"), weights(tmp_path / "fused")
    for name, weight in plain.items():
        torch.testing.assert_close(fused[name], weight, rtol=1e-3, atol=1e-4)


def test_what_has_no_blocks_to_fuse_says_so(tmp_path):
    unet = {"name": "unet", "preset": "digits"}
    with pytest.raises(UserError, match="fused = true, but UNet has no blocks that can do it"):
        train(tiny(fused=True, model=unet), tmp_path / "new", quiet=True)


def test_micro_batches_change_rounding_only(tmp_path):
    train(tiny(), tmp_path / "whole", quiet=True)
    train(tiny(micro_batch_size=2), tmp_path / "micro", quiet=True)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "micro")
    assert all(torch.allclose(a[k], b[k], atol=2e-5) for k in a)
    assert not same(a, b)


def test_another_seed_is_another_run(tmp_path):
    train(tiny(), tmp_path / "a", quiet=True)
    train(tiny(seed=1), tmp_path / "b", quiet=True)
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision_trains(tmp_path, precision):
    done = train(tiny(precision=precision), tmp_path / "a", quiet=True)
    assert done.val_loss is not None and done.val_loss < 10


def test_the_folder_says_what_happened(tmp_path):
    folder = tmp_path / "run"
    train(tiny(sample_every=3), folder, quiet=True)
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["step-0000003.png", "step-0000006.png"]
    events = read_metrics(folder / "metrics.jsonl")
    assert [e["step"] for e in events if e["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in events if e["split"] == "test"] == [3, 6]
    about = json.loads((folder / "run.json").read_text())
    assert about["run"]["batch_size"] == 8 and about["versions"]["torch"] == torch.__version__
    assert load(folder).sample(3).x.shape == (3, 1, 8, 8)


def test_previews_of_latents_are_refused_in_one_line_and_not_sampled(tmp_path, capsys, monkeypatch):
    save_file({"latents": torch.randn(40, 1, 8, 8), "labels": torch.arange(40) % 10}, tmp_path / "a.safetensors")
    monkeypatch.setattr("gen.training.trainer.preview", lambda *given: pytest.fail("sampled"))
    data = {"name": "latents", "path": str(tmp_path / "a.safetensors")}
    train(tiny(data=data, sample_every=1, steps=2), tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if "no previews" in line]
    assert len(lines) == 1 and lines[0].startswith("no previews: the samples of run are latents or other tensors")
    assert f"gen sample {tmp_path / 'run'} --autoencoder FOLDER draws them" in lines[0]


def test_metrics_that_are_not_there_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^\S+/gone.jsonl cannot be read: No such file or directory; give the metrics"):
        read_metrics(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match=r"Is a directory; give the metrics.jsonl of a run folder$"):
        read_metrics(tmp_path)


@dataclass(frozen=True)
class Breaks(Denoising):
    """Denoising whose loss is no number from a given step on."""

    at: int = 4

    def __call__(self, roles, batch):
        for role, loss, logs in super().__call__(roles, batch):
            broken = int(roles["net"].net.steps_seen) >= self.at
            roles["net"].net.steps_seen += 1
            yield role, loss * (float("nan") if broken else 1.0), logs


def test_a_loss_that_is_no_number_stops_before_it_is_used(tmp_path):
    run = tiny(objective=Breaks(at=4), save_every=2)
    trainer = Trainer(run, tmp_path / "run", "auto", "", True)
    trainer.nets["net"].steps_seen = 0
    before = None
    with pytest.raises(NonFinite, match=r"lr 0.001; .*step-0000004, with these very weights.*step-0000002\. The"):
        trainer._open()
        for micro in trainer.batches():
            before = {k: v.clone() for k, v in trainer.nets["net"].state_dict().items()}
            trainer._after_step(trainer.step(micro))
    trainer.output.close()
    assert all(torch.equal(v, before[k]) for k, v in trainer.nets["net"].state_dict().items())
    assert checkpoints.newest(tmp_path / "run" / "checkpoints").name == "step-0000004"


def test_a_signal_saves_and_stops(tmp_path):
    folder = tmp_path / "run"
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted, match="saved") as error:
        train(tiny(steps=100_000, log_every=10_000, validate_every=0), folder, quiet=True)
    assert error.value.number == signal.SIGTERM
    stopped = checkpoints.read(checkpoints.newest(folder / "checkpoints"))["step"]
    assert stopped > 0 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    train(tiny(steps=stopped + 2, validate_every=0), folder, quiet=True)
    train(tiny(steps=stopped + 2, validate_every=0), tmp_path / "whole", quiet=True)
    assert same(weights(folder), weights(tmp_path / "whole"))


def test_a_finished_run_is_left_alone(tmp_path):
    train(tiny(), tmp_path / "run", quiet=True)
    stamp = (tmp_path / "run" / "final" / "manifest.json").stat().st_mtime_ns
    time.sleep(0.01)
    assert train(tiny(), tmp_path / "run", quiet=True).step == 6
    assert (tmp_path / "run" / "final" / "manifest.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("changes", "resume", "message"),
    [
        ({"seed": 1}, "auto", r"another run: seed \(0 there, 1 now\)"),
        (
            {"optim": {"name": "adamw", "lr": 0.5}},
            "auto",
            r"another run: optim.*with --init \S+ to start from",
        ),
        ({}, "never", "already holds a run"),
        ({}, "nowhere", "nowhere does not exist"),
    ],
)
def test_the_wrong_resume_is_refused_and_changes_nothing(tmp_path, changes, resume, message):
    folder = tmp_path / "run"
    train(tiny(steps=2), folder, quiet=True)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=message):
        train(tiny(**changes), folder, resume=resume, quiet=True)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": tiny().model.__class__(size=16, channels=1, classes=10, width=16, depth=1, heads=2)},
            "the data has",
        ),
        ({"model": tiny().model.__class__(size=8, channels=1, classes=3, width=16, depth=1, heads=2)}, "3 classes"),
    ],
)
def test_a_model_that_does_not_fit_its_data_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(tiny(**changes), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "unet", "preset": "digits"}, r"init: the weights of .* do not fit this model: a dit, not a unet"),
        ({"width": 32}, r"do not fit this model: model\.width \(16 there, 32 now\)"),
    ],
)
def test_a_start_from_another_network_is_one_line(tmp_path, model, message):
    train(tiny(steps=1), tmp_path / "run", quiet=True)
    model = model if "name" in model else spec_of(tiny().model) | model
    with pytest.raises(UserError, match=message) as caught:
        train(tiny(model=model, init=str(tmp_path / "run")), tmp_path / "new", quiet=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("family", "classes"), [("dit", 3), ("dit", 0), ("unet", 0), ("song_unet", 3), ("ssm", 0), ("lightnet", 3)]
)
def test_a_start_for_other_classes_draws_the_labels_anew_and_says_so(tmp_path, capsys, family, classes):
    model = {"name": family, "preset": "digits"}
    train(tiny(model=model, steps=1), tmp_path / "ten", quiet=True)
    labels = [torch.arange(16) % classes] if classes else []
    data = torch.utils.data.TensorDataset(torch.rand(16, 1, 8, 8) * 2 - 1, *labels)
    data.classes = classes
    run = tiny(model=model, data=data, steps=1, optim={"name": "adamw", "lr": 1e-30}, init=str(tmp_path / "ten"))
    train(run, tmp_path / "other")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("init: ")]
    assert len(said) == 1 and said[0].endswith(f"10 classes there, {classes} now")
    ours, theirs = weights(tmp_path / "other"), weights(tmp_path / "ten")
    names = [name.partition("/")[2] for name in ours if name.startswith("net.")]
    pairs = {name: (ours[f"net.safetensors/{name}"], theirs.get(f"net-ema.safetensors/{name}")) for name in names}
    alike = {
        name: torch.allclose(new, old, atol=1e-6)
        for name, (new, old) in pairs.items()
        if old is not None and old.shape == new.shape
    }
    assert all(alike.values()) and len(alike) > 0 and len(names) - len(alike) <= 2


def test_a_run_refused_at_its_first_step_leaves_its_folder_free(tmp_path):
    objective = {"name": "repa", "site": "hidden.0", "encoder": {"name": "stored", "grid": 2, "dim": 8}}
    with pytest.raises(UserError, match="reads 'features'"):
        train(tiny(objective=objective), tmp_path / "run", quiet=True)
    assert train(tiny(steps=1), tmp_path / "run", quiet=True).step == 1
    with pytest.raises(UserError, match="another run"):  # but not once it holds something
        train(tiny(objective=objective), tmp_path / "run", quiet=True)


def test_gen_train_is_the_module_and_the_function(tmp_path):
    assert gen.train(tiny(steps=1), tmp_path / "run", quiet=True).step == 1
    assert gen.training.trainer.Trainer is Trainer


def test_a_checkpoint_alone_names_its_run_too(tmp_path, capsys):
    train(tiny(steps=1), tmp_path / "run", quiet=True)
    assert main(["train", str(tmp_path / "run" / "final"), "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out) == run_spec(tiny(steps=1))
    assert main(["train", str(tmp_path)]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_a_run_round_trips_through_json():
    from gen.training.run import run_from

    run = replace(tiny(), micro_batch_size=4)
    assert run_from(json.loads(json.dumps(run_spec(run))), None) == run


@pytest.mark.slow
def test_trackers_are_asked_for_by_name_or_not_imported(tmp_path):
    with pytest.raises(UserError, match=r"unknown tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        train(tiny(trackers=("tensorbord",)), tmp_path / "run", quiet=True)
    code = f"""
import sys
from gen.training.trainer import train
from tests.gen.tiny import tiny
train(tiny(steps=1, validate_every=0), {str(tmp_path / "plain")!r}, quiet=True)
assert not {{"tensorboard", "wandb", "torch.utils.tensorboard"}} & set(sys.modules)
"""
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_a_tracker_has_settings_samples_and_speed_and_every_step_once(tmp_path):
    """The metrics of steps after the checkpoint that a run goes on from are replaced, not written twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "run"
    settings = {"trackers": ("tensorboard",), "save_every": 2, "keep": 9, "sample_every": 3}
    train(tiny(steps=5, **settings), folder, quiet=True)
    train(tiny(steps=6, **settings), folder, resume=str(folder / "checkpoints/step-0000002"), quiet=True)
    events = EventAccumulator(str(folder / "gen"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in events.Images("samples")] == [3, 6]
    for name in ("images_per_second", "data_wait", "peak_mb", "seconds"):
        assert all(event.value > 0 for event in events.Scalars(name))
    settings = yaml.safe_load(next((folder / "gen").rglob("hparams.yml")).read_text())
    assert settings["optim.lr"] == 1e-3 and settings["model.name"] == "dit" and settings["teacher"] == "null"


def test_the_clock_s_values_are_recorded_and_left_out_of_comparisons(tmp_path):
    train(tiny(), tmp_path / "run", quiet=True)
    measured, plain = (read_metrics(tmp_path / "run/metrics.jsonl", measured=m) for m in (True, False))
    trained = [event for event in measured if event["split"] == "train"]
    assert all(event["images_per_second"] > 0 and event["seconds"] > 0 for event in trained)
    assert [event["seconds"] for event in trained] == sorted(event["seconds"] for event in trained)
    assert all(0 < event["data_wait"] < 1 and event["peak_mb"] > 10 for event in trained)
    assert not any(key in event for event in plain for key in MEASURED)


def test_mfu_is_what_was_counted_over_the_peak_that_is_given(tmp_path):
    run = tiny(peak_tflops=1e-3, validate_every=0, steps=4)
    train(run, tmp_path / "run", quiet=True)
    events = read_metrics(tmp_path / "run/metrics.jsonl", measured=True)
    net, x = run.model.build(), torch.randn(8, 1, 8, 8)
    with FlopCounterMode(display=False) as counter:
        net(x, torch.rand(8), {"y": torch.zeros(8, dtype=torch.int64)}).sum().backward()
    for event in events:
        flops = event["mfu"] * 1e9 / event["images_per_second"] * 8
        assert flops == pytest.approx(counter.get_total_flops(), rel=2e-3)
    for steps, peak in ((5, None), (6, "measured")):
        train(replace(run, peak_tflops=peak, steps=steps), tmp_path / "run", quiet=True)
        event = read_metrics(tmp_path / "run/metrics.jsonl", measured=True)[-1]
        assert 0 < event["mfu"] < 1 if peak else "mfu" not in event


WANDB = """
class Run:
    said = []
    def log(self, values, step=None):
        self.said.append((step, values))
    def finish(self):
        self.said.append("finished")
class Config(dict):
    def update(self, values, allow_val_change):
        super().update(values)
def init(**given):
    started.append(given)
    return Run()
def Image(pixels):
    return pixels.shape
started, config = [], Config()
"""


def test_wandb_has_one_project_all_settings_samples_and_speed(tmp_path, monkeypatch):
    """Through accelerate, with a package that keeps what it is told; the real one wrote the same offline, by hand."""
    (tmp_path / "wandb-1.dist-info").mkdir()
    (tmp_path / "wandb-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 1\n")
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    for name in ("first", "second"):
        train(tiny(steps=3, sample_every=3, trackers=("wandb",)), tmp_path / name, quiet=True)
    wandb = sys.modules.pop("wandb")
    assert [(given["project"], given["name"]) for given in wandb.started] == [("gen", "first"), ("gen", "second")]
    assert wandb.config["optim.lr"] == 1e-3 and wandb.config["model.name"] == "dit"
    said = [said for said in wandb.Run.said if said != "finished"]
    assert [step for step, values in said if "loss" in values] == [1, 2, 3] * 2 and len(wandb.Run.said) == len(said) + 2
    assert [(step, values["samples"][0][2]) for step, values in said if "samples" in values] == [(3, 3)] * 2
    assert all(values["images_per_second"] > 0 for _, values in said if "loss" in values)


SHORT_DECAYS = {"wsd": {"decay": 0.5}, "wsds": {"decay": 0.5}}


@pytest.mark.parametrize("name", names("training.schedules"))
def test_a_run_that_goes_on_longer_says_if_its_rate_jumps(name, tmp_path):
    schedule = {"name": name, **SHORT_DECAYS.get(name, {})}
    before, after = (tiny(steps=n, schedule=schedule, validate_every=0) for n in (8, 16))
    train(before, tmp_path / "run", quiet=True)
    last, now = (run.optim.lr * run.schedule.factor(s, run.steps) for run, s in ((before, 7), (after, 8)))
    jumps = pytest.warns(UserWarning, match=rf"step 8: the learning rate rises from {last:.3g} to {now:.3g}")
    with jumps if now > 2 * last else contextlib.nullcontext():
        train(after, tmp_path / "run", quiet=True)
    assert name in ("constant", "inverse_sqrt", "steps") or now > 2 * last


def test_stored_nan_is_named_with_its_file_and_row(tmp_path):
    latents = torch.randn(40, 1, 8, 8)
    latents[13] = math.nan
    save_file({"latents": latents, "labels": torch.arange(40) % 10}, tmp_path / "a.safetensors")
    data = {"name": "latents", "path": str(tmp_path / "a.safetensors"), "holdout": 0.0}
    run = tiny(data=data, validate_every=0, batch_size=40)
    with pytest.raises(NonFinite, match=r"The data are not finite: x of row 13 of .*a.safetensors holds NaN") as error:
        train(run, tmp_path / "run", quiet=True)
    assert "lower lr" not in str(error.value)


def test_a_killed_data_worker_is_one_line(tmp_path):
    class Killed:
        fingerprint = "0"

        def __len__(self):
            return 64

        def __getitem__(self, i):
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)

    stream = ShuffledStream(Killed(), 0)
    with pytest.raises(UserError, match="a process that loads data was killed before step 0: the system may lack"):
        next(iterate_steps(stream, tiny(workers=1), 0, 8, 0, 8))


def test_data_without_a_test_split_can_train_unvalidated(tmp_path):
    import numpy as np

    np.savez(tmp_path / "a.npz", np.zeros((16, 8, 8, 1), np.uint8), np.arange(16) % 10)
    data = {"name": "npz", "path": str(tmp_path / "a.npz"), "holdout": 0.0}
    done = train(tiny(data=data, validate_every=0), tmp_path / "run", quiet=True)
    assert done.step == 6 and done.val_loss is None


def test_damaged_checkpoints_are_not_trained_over(tmp_path):
    train(tiny(steps=2), tmp_path / "run", quiet=True)
    (tmp_path / "run/checkpoints/step-0000002/manifest.json").write_text("{}")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.warns(UserWarning, match="passing over"), pytest.raises(UserError, match="every checkpoint in"):
        train(tiny(steps=4), tmp_path / "run", quiet=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_run_may_be_sampled_otherwise_when_it_goes_on(tmp_path):
    train(tiny(steps=2), tmp_path / "run", quiet=True)
    done = train(tiny(steps=3, sampler=Sampler("heun", steps=3)), tmp_path / "run", quiet=True)
    assert done.pipeline().sample(1).nfe == 5
    with pytest.raises(UserError, match=r"objective\.class_dropout \(0\.1 there, 0\.2 now\)"):
        train(tiny(objective=Denoising(class_dropout=0.2)), tmp_path / "run", quiet=True)
