"""Training: what this wing offers, with the module that defines it.

    A training as one value     Run, Sampler; run_spec, run_from                                             run
    Training it                 train -> TrainResult; Trainer.step is one update; Interrupted            trainer
    Distilling a run            distill; the contract Distiller                                     distillation
    Losses                      the contract Objective; Batch, Step; a file each                      objectives
    Optimisers                  the contract Optimiser; adamw, lion                                        optim
    Learning rates              the contract Schedule; WarmupSchedule (Cosine, WSD ...)                schedules
    Averages of the weights     EMA (Classic, Power); reconstruct any other afterwards          ema, posthoc_ema
    Recipes                     functions that return a Run: digits, aligned, lists ...                  recipes

The trainer is made of: checks (of a Run before any work), resume, stream (order of the data), distributed (accelerate
and FSDP2), state (tensors of a checkpoint), previews, log (progress bar, metrics.jsonl), signals (SIGTERM, Ctrl-C).
"""

from gen.training.distillation import Distiller, distill
from gen.training.ema import EMA
from gen.training.objectives import Batch, Objective, Step
from gen.training.optim import Optimiser
from gen.training.posthoc_ema import reconstruct
from gen.training.result import TrainResult
from gen.training.run import Run, Sampler, run_from, run_spec
from gen.training.schedules import Schedule, WarmupSchedule
from gen.training.trainer import Interrupted, Trainer, train

__all__ = [
    "EMA", "Batch", "Distiller", "Interrupted", "Objective", "Optimiser", "Run", "Sampler", "Schedule", "Step",
    "TrainResult", "Trainer", "WarmupSchedule", "distill", "reconstruct", "run_from", "run_spec", "train",
]  # fmt: skip
