"""The speed of anything that makes images, at several batch sizes, with what an image costs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from gen.config.errors import UserError
from gen.eval.record import Speed
from gen.eval.tables import aligned, one_line
from gen.eval.throughput import Throughput

__all__ = ["SpeedRow", "SpeedTable", "Workload", "measure_speed", "speed_text"]


HEADS = ("batch", "images/s", "ms/image", "p10 – p90", "latency ms", "NFE", "GFLOP", "TFLOP/s", "peak MiB", "J/image")


@dataclass(frozen=True)
class Workload:
    """Something that makes images.

    Attributes:
        name: in words.
        run: makes n images; what it returns may state their network evaluations per image, `nfe`.
        device: where it runs.
        params: of its network; None if it is not known.
    """

    name: str
    run: Callable[[int], object]
    device: str = "cpu"
    params: int | None = None


@dataclass(frozen=True)
class SpeedRow:
    """The speed at one batch size.

    Attributes:
        speed: images per second, its spread, and peak memory.
        latency_ms: median time of one call, which makes a whole batch.
        flops: floating-point operations per image of the matrix products, convolutions and attentions that torch ran,
            two for each multiplication; kernels of others are not counted. None where none was.
        joules: per image, of the whole device, warming up included; None where the driver does not tell.
    """

    speed: Speed
    latency_ms: float
    flops: float | None = None
    joules: float | None = None


@dataclass(frozen=True)
class SpeedTable:
    """Speeds at several batch sizes.

    Attributes:
        name: of the workload.
        device: processor, in words.
        params: of the network.
        rows: in rising order of batch size.
    """

    name: str
    device: str
    params: int | None
    rows: tuple[SpeedRow, ...]


def measure_speed(
    workload: Workload, batch_sizes: Sequence[int] = (1, 4, 16), throughput: Throughput | None = None
) -> SpeedTable:
    """Measure a workload at every batch size, the smallest first; one that does not fit ends the table with a warning.

    Args:
        workload: what is timed.
        batch_sizes: images in a call.
        throughput: how each is timed; its own batch does not matter.

    Raises:
        UserError: for batch sizes below 1, or none.
        torch.OutOfMemoryError: if even the smallest batch does not fit.
    """
    from gen.eval.provenance import machine

    if not batch_sizes or min(batch_sizes) < 1:
        raise UserError(f"batch sizes {list(batch_sizes)}; allowed: one or more, each at least 1")
    rows: list[SpeedRow] = []
    for batch in sorted(set(batch_sizes)):
        try:
            rows.append(_row(workload, replace(throughput or Throughput(), batch=batch)))
        except torch.OutOfMemoryError:
            if not rows:
                raise
            warnings.warn(f"{workload.name}: {batch} images at a time do not fit into memory", stacklevel=2)
            break
    device = torch.device(workload.device)
    return SpeedTable(workload.name, machine(device), workload.params, tuple(rows))


def speed_text(table: SpeedTable) -> str:
    """Return a table for a terminal.

    Args:
        table: of `measure_speed`.
    """
    heads = (
        "batch",
        "images/s",
        "ms/image",
        "p10 – p90",
        "latency ms",
        "NFE",
        "GFLOP",
        "TFLOP/s",
        "peak MiB",
        "J/image",
    )
    lines = [heads]
    for row in table.rows:
        s = row.speed
        rate = None if row.flops is None else row.flops * s.images_per_second / 1e12
        lines.append((
            f"{s.batch}{'' if s.steady else '~'}", f"{s.images_per_second:,.4g}", f"{s.ms_per_image:.4g}",
            f"{s.p10:.4g} – {s.p90:.4g}", f"{row.latency_ms:.4g}", _short(s.nfe, 1), _short(row.flops, 1e9),
            _short(rate, 1), f"{s.peak_mb:,.0f}", _short(row.joules, 1),
        ))  # fmt: skip
    params = "" if table.params is None else f", {table.params:,} parameters"
    notes = ["~: the speed was not steady after warming up"] if any(not row.speed.steady for row in table.rows) else []
    return "\n".join([one_line(f"{table.name}{params}; {table.device}"), *aligned(lines, ()), *notes])


def _row(workload: Workload, throughput: Throughput) -> SpeedRow:
    device = torch.device(workload.device)
    before = energy_mj(device)
    speed = throughput.measure(workload.run, device)
    after = energy_mj(device)
    images = throughput.batch * ((speed.blocks or 0) + (speed.warmup or 0))
    joules = None if before is None or after is None else (after - before) / 1000 / images
    flops = count_flops(lambda: workload.run(throughput.batch)) / throughput.batch
    return SpeedRow(speed, speed.ms_per_image * throughput.batch, flops or None, joules)


def count_flops(call: Callable[[], object]) -> int:
    """Return the floating-point operations of a call, two for each multiplication.

    Args:
        call: run once.
    """
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # which torch's own table leaves out
    with FlopCounterMode(display=False, custom_mapping={on_cpu: _attention_flops}) as counter:
        call()
    return int(counter.get_total_flops())


def energy_mj(device: torch.device) -> int | None:
    """Return the energy that a GPU has used since its driver was loaded, in millijoules, by NVML.

    Args:
        device: of torch.

    Returns:
        None for a CPU, without the package pynvml, and for a driver that does not tell.
    """
    if device.type != "cuda":
        return None
    with suppress(Exception):  # whatever a driver raises, a speed without energy is a speed
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid)))
    return None


def _attention_flops(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: object, **__: object) -> int:
    """Return the operations of softmax(q k^T) v of shapes [B, H, N, D]: two products."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def _short(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value / unit:,.4g}"
