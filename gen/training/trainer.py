"""The training loop: `train(run, out)` is the entry point, Trainer.step one update.

A step is a function of (run, step) and the state alone: the order of the data, every random number and the learning
rate are computed from the step's number, so a resumed run gives the same bits without any saved generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.fields import check_arguments
from gen.config.spec import Json, anchored
from gen.config.trust import allowing, external_names
from gen.config.writing import Lock
from gen.data.lib.learned import latent_parts
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.noise import derive
from gen.training import checks, distributed, state
from gen.training.averages import Averages
from gen.training.buckets import batches_of_one_shape, bucket_note, shape_of_items, sizes_of
from gen.training.first_losses import first_losses
from gen.training.gradients import Gradients
from gen.training.log import ProgressBar
from gen.training.lora import adapted_copy
from gen.training.low_precision import to_float8
from gen.training.noise_ahead import noise_of_steps, step_noise
from gen.training.objectives import Batch, Objective
from gen.training.optim import build_optimisers, set_rates
from gen.training.previews import preview, why_none
from gen.training.replicas import Replicas
from gen.training.result import TrainResult
from gen.training.resume import load_init, provenance, resume_from, teacher_of, versions
from gen.training.run import Run, run_from, run_spec
from gen.training.run_folder import RunFolder, lock_of
from gen.training.saving import Saver
from gen.training.shards import Files
from gen.training.signals import Interrupted, StopRequest, stop_signals
from gen.training.sources import fingerprints, parent_hash
from gen.training.speed import SpeedMeter
from gen.training.stream import ShuffledStream, batch_sizes, iterate_steps
from gen.training.trackers import log_sheet, start_trackers
from gen.training.updates import FiniteGuard, Numbers, StopSignal, Update

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Interrupted", "Trainer", "train", "train_locked"]

VALIDATION_SAMPLES = 512


@check_arguments()
def train(
    run: Run,
    out: str | Path,
    *,
    resume: str = "auto",
    command: str | None = None,
    quiet: bool = False,
    allow: Sequence[str] = (),
) -> TrainResult:
    """Train a run until run.steps.

    Args:
        run: what to train.
        out: the run folder, new or of this run.
        resume: "auto" continues from the newest complete checkpoint in the folder, "never" requires a folder without
            a run, a path continues from that checkpoint; later ones in the folder, of the line that is left, go when
            the first new one is complete.
        command: what run.json says started the run; default this call.
        quiet: no progress on the terminal.
        allow: packages whose names in the folders of teacher, init and resume are followed, see gen.load; those that
            `run` has are, anyway.

    Raises:
        UserError: before any work, for a run that does not fit its data or the folder.
        NonFinite: if the loss or a gradient is NaN or infinite; the last checkpoint is left.
        Interrupted: after SIGTERM or Ctrl-C; a checkpoint is saved first.
    """
    with allowing(allow), allowing(external_names(run_spec(run))), lock_of(Path(out)) as lock:
        return train_locked(run, Path(out), resume, command or f"gen.train(run, {str(out)!r})", quiet, lock)


def train_locked(run: Run, out: Path, resume: str, command: str, quiet: bool, lock: Lock | None) -> TrainResult:
    """Train as `train` does, in a folder whose lock the caller holds.

    Args:
        run, out, resume, command, quiet: see `train`.
        lock: of the folder; None in processes that write nothing.
    """
    trainer = Trainer(run, out, resume, command, quiet, lock)
    with stop_signals() as stop:
        return trainer.fit(stop)


class Trainer:
    """The state of one training: networks by role, their averages and optimisers, and the number of steps done."""

    def __init__(
        self, run: Run, folder: Path, resume: str, command: str, quiet: bool, lock: Lock | None = None
    ) -> None:
        self.run, self.folder, self.command = run, folder, command
        if run.data is None or run.objective is None:
            name = "data" if run.data is None else "objective"
            raise UserError(f"the run has no {name}: an imported model needs one to be trained, e.g. --{name} NAME")
        self.source, self.objective = run.data, run.objective
        checks.check_trackers(run.trackers)
        checks.check_sampler(run)
        self.data = self.source.open("train")
        self.held_out = self.source.open("test") if run.validate_every else None
        self.shape = shape_of_items(self.source, self.data)
        self.sources, self.parent = fingerprints(run, self.data, self.held_out), parent_hash(run)
        self.latent, self.latent_files = latent_parts(self.source, run.teacher or run.init)
        self.start = resume_from(run, folder, resume, self.sources)
        self.accelerator = distributed.create_accelerator(run, folder)
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.world = self.accelerator.num_processes
        self.share, self.micro = batch_sizes(run, self.world)
        self.mesh = distributed.device_mesh(run, self.accelerator)
        self.quiet = quiet or not self.main
        torch.manual_seed(derive("init", run.seed))
        self.nets = self._build_networks()
        self.averages = Averages(run.ema, self.nets, run.ema_device)
        if self.mesh is not None:
            self._shard(self.mesh)
        self.parameters = {role: list(state.trainable_parameters(net).values()) for role, net in self.nets.items()}
        self.replicas = Replicas(run, self.parameters)
        self.optims = build_optimisers(run.optim, self.nets, self.objective.rates)
        self.observes = type(self.objective).observe is not Objective.observe
        self.decay_ends: tuple[int, ...] = getattr(run.schedule, "ends", ())  # their checkpoints are kept
        self.noise = noise_of_steps(run.seed, self.world, self.device)
        self.steps_done = 0
        self.logs: dict[str, float] = {}
        self.unread: tuple[float, list[Update]] | None = None  # of the last step, with its learning rate
        self.val_loss: float | None = None
        about = provenance(run, command) | {"sources": self.sources}
        spare = set(map(checkpoints.checkpoint_name, self.decay_ends))
        self.output = RunFolder(folder, about, self.start.line, run.keep, spare, lock)
        self.saver = Saver(self.output, self.accelerator, self.mesh is not None and run.checkpoints == "sharded")
        self.guard = FiniteGuard.of(self.optims.values(), self.accelerator)
        self._prepare()
        if self.start.checkpoint is not None:
            self._restore(self.start.checkpoint)  # after accelerate, which would cast the optimisers' state

    # -- setting up ----------------------------------------------------------------------------------------------------

    def _build_networks(self) -> dict[str, nn.Module]:
        run = self.run
        checks.check_data(run.model, self.source, self.shape)
        checks.check_objective(run, self.data)
        net = state.build_network(run, self.device)
        checks.check_network(run.model, net, self.data)
        self.init_note = load_init(run, net) if run.init else ""
        self.teacher = teacher_of(run, str(self.device))
        if parent_hash(run) != self.parent:
            raise UserError(f"{run.teacher or run.init} changed while it was read: run this again")
        source = None if self.start.checkpoint else self.data  # a resumed run's adapters lie in the checkpoint
        state.enable_blocks(run, net, first_losses(run, net, self.teacher, source, self.device))
        roles = self.objective.roles(net, self.teacher)
        return {role: net.to(self.device).train() for role, net in roles.items()}

    def _shard(self, mesh: DeviceMesh) -> None:
        """Leave this process its shard of every network, before there are optimisers."""
        self.template = distributed.meta_copy(self.nets[self.role])
        for net in (*self.nets.values(), *self.averages.nets.values()):
            distributed.shard(net, mesh)

    def _prepare(self) -> None:
        """Hand networks and optimisers to accelerate, and build every role's denoiser."""
        run, prepare = self.run, self.accelerator.prepare
        if run.precision == "fp8":  # averages are plain: they are evaluated as they will be sampled
            to_float8(self.nets.values(), self.device)
        if run.compile:
            for net in self.nets.values():
                net.compile()
        apart = self.mesh is not None or run.outer is not None
        replicated = {role for role in self.nets if self.parameters[role] and not apart}  # in every process
        wrapped = {role: prepare(net) if role in replicated else net for role, net in self.nets.items()}
        if self.accelerator.scaler is not None:  # accelerate's optimisers do nothing else, in 1 ms a step
            self.optims = {role: prepare(optim) for role, optim in self.optims.items()}
        self.averages.follow(self.nets)
        self.denoisers = {role: Denoiser(net, run.path, run.parameterisation) for role, net in wrapped.items()}
        together = 1 if run.outer is not None else self.world
        self.gradients = Gradients(self.accelerator, self.denoisers, self.mesh is not None, together)
        self.roles = self.denoisers if self.teacher is None else {**self.denoisers, "teacher": self.teacher}

    @property
    def role(self) -> str:
        """The role that samples."""
        return next(iter(self.nets))

    # -- the loop ------------------------------------------------------------------------------------------------------

    def fit(self, stop: StopRequest) -> TrainResult:
        """Train until run.steps, or until `stop` is set; a finished run is left as it is."""
        run = self.run
        if self.steps_done < run.steps or self.start.moved or not self.output.is_final(self.steps_done):
            self._open()
            try:
                self._loop(stop)
            except UserError:
                if self.main and not self.steps_done:  # the folder is free for the run that it should have been
                    self.output.free()
                raise
            finally:
                self.output.close()
                self.progress.close()
                if run.trackers:
                    self.accelerator.end_training()
                self.saver.wait()
        names, module = tuple(external_names(run_spec(run))), getattr(run.model, "module", None)
        return TrainResult(self.folder, self.steps_done, self.val_loss, names, module)

    def _open(self) -> None:
        run = self.run
        self.progress = ProgressBar(self.folder.name, run.steps, self.steps_done, self.quiet)
        no_previews = why_none(run, self.data, self.folder)
        self.draws = bool(run.sample_every) and not no_previews
        if self.start.moved:
            self.save(tidy=False)
            self.saver.settle()  # this line is the run's own at once, however soon it is killed
        if self.main:
            if self.start.moved and (left := self.output.superseded()):
                after = f"the next checkpoint removes {', '.join(left)} of the line before"
                self.progress.say(f"{self.folder.name}: back to step {self.steps_done}; {after}")
            self.progress.say(self.output.open(self.steps_done))
            self.progress.say(no_previews)
            self.progress.say("" if self.steps_done else self.init_note)
            self.progress.say(bucket_note(self.data, run.batch_size))
        if run.trackers:
            start_trackers(self.accelerator, run, self.folder, self.steps_done)
        self.speed = SpeedMeter.of(run, self.steps_done, self.data[0]["x"], self.device)

    def _loop(self, stop: StopRequest) -> None:
        stopped_by = StopSignal(self.accelerator, late=self.guard is not None)
        for micro_batches in self.speed.timed(self.batches()):
            self._after_step(self.speed.counted(partial(self.step, micro_batches)))
            self.saver.check()
            if self.run.save_every and self.replicas.count == 1:
                self.saver.reserve(lambda: self._model_files() | state.optimiser_files(self.nets, self.optims)[0])
            if number := self.replicas.meets(self.steps_done) and stopped_by(stop.number):
                if self.saver.step != self.steps_done:
                    self.save()
                self.saver.settle()
                said = f"stopped at step {self.steps_done}; saved, run this again to go on: {self.command}"
                raise Interrupted(said, number)
        if self.saver.step != self.steps_done:
            self.save()
        self._finish()

    def batches(self) -> Iterator[list[Batch]]:
        """Yield this process's micro-batches of every step from here on."""
        stream = ShuffledStream(self.data, self.run.seed, self.run.batch_size)
        rank = self.accelerator.process_index
        for step, items in iterate_steps(stream, self.run, self.steps_done, self.share, rank, self.micro):
            noises = self.noise(step, [item["index"].tolist() for item in items])
            factor = self.run.batch_plan.factor(step)
            firsts = range(rank * self.share * factor, (rank + 1) * self.share * factor, self.micro)
            whole = partial(Batch.of, step=step, device=self.device, total=self.run.batch_size * factor)
            yield [whole(item, noise, first=n) for item, noise, n in zip(items, noises, firsts, strict=True)]

    def step(self, micro_batches: list[Batch]) -> dict[str, float]:
        """Update every role that the objective yields; nothing is updated unless loss and gradient are finite.

        Returns:
            The step's numbers; where they are read late those of the step before, and `settle` returns the step's.
        """
        if self.observes:
            self.settle()  # what it changes then, this step's losses may depend on
        random = torch.default_generator if self.device.type == "cpu" else torch  # torch seeds every kind of device
        random.manual_seed(derive("step", self.run.seed, self.steps_done, self.accelerator.process_index))
        lr = self.run.learning_rate(self.steps_done)
        running = [iter(self.objective(self.roles, batch)) for batch in micro_batches]
        counts = (self.objective.count(self.roles, batch) for batch in micro_batches)
        weights = self.gradients.weights(len(micro_batches), counts)
        updates: list[Update] = []
        while (added := self.gradients.add(running, weights)) is not None:
            role, means = added
            self.settle()  # the step before, whose numbers are there by now
            updates.append(self._update((role,) if isinstance(role, str) else role, means, lr))
        self.steps_done += 1
        self.replicas.meet(self.steps_done)
        self.unread = lr, updates
        if self.guard is None:
            return self.settle()
        if self.run.ema_device:  # beside the next step, in a thread that reads the flag
            self.averages.update(self.steps_done, self.guard.found)
        return self.logs

    def settle(self) -> dict[str, float]:
        """Read the last step's numbers, average the weights and return the numbers; NonFinite for some that are not."""
        if self.unread is not None:
            (lr, updates), self.unread = self.unread, None
            self.logs = {"lr": lr}
            for update in updates:
                self.logs |= self._check(update)
            if self.guard is None or not self.run.ema_device:
                self.averages.update(self.steps_done)
            if self.observes:  # which may change weights
                self.averages.release_weights()
                self.objective.observe(self.roles, self.logs)
        return self.logs

    def _update(self, roles: tuple[str, ...], means: dict[str, Tensor], lr: float) -> Update:
        """Make one optimiser step for each of these roles; NonFinite if the loss or the gradient is not finite."""
        parameters = [parameter for role in roles for parameter in self.parameters[role]]
        norm = distributed.full_tensor(self.accelerator.clip_grad_norm_(parameters, self.run.clip))
        values = torch.stack([means.pop("loss"), norm, *means.values()])
        update = Update(self.steps_done, roles, lr, tuple(means), Numbers(values))
        self.averages.release_weights()
        if self.guard is None:
            self._check(update)
        else:
            self.guard.watch(values[:2])
        for role in roles:
            done = max(0, self.steps_done - self.objective.delays.get(role, 0))
            set_rates(self.optims[role], self.run.learning_rate(done, self.steps_done))
            self.optims[role].step()
        for parameter in chain(*self.parameters.values()):  # a loss may have left some in networks it does not train
            parameter.grad = None
        return update

    def _check(self, update: Update) -> dict[str, float]:
        """Return an update's numbers by name; NonFinite if loss or gradient are not finite."""
        if update.finite(self.accelerator.scaler is not None):
            return update.logs(self.role)
        self.steps_done = update.step
        self.saver.wait()
        raise checks.nonfinite_step(self.run, self.data, update.step, str(update), self.folder / "checkpoints")

    # -- what happens beside the loop ----------------------------------------------------------------------------------

    def _after_step(self, logs: dict[str, float]) -> None:
        run, step = self.run, self.steps_done
        if _due(step, run.log_every, run.steps):
            logs = self.settle()
            self._record({"split": "train", **logs, **self.speed.measure(run.batch_plan.batches_before(step))})
        self.progress.advance(loss=logs.get("loss", 0.0), lr=logs.get("lr", 0.0))
        if _due(step, run.validate_every, run.steps):
            self.val_loss = self.validate()
            self._record({"split": "test", "val_loss": self.val_loss})
        if (run.save_every and step % run.save_every == 0) or step in self.decay_ends:
            self.save()
        if self.draws and (step % run.sample_every == 0 or step == run.steps):
            self.draw_preview()

    def _record(self, values: Json) -> None:
        if self.main:
            self.output.record(step=self.steps_done, **values)
        if self.run.trackers:
            self.accelerator.log({k: v for k, v in values.items() if k != "split"}, step=self.steps_done)

    def sampling_net(self) -> nn.Module:
        """Return the first average of the sampling role, or a copy of its raw weights, unsharded, in eval mode."""
        self.settle()
        averaged = bool(self.run.ema)
        net = self.averages.nets[self.role, self.run.ema[0].label] if averaged else self.nets[self.role]
        if self.mesh is not None:
            return distributed.unshard(net, self.template)
        if averaged and not self.run.ema_device and self.replicas.count == 1:
            return net
        return self.replicas.averaged(adapted_copy(net).to(self.device).eval())

    @torch.no_grad()
    def validate(self) -> float:
        """Return the objective's loss on held-out data, on noise that is always the same."""
        assert self.held_out is not None  # run.validate_every is not 0
        n = min(len(self.held_out), VALIDATION_SAMPLES)
        items = [{**self.held_out[i], "index": i} for i in range(n)]
        parts = [torch.utils.data.default_collate(part) for part in batches_of_one_shape(items, self.micro)]
        noises = step_noise(self.run.seed, -1, [part["index"].tolist() for part in parts])
        roles = {**self.roles, self.role: Denoiser(self.sampling_net(), self.run.path, self.run.parameterisation)}
        batches = [Batch.of(*pair, self.steps_done, self.device) for pair in zip(parts, noises, strict=True)]
        loss = self.objective.validate_all(roles, batches)
        return checks.check_validation(loss, self.held_out, self.steps_done)

    def draw_preview(self) -> None:
        """Write samples/step-*.png, or .txt: always from the same noise and labels, or the same held-out prompts."""
        net, name = self.sampling_net(), checkpoints.checkpoint_name(self.steps_done)
        if self.main:
            file, data = self.folder / "samples" / name, self.held_out or self.data
            with self.output.explained(f"samples/{name}"):
                file.parent.mkdir(exist_ok=True)
                file = preview(self.run, net, data, file, self.device)
            log_sheet(self.accelerator, file, self.steps_done)
            self.progress.say(f"{self.folder.name}: {file}")

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def save(self, tidy: bool = True) -> None:
        """Save a complete checkpoint, in the background if it can be; with `tidy`, remove others then."""
        self.settle()
        weights = state.weight_files(self.nets, self.averages.nets)
        states, optim = self.replicas.state_files(weights, *state.optimiser_files(self.nets, self.optims))
        self.progress.say(self.saver.save(self._model_files() | states, self._manifest() | optim, tidy))

    def _finish(self) -> None:
        self.settle()
        self.saver.finish(self._model_files(), self._manifest())
        self.progress.say(f"{self.folder.name}: done, {self.folder / 'final'}")

    def _model_files(self) -> Files:
        weights = state.weight_files(self.nets, self.averages.nets)
        return self.replicas.weight_files(weights) | self.latent_files

    def _manifest(self) -> Json:
        run = self.run
        scaler = self.accelerator.scaler
        return {
            "run": anchored(run_spec(run)),
            "role": self.role,
            "step": self.steps_done,
            "samples_seen": run.samples_before(self.steps_done),
            "shape": list(self.shape),
            **({"sizes": sizes} if (sizes := sizes_of(self.data)) else {}),
            "classes": self.source.classes,
            "labels": list(getattr(self.source, "label_names", ())),
            **({"latent": self.latent} if self.latent else {}),
            "sources": self.sources,
            "parent": self.parent,
            "scaler": scaler.state_dict() if scaler is not None else {},
            "val_loss": self.val_loss,
            "versions": versions(),
        }

    def _restore(self, folder: Path) -> None:
        manifest = checkpoints.read(folder, verify=False)  # what is read is verified
        within, own = self.replicas.restored(folder, manifest)
        state.restore(folder, own, self.nets, self.averages.nets, self.optims, within)
        self.steps_done = self.saver.step = manifest["step"]
        self.val_loss = manifest["val_loss"]
        checks.check_rate(self.run, run_from(manifest["run"], folder), self.steps_done)
        if self.accelerator.scaler is not None and manifest["scaler"]:
            self.accelerator.scaler.load_state_dict(manifest["scaler"])


def _due(step: int, every: int, total: int) -> bool:
    return bool(every) and (step % every == 0 or step == total)
