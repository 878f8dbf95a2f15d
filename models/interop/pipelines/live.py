"""A feature cache, an engine or both on a live pipeline: `live = gen.accelerate(pipe, "taylorseer", interval=3)`.

The pipeline stays the user's own: hooks of diffusers' registry lie around the modules of its network, and a stand-in
for its scheduler says when a loop and its steps begin. `live.remove()`, or the end of `with gen.accelerate(pipe)`,
takes both away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError, shown
from gen.config.spec import build, name_of
from gen.diffusion.contracts import Cache, CacheSession
from gen.diffusion.tap import BoundTap, Chain, Context
from gen.models.engines.compiled import Compiled
from gen.models.engines.patches import Patches
from gen.models.interop.pipelines.clock import Clock
from gen.models.interop.pipelines.hooks import SiteHooks
from gen.models.interop.pipelines.live_report import LiveDrift, LiveReport, measure_drift
from gen.models.interop.pipelines.network_engine import NetworkEngine
from gen.models.interop.pipelines.taps import branch_of_network, check_sites, policy_and_sites
from gen.text.pipeline import engine_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Live", "accelerate"]

BLOCK_SITES = ("hidden.*", *(f"blocks.{'[0-9]' * n}" for n in (1, 2, 3)))  # those of transformers, and of UNets
NETWORKS = ("transformer", "transformer_2", "unet")  # attributes of a pipeline that hold the network of its loop
Key = tuple[int, int, str]


def accelerate(pipe: Any, cache: Any = None, *, engine: Any = None, **fields: Any) -> Live:
    """Put a feature cache, an engine or both on a pipeline of diffusers, in place, until they are removed.

    Args:
        pipe: a pipeline with a transformer or a UNet and a scheduler; called as ever from then on.
        cache: of gen.samplers.caches: a name, a spec or an object; None for taylorseer_lite, and beside an engine for
            none. Its sites must be among those of gen.models.interop.pipelines.hooks; "trunk" leaves out all blocks,
            "net" the whole network.
        engine: "packed" computes linear layers, with their GELU, by oneDNN on a CPU, with a second copy of their
            weights; "fused" norms and their modulations; both in the network's dtype, and to rounding. "compiled"
            compiles every block (torch.compile). "patches" shares out each picture over processes, all of which call
            the pipeline with the same arguments and seeds at the same moment. A name, a spec or an object; None for
            none.
        **fields: of the cache, such as interval=3.

    Raises:
        UserError: where it would do nothing or harm: no such site, another cache, a pipeline that is accelerated
            already, an engine that copies the network or finds nothing in it.
    """
    if cache is None and (engine is None or fields):
        cache = "taylorseer_lite"
    built: Cache | None = None if cache in (None, "none") else build("samplers.caches", cache, **fields)
    if built is not None and not hasattr(built, "start"):
        raise UserError(f"cache = {shown(cache)}; allowed: a name, a spec, or an object with start()")
    if built is None and engine is None:
        raise UserError("neither a cache nor an engine to accelerate with: give one")
    return Live(pipe, built, None if engine is None else engine_of(engine))


class Live:
    """A cache, an engine or both at work on a pipeline.

    Args:
        pipe: of diffusers.
        cache: to use; None for none.
        engine: to use; None for none.

    Attributes:
        pipe: the pipeline.
        engines: what the engine does in each network; () for none, and where it compiles blocks or shares out pictures.
        patches: what shares out pictures; None for nothing.
        cache: in use; None for none; one that must measure first (MagCache) is replaced by the calibrated one after the
            first loop.
        enabled: set it to False to run the pipeline as it is for a while.
        latents: the sample that the newest step returned.
    """

    def __init__(self, pipe: Any, cache: Cache | None, engine: Any = None):
        self.pipe, self.cache = pipe, cache
        self.enabled = self.loop_enabled = True
        self.latents: Tensor | None = None
        self.last: LiveReport | None = None
        self.began = self.loop_seconds = 0.0
        self.session: CacheSession | None = None
        self.seconds: dict[Key, Callable[[], float]] = {}
        self.calls: dict[int, int] = {}  # network -> evaluations since the last step
        self.hooks: list[SiteHooks] = []
        networks = [getattr(pipe, name, None) for name in NETWORKS]
        self.networks = [network for network in networks if isinstance(network, nn.Module)]
        if not self.networks or not hasattr(getattr(pipe, "scheduler", None), "set_timesteps"):
            raise UserError(f"{type(pipe).__name__} has no {', '.join(NETWORKS)} with a scheduler to accelerate")
        self._refuse_other_caches()
        self.compiled = isinstance(engine, Compiled)
        if self.compiled and engine != Compiled():
            raise UserError(f"engine = {shown(engine)}: the blocks of a live pipeline are compiled as torch.compile "
                            "does by default; leave the options out")  # fmt: skip
        self.patches = engine.live(self.networks) if isinstance(engine, Patches) else None
        within = () if engine is None or self.compiled or self.patches is not None else self.networks
        self.engines = tuple(NetworkEngine(network, engine, self._active) for network in within)
        try:
            for part in self.engines:
                part.attach()
            for i, network in enumerate(self.networks):
                hooks = SiteHooks(network, self._wanted(), self._around(i), compiled=self.compiled)
                self.hooks.append(hooks)
                if cache is not None:
                    check_sites(cache, hooks)
                if self.compiled and not hooks.compiled_blocks:
                    raise UserError(f"engine = compiled: {type(network).__name__} has no block that is known")
        except BaseException:
            self._unhook()
            raise
        self.clock = Clock(pipe.scheduler, self._begin, self._tick)
        pipe.scheduler = self.clock.stand_in

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        cache = () if self.cache is None else (name_of(type(self.cache)),)
        blocks = sum(hooks.compiled_blocks for hooks in self.hooks)
        engines = (f"compiled: {blocks} blocks",) if self.compiled else tuple(part.about for part in self.engines)
        engines = engines if self.patches is None else (self.patches.about,)
        what = ", ".join((type(self.pipe).__name__, *cache, *engines))
        if not self.hooks or self.cache is None:
            return f"Live({what})" if self.hooks else f"Live({what}: removed)"
        return f"Live({what}: {self.report.line() if self.report else 'not run yet'})"

    @property
    def report(self) -> LiveReport | None:
        """Report of the newest loop under a cache, of one at work too; None before the first."""
        if self.session is None or not self.seconds:
            return self.last
        report = self.session.report()
        return LiveReport(report, tuple(self.seconds[c.step, c.stage, c.branch]() for c in report.contexts))

    def remove(self) -> None:
        """Take the hooks and the clock off; the pipeline is as it was. A second call does nothing."""
        if self.hooks:
            self._unhook()
            if self.pipe.scheduler is self.clock.stand_in:
                self.pipe.scheduler = self.clock.scheduler
            self.session = None

    def summary(self) -> str:
        """Return the newest loop in a few lines for the terminal: what was computed, step by block, and its cost."""
        return repr(self) if self.cache is None else f"{self!r}\n{self._reported().table()}"

    def picture(self) -> Image:
        """Return a picture of what was computed in the newest loop: a row for each block, a column for each step."""
        return self._reported().picture()

    def drift(self, prompt: Any = None, *, seed: int = 0, **call: Any) -> LiveDrift:
        """Run the pipeline as it is and accelerated, on the same noise, and compare.

        Args:
            prompt: of the pipeline; None for arguments in `call` alone, such as prompt_embeds.
            seed: of both runs' noise.
            **call: other arguments of the pipeline. Unless there is an output_type, pictures are compared, too.

        Returns:
            The distance of the latents and of the pictures, and the plain steps that take the same time.
        """
        given = {**({} if prompt is None else {"prompt": prompt}), **call}
        runs: list[tuple[Tensor, Any, float]] = []
        for enabled in (False, True):
            before, self.enabled = self.enabled, enabled
            try:
                device = getattr(self.pipe, "_execution_device", "cpu")
                generator = torch.Generator(device).manual_seed(seed)
                out = self.pipe(**{"output_type": "pt", **given, "generator": generator})
            finally:
                self.enabled = before
            assert self.latents is not None
            runs.append((self.latents, out, self.loop_seconds))
        loop = None if self.cache is None else self._reported()
        pictures = "output_type" not in given
        return measure_drift(runs[0], runs[1], steps=self.clock.steps, loop=loop, pictures=pictures)

    def _reported(self) -> LiveReport:
        report = self.report
        if report is None:
            known = "nothing was sampled under the cache yet: call the pipeline first"
            raise UserError("there is no cache, of which a report would be" if self.cache is None else known)
        return report

    def _unhook(self) -> None:
        for hooks in self.hooks:
            hooks.remove()
        for engine in self.engines:
            engine.remove()
        self.hooks = []

    def _active(self) -> bool:
        """Whether an engine computes what it can."""
        return self.enabled and self.loop_enabled

    def _refuse_other_caches(self) -> None:
        for network in self.networks if self.cache is not None else ():
            if getattr(network, "is_cache_enabled", False):
                raise UserError(f"{type(network).__name__} has a cache of diffusers already; two would predict each "
                                "other's predictions: call its disable_cache() first")  # fmt: skip

    def _wanted(self) -> tuple[str, ...]:
        """Patterns of the sites that the cache needs, and of those that its report shows; or of what is compiled."""
        blocks = BLOCK_SITES if self.compiled else ()
        if self.cache is None:
            return blocks
        policy, sites = policy_and_sites(self.cache)
        if policy is None:
            return ("*",)
        return (*sites, *(pattern for pattern in (policy.probe, policy.check) if pattern), "hidden.*", *blocks)

    def _begin(self) -> None:
        """A loop begins."""
        self._refuse_other_caches()
        for engine in self.engines:
            engine.refresh()
        if self.patches is not None:
            self.patches.begin()
        for hooks in self.hooks:
            hooks.refresh()
        self.session, self.seconds, self.calls = None, {}, {}
        self.loop_enabled, self.began = self.enabled, time.perf_counter()

    def _tick(self, latents: Tensor) -> None:
        """A step has ended."""
        self.latents, self.calls = latents, {}
        index = self.clock.index
        if index is not None and index >= self.clock.count:
            if latents.is_cuda:
                torch.cuda.synchronize()
            self.loop_seconds = time.perf_counter() - self.began
        if self.session is not None and index is not None:
            if len({key[0] for key in self.seconds}) == 1:
                self.session.report()  # which refuses a network without its sites
                self._check_branches()
            if index >= self.clock.count:
                self._end()

    def _check_branches(self) -> None:
        wanted = getattr(self.session, "branches", ())
        met = dict.fromkeys(branch for _, _, branch in self.seconds)
        if wanted and not any(branch in wanted for branch in met):
            raise UserError(f"{name_of(type(self.cache))} caches the branches {', '.join(wanted)}, and this pipeline "
                            f"evaluates {', '.join(met)}: it would save nothing")  # fmt: skip

    def _end(self) -> None:
        """A loop has ended."""
        self.last = self.report
        if self.cache is not None and self.last is not None and self.last.cache.calibration:
            self.cache = self.cache.calibrated(self.last.cache)
        self.session = None

    def _started(self, cache: Cache) -> CacheSession:
        """Return a cache's session for the loop; UserError where it would decide by a part of each picture."""
        session = cache.start(self.clock.steps)
        if self.patches is not None and getattr(session, "decides_by_features", True):
            raise UserError(f"under {self.patches.about!r} each process sees a part of each sample, by which this "
                            "cache would decide or measure; allowed: those that go by steps, such as fora")  # fmt: skip
        return session

    def _around(self, number: int) -> Callable[[Callable[[], Any]], Any]:
        """Return what runs each evaluation of one of the networks."""

        def around(run: Callable[[], Any]) -> Any:
            if self.pipe.scheduler is not self.clock.stand_in:
                raise UserError("the pipeline has another scheduler than when it was accelerated, by which loops and "
                                "steps are known: remove() what accelerates it, and accelerate again")  # fmt: skip
            idle = self.cache is None and self.patches is None
            if idle or not self.clock.running or not self.loop_enabled:
                return run()
            hooks = self.hooks[number]
            nth = self.calls[number] = self.calls.get(number, -1) + 1
            branch = hooks.context or ("main" if nth == 0 else f"call{nth}")
            if self.session is None and self.cache is not None:
                self.session = self._started(self.cache)
            (step, stage), (t, lam) = self.clock.position(), self.clock.times()
            branch = branch_of_network(branch, number)
            context = Context(step, self.clock.steps, stage, t, branch, lam)
            tap = None if self.session is None else BoundTap(self.session, context)
            stop = _stopwatch(hooks.network)
            try:
                if self.patches is None:
                    hooks.tap = tap
                    return run()
                with self.patches.evaluation(number, context) as operations:
                    hooks.tap = None if tap is None else Chain((tap, operations))
                    return run()
            finally:
                hooks.tap = None
                self.seconds[step, stage, branch] = stop()

        return around


def _stopwatch(network: nn.Module) -> Callable[[], Callable[[], float]]:
    """Begin to measure time; the function that is returned ends it, and returns one for the seconds.

    On a GPU they are those between two events of its queue, for which nothing waits before the seconds are read.
    """
    if next((p.device.type for p in network.parameters()), "cpu") != "cuda":
        began = time.perf_counter()

        def stop() -> Callable[[], float]:
            seconds = time.perf_counter() - began
            return lambda: seconds

        return stop
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()

    def stop_events() -> Callable[[], float]:
        last.record()

        def seconds() -> float:
            last.synchronize()
            return float(first.elapsed_time(last)) / 1000

        return seconds

    return stop_events
