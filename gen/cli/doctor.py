"""Check this machine and installation, and say how to repair what is wrong.

Every line is the result of a trial: packages are imported, attention back ends are called and compared with
the exact answer. ok: it works. warn: it works less well than it could. fail: gen does not work. none: not on this
machine, and not needed. Exit code 1 if anything fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import gen

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Finding", "add_arguments", "examine", "run"]

CORE = ("numpy", "safetensors", "PIL", "tqdm", "accelerate", "torchmetrics", "sklearn", "jinja2", "yaml")
CHECKOUT = (Path(gen.__file__).parents[1] / "constraints.txt").exists()
INSTALL = "pip install -c constraints.txt -e ." if CHECKOUT else "pip install --upgrade gen-diffusion"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        subject: the package, device or back end that was checked.
        status: see the module's docstring.
        detail: versions, sizes or the error, in one line.
        fix: the remedy; "" if there is nothing to do.
    """

    subject: str
    status: Literal["ok", "warn", "fail", "none"]
    detail: str
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    findings = []
    for finding in examine():
        findings.append(finding)
        if not args.json:
            fix = f"  ->  {finding.fix}" if finding.fix else ""
            print(f"{finding.status:<5} {finding.subject:<25} {finding.detail}{fix}", flush=True)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return int(any(finding.status == "fail" for finding in findings))


def examine() -> Iterator[Finding]:
    """Yield all findings; what others need comes first, and what takes long runs beside them in other processes."""
    elsewhere = {"sklearn": _importing("sklearn")}
    yield _python()
    torch = _attempt("torch", _torch, INSTALL)
    elsewhere["torchmetrics"] = _importing("torchmetrics")  # which imports torch
    yield from (torch, _torchvision())
    yield from (_package(module) for module in CORE if module not in elsewhere)
    yield from _device_findings()
    yield from (_package(module, connection) for module, connection in elsewhere.items())
    yield from (_memory(), _disk())


def _device_findings() -> Iterator[Finding]:
    """Yield what torch can do here."""
    try:
        import torch
    except Exception:
        return  # an earlier finding says what is wrong with torch
    yield from (_cpu(), _cuda(), _mps())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    yield _bf16(device)
    yield _attempt("engine", lambda: _engine(device), "sample without --engine", "warn")
    yield from (_backend(name, attend, device) for name, attend in _backends(device))
    yield _threads()


def _python() -> Finding:
    version = f"{platform.python_version()} at {sys.executable}; gen {gen.__version__} at {Path(gen.__file__).parent}"
    recent = tuple(map(int, platform.python_version_tuple()[:2])) >= (3, 11)
    return Finding("python", "ok" if recent else "fail", version, "" if recent else "gen needs Python 3.11 or newer")


def _attempt(subject: str, check: Callable[[], str], fix: str, status: Literal["warn", "fail"] = "fail") -> Finding:
    """Report what a check returns, or the error that it raises."""
    try:
        return Finding(subject, "ok", check())
    except Exception as error:
        return Finding(subject, status, _line(error), fix)


def _torch() -> str:
    import torch

    if not bool((torch.ones(2, 2) @ torch.ones(2, 2) == 2).all()):
        raise ArithmeticError(f"a product of torch {torch.__version__} is wrong")
    return torch.__version__


def _torchvision() -> Finding:
    """Check torchvision: gen needs none, but a build that does not match torch breaks whatever imports it."""
    version = _version("torchvision")
    if version is None:
        return Finding("torchvision", "none", "not installed, not needed")
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        detail = f"{version} does not match torch {_version('torch')}: {_line(error)}"
        fix = "pip uninstall torchvision, or install the build for this torch from the index torch came from"
        return Finding("torchvision", "fail", detail, fix)
    return Finding("torchvision", "ok", version)


def _importing(module: str) -> Connection:
    """Start a process that imports a module and sends the error, "" if there is none.

    On Linux it is a fork: what this process has imported by now is imported there.
    """
    context = get_context("fork") if sys.platform == "linux" else get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads: those of numpy's BLAS, which allow for it
        context.Process(target=_try_import, args=(module, sender), daemon=True).start()
    sender.close()
    return receiver


def _try_import(module: str, sender: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stderr__.fileno() if sys.__stderr__ else 2)
    try:
        importlib.import_module(module)
        sender.send("")
    except Exception as error:
        sender.send(_line(error))


def _package(module: str, elsewhere: Connection | None = None) -> Finding:
    """Check that a package can be imported: here, or in the process at the other end of the connection."""
    name = {"PIL": "pillow", "sklearn": "scikit-learn"}.get(module, module)
    fix = INSTALL if _version(name) is None else "repair what it imports"

    def imported() -> str:
        if elsewhere is None:
            importlib.import_module(module)
        elif error := _received(elsewhere):
            raise ImportError(error)
        return _version(name) or "?"

    return _attempt(name, imported, fix)


def _received(elsewhere: Connection) -> str:
    try:
        return str(elsewhere.recv())
    except EOFError:
        return "importing it ends Python"


def _cpu() -> Finding:
    import torch

    return Finding("device cpu", "ok", f"{_cores()} cores, {torch.backends.cpu.get_cpu_capability()}")


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is the CPU build"
        if shutil.which("nvidia-smi"):
            fix = "install a CUDA build of torch"
            return Finding("device cuda", "warn", f"an NVIDIA driver is here, but {built}", fix)
        return Finding("device cuda", "none", f"no NVIDIA GPU ({built})")
    (free, total), count = torch.cuda.mem_get_info(), torch.cuda.device_count()
    detail = f"{count} x {torch.cuda.get_device_name()}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return Finding("device cuda", "ok", detail)


def _mps() -> Finding:
    """Report Apple's GPU, which gen refuses."""
    import torch

    from gen.config.devices import incapable_reason

    if not torch.backends.mps.is_available():
        return Finding("device mps", "none", "no GPU of Apple's")
    return Finding("device mps", "none", f"not used: {incapable_reason('mps')}; runs are on the CPU")


def _bf16(device: str) -> Finding:
    import torch

    def product() -> str:
        ones = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
        if not bool((ones @ ones == 16).all()):
            raise ArithmeticError("a bf16 product is wrong")
        return "a bf16 product is right"

    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Finding("bf16", "warn", "emulated, slow", "train with --precision fp16 or no")
    return _attempt("bf16", product, "train with --precision no", "warn")


def _engine(device: str) -> str:
    """Run a small network under `--engine auto`."""
    import torch

    from gen.models.dit import DiT
    from gen.models.engines.auto import Auto
    from gen.models.engines.fused import Fused

    net = DiT.preset("digits").build().to(device)
    engine = Auto() if device == "cpu" else Fused()  # on a GPU auto compiles, which takes a minute
    prepared = engine.prepare(net, device)
    x, t = torch.zeros(1, 1, 8, 8, device=device), torch.zeros(1, device=device)
    with torch.no_grad():
        prepared(x, t, {"y": torch.zeros(1, dtype=torch.int64, device=device)})
    return str(prepared.about)


def _backends(device: str) -> Iterator[tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """Yield name and call of every attention back end; q, k, v are [B, H, L, D]."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    choices = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}
    choices |= {"efficient": SDPBackend.EFFICIENT_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    for name, choice in choices.items():

        def sdpa(q: Tensor, k: Tensor, v: Tensor, choice: SDPBackend = choice) -> Tensor:
            with sdpa_kernel(choice):
                return torch.nn.functional.scaled_dot_product_attention(q, k, v)

        yield f"attention sdpa {name}", sdpa

    def xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ops = importlib.import_module("xformers.ops")
        return ops.memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    def flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        return torch.compile(flex_attention)(q, k, v)

    yield "attention xformers", xformers
    if device == "cuda":  # nothing of gen uses it elsewhere
        yield "attention flex", flex


def _backend(name: str, attend: Callable[[Tensor, Tensor, Tensor], Tensor], device: str) -> Finding:
    """Call a back end on a small problem and compare with the exact answer."""
    import torch

    dtype, bound = (torch.bfloat16, 2e-2) if device == "cuda" else (torch.float32, 1e-5)
    q, k, v = torch.randn(3, 1, 2, 128, 64, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    exact = (q.double() @ k.double().mT / 8).softmax(-1) @ v.double()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch explains in warnings why a back end refuses; the error says enough
            error = float((attend(q, k, v).double() - exact).abs().max())
    except Exception as refusal:
        if "math" in name:
            return Finding(name, "fail", _line(refusal), INSTALL)
        reason = "not installed" if isinstance(refusal, ImportError) else _line(refusal)
        return Finding(name, "none", f"not on this {device}: {reason}")
    if error > bound:
        return Finding(name, "fail", f"wrong by {error:.1e} in {dtype}", "report it with this page, and use another")
    return Finding(name, "ok", f"largest error {error:.1e} in {str(dtype).removeprefix('torch.')}")


def _threads() -> Finding:
    import torch

    threads, cores, wait = torch.get_num_threads(), _cores(), os.environ.get("OMP_WAIT_POLICY", "unset")
    detail = f"{threads} torch threads, {cores} cores, OMP_WAIT_POLICY {wait}"
    if threads > cores:
        return Finding("threads", "warn", detail, f"export OMP_NUM_THREADS={cores}")
    if wait.lower() != "passive":
        fix = "export OMP_WAIT_POLICY=passive: small networks train several times faster"
        return Finding("threads", "warn", detail, fix)
    return Finding("threads", "ok", detail)


def _memory() -> Finding:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":") for line in lines)
        free, total = (int(fields[key].split()[0]) / 2**20 for key in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return Finding("memory", "none", "this system does not say")
    fix = "use a smaller --micro-batch-size" if free < 2 else ""
    return Finding("memory", "warn" if fix else "ok", f"{free:.1f} of {total:.1f} GiB free", fix)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    fix = "free some, or keep fewer checkpoints" if free < 2 else ""
    return Finding("disk", "warn" if fix else "ok", f"{free:.1f} GiB free under {Path.cwd()}", fix)


def _cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _line(error: Exception) -> str:
    """Return an error's type and the start of its text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:100]}{'…' if len(text) > 100 else ''}"
