"""Caches on live pipelines: to the bit without them, counted with them, and nothing left behind."""

import contextlib
import copy
import functools

import diffusers
import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import FeatureRecorder, Skip
from gen.models.interop.pipelines.blocks import BLOCKS
from gen.models.interop.pipelines.hooks import SiteHooks
from gen.models.interop.pipelines.listening import listen
from gen.models.interop.pipelines.network import denoiser_of
from gen.models.interop.pipelines.schedule import times_of
from gen.samplers.caches.custom import Custom
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.reuse import Reuse
from gen.samplers.guides.cfg import CFG
from gen.samplers.guides.renorm import Renorm
from gen.samplers.guides.staged import StagedCFG
from gen.samplers.solvers.ddim import DDIM
from tests.pipelines.tiny import FAMILIES, call, relative, tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # EulerDiscrete
PIPES = sorted(FAMILIES)
UNETS = ("sd15", "sd21_v", "sdxl")
SITES = {
    "net": ("net",),
    "trunk": ("trunk",),
    "hidden": ("hidden.*",),
    "blocks": ("blocks.*",),
    "raw": ("blocks.*.raw",),
}


def run(pipe, name, **changes):
    """The last latents of one call, or the pictures of a pipeline that has none."""
    out = pipe(**{**call(name), **changes}, return_dict=False)[0]
    return out if isinstance(out, torch.Tensor) else torch.as_tensor(out)


def every(interval, sites):
    """A cache that computes one step in `interval` and uses its features again."""
    return Custom(Interval(interval, 1), Reuse(), sites=sites)


def networks(pipe):
    found = [getattr(pipe, name, None) for name in ("transformer", "transformer_2", "unet")]
    return [net for net in found if net is not None]


def attributes(pipe):
    """Everything that a hook could leave behind."""
    return [(sorted(vars(module)), "forward" in vars(module)) for net in networks(pipe) for module in net.modules()]


class Counted:
    """Counts the evaluations of the last block's attention in every network."""

    def __init__(self, pipe):
        self.calls = 0
        for net in networks(pipe):
            blocks = [module for module in net.modules() if type(module).__name__ in BLOCKS]
            linear = next(m for n, m in blocks[-1].named_modules() if isinstance(m, torch.nn.Linear) and "att" in n)
            linear.register_forward_pre_hook(self.count)

    def count(self, *_):
        self.calls += 1


@pytest.mark.parametrize("name", PIPES)
def test_off_and_removed_is_bit_identical_and_on_computes_what_it_reports(name):
    pipe = tiny(name)
    plain, before, scheduler, counted = run(pipe, name), attributes(pipe), pipe.scheduler, Counted(pipe)
    kinds = [kind for kind in SITES if kind != "hidden" or name not in UNETS]
    for kind in kinds:
        with gen.accelerate(pipe, every(1, SITES[kind])) as live:
            assert torch.equal(run(pipe, name), plain), f"interval 1 at {kind}"
            assert live.report.computed_share == 1 and live.report.full == live.report.evaluations
            live.cache, counted.calls = every(2, SITES[kind]), 0
            x, report = run(pipe, name), live.report
            assert counted.calls == report.full < report.evaluations, kind
            assert report.computed_share == report.full / report.evaluations
            assert torch.isfinite(x).all() and not torch.equal(x, plain)
            if kind == "trunk":
                assert torch.equal(run(pipe, name), x), "nothing is left of the first loop"
                live.enabled = False
                assert torch.equal(run(pipe, name), plain), "not enabled"
                assert "in full" in repr(live) and "\n" not in repr(live)
        assert attributes(pipe) == before and pipe.scheduler is scheduler
    assert torch.equal(run(pipe, name), plain)


GUIDES = {"flux2": None, "lumina2": Renorm(3.0, over="rows"), "qwen_image": Renorm(3.0), "z_image": CFG(3.0)}
GUIDES |= {"wan22": StagedCFG(3.0, low_scale=2.0, boundary=0.9)}


@pytest.mark.parametrize("name", PIPES)
@torch.no_grad()
def test_equals_the_same_cache_in_our_own_loop(name):
    pipe, given = tiny(name), call(name)
    with gen.accelerate(pipe, every(2, ("trunk",))) as live:
        pipe(**given)
        theirs, report = live.latents, live.report.cache
    given = call(name)
    heard = listen(pipe, **given)
    f, times, guide = denoiser_of(heard), times_of(heard), GUIDES.get(name, CFG(3.0))
    f = f if guide is None else guide(f, times)
    session = every(2, ("trunk",)).start(len(times) - 1)
    ours = integrate(f, heard.latents, times, DDIM(), cond=heard.cond, tap=session)
    assert relative(ours, theirs[: len(ours)]) < 1e-4
    assert session.report().fraction == report.fraction


@pytest.mark.parametrize("name, cache", [
    ("pixart", {"name": "speca", "threshold": 0.05}),
    ("wan", {"name": "teacache", "threshold": 0.2}),
    ("wan", {"name": "cg_taylor", "threshold": 0.1}),
])  # fmt: skip
@torch.no_grad()
def test_rows_decide_for_themselves_within_a_pipelines_network(name, cache):
    heard = listen(tiny(name), **{**call(name), "num_inference_steps": 10})
    f, times, built = denoiser_of(heard), times_of(heard), gen.build("samplers.caches", cache)
    unlike = torch.tensor([1.0, 0.2]).reshape(-1, *[1] * (heard.latents.ndim - 1))

    def loop(rows):
        session, cond = built.start(10), {key: value[rows] for key, value in heard.cond.items()}
        x = integrate(f, (heard.latents * unlike)[rows], times, DDIM(), cond=cond, tap=session)
        return x, session.report().share_needed

    both, shares = loop(slice(0, 2))
    assert 0.5 in shares and min(shares) == 0
    for row in range(2):
        assert relative(both[row : row + 1], loop(slice(row, row + 1))[0]) < 1e-5


@pytest.mark.parametrize("cache", ["taylorseer", "taylorseer_lite", "fora", "fbcache", "teacache", "cg_taylor", "speca",
                                   "magcache", "shared", "uncond"])  # fmt: skip
def test_presets_run_unchanged(cache):
    pipe = tiny("wan")
    with gen.accelerate(pipe, cache) as live:
        run(pipe, "wan", num_inference_steps=8)
        first = live.report
        run(pipe, "wan", num_inference_steps=8)
        assert live.report.evaluations == 16
        assert live.report.full < 16 or cache in ("fbcache", "teacache", "cg_taylor", "speca")  # random features move
        assert (first.full == 16) == (cache in ("magcache", "shared") or live.report.full == 16)  # these measure first
        assert live.picture().size[0] > 16 and "#" in live.summary()


def test_batch_size_steps_and_exceptions_leave_nothing():
    name = "flux"
    pipe, other = tiny(name), tiny(name)
    with gen.accelerate(pipe, every(2, ("trunk",))), gen.accelerate(other, every(2, ("trunk",))):
        want = run(pipe, name)

        def fail(pipe, step, t, given):
            if step == 1:
                raise KeyboardInterrupt
            return given

        with pytest.raises(KeyboardInterrupt):
            run(pipe, name, callback_on_step_end=fail)
        assert torch.equal(run(pipe, name), want)
        small = {key: value[:1] for key, value in call(name).items() if isinstance(value, (torch.Tensor, list))}
        assert len(run(pipe, name, **small)) == 1
        run(pipe, name, num_inference_steps=6, height=call(name)["height"] * 2)
        assert torch.equal(run(pipe, name), want)

        def interleaved(pipe, step, t, given):
            assert torch.equal(run(other, name), want)
            return given

        assert torch.equal(run(pipe, name, callback_on_step_end=interleaved), want)


def test_a_loop_ends_with_the_pipelines_call():
    """After an exception, an interruption, and within another pipeline's call the network is nobody's."""
    name = "sd15"
    pipe = tiny(name)
    parts = {**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}
    other = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    plain, given, hook = run(other, name), [], pipe.unet.register_forward_pre_hook
    with hook(lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True):
        run(pipe, name)
    direct = [pipe.unet(*args, **kwargs)[0] for args, kwargs in given]
    live = gen.accelerate(pipe, every(3, ("trunk",)))
    want = run(pipe, name)

    def fail(pipe, step, t, now):
        raise KeyboardInterrupt

    def interrupt(pipe, step, t, now):
        pipe._interrupt = True
        return now

    def interleaved(pipe, step, t, now):
        assert torch.equal(run(other, name), plain)
        return now

    for callback in (fail, interrupt):
        with contextlib.suppress(KeyboardInterrupt):
            run(pipe, name, callback_on_step_end=callback)
        assert all(torch.equal(pipe.unet(*a, **k)[0], out) for (a, k), out in zip(given, direct, strict=True))
        assert torch.equal(run(other, name), plain)
        assert torch.equal(run(pipe, name), want)
    assert torch.equal(run(pipe, name, callback_on_step_end=interleaved), want) and live.report.full == 2

    class Asks:
        def __call__(self, pipe, step, t, now):
            (args, kwargs), out = given[step], direct[step]
            assert torch.equal(pipe.unet(*args, **kwargs)[0], out)
            return now

    asked = Asks()

    def asks(pipe, step, t, now, asked=asked):
        return asked(pipe, step, t, now)

    for callback in (asked, asked.__call__, asks, functools.partial(asks, asked=Asks())):
        assert torch.equal(run(pipe, name, callback_on_step_end=callback), want) and live.report.full == 2


def test_two_networks_have_features_of_their_own():
    pipe = tiny("wan22")
    with gen.accelerate(pipe, every(8, ("trunk",))) as live:
        run(pipe, "wan22")
        branches = {context.branch for context in live.report.cache.contexts}
        assert {"cond", "cond.2"} <= branches
        assert live.report.full == len(branches)


@pytest.mark.parametrize("given, line", [
    ({"cache": every(2, ("nowhere.*",))}, "no site matches 'nowhere"),
    ({"cache": "fora", "engine": "auto"}, "prepares a copy"),
    ({"cache": "taylorsear"}, "taylorseer"),
])  # fmt: skip
def test_refusals(given, line):
    pipe = tiny("pixart")
    before = attributes(pipe)
    with pytest.raises(UserError, match=line):
        gen.accelerate(pipe, **given)
    assert attributes(pipe) == before


def test_refuses_two_caches_a_second_time_and_another_scheduler():
    pipe = tiny("wan")
    config = diffusers.FirstBlockCacheConfig(threshold=0.1)
    with gen.accelerate(pipe):
        with pytest.raises(UserError, match="accelerated already"):
            gen.accelerate(pipe)
        pipe.transformer.enable_cache(config)
        with pytest.raises(UserError, match="a cache of diffusers"):
            run(pipe, "wan")
        pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(config)
    with pytest.raises(UserError, match="a cache of diffusers"):
        gen.accelerate(pipe)
    pipe.transformer.disable_cache()
    with gen.accelerate(pipe):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        with pytest.raises(UserError, match="another scheduler"):
            run(pipe, "wan")
    with pytest.raises(UserError, match="evaluates main"), gen.accelerate(tiny("pixart"), "uncond") as live:
        run(live.pipe, "pixart")
    with pytest.raises(UserError, match="decides inside"):
        gen.accelerate(tiny("sd15"), "speca")


def test_drift_against_plain_steps():
    pipe = tiny("sd15")
    with gen.accelerate(pipe, every(2, ("trunk",))) as live:
        given = {key: value for key, value in call("sd15").items() if key not in ("output_type", "generator")}
        drift = live.drift(**given, seed=3)
        assert 0 < drift.latents < 1 and drift.psnr > 10 and 1 <= drift.plain_steps <= 4
        assert live.drift(**given, seed=3).latents == drift.latents
        assert live.enabled and "PSNR" in repr(drift)
        live.cache = every(1, ("trunk",))
        assert live.drift(**given).latents == 0


def test_taps_of_hooks_follow_the_contract():
    pipe, name = tiny("sd3"), "sd3"
    plain, net = run(pipe, name), pipe.transformer
    with SiteHooks(net) as hooks:
        hooks.tap = record = FeatureRecorder()
        assert torch.equal(run(pipe, name), plain)
        assert set(record.features) == set(hooks.sites)
        whole, added = record.features["hidden.1"], record.features["blocks.1"]
        assert torch.allclose(whole, record.features["hidden.0"] + added, atol=1e-5)
        hooks.tap = Skip(("blocks.*",))
        skipped = run(pipe, name)
    with SiteHooks(net, ("trunk",)) as hooks:
        hooks.tap = Passed()
        assert torch.equal(run(pipe, name), skipped), "all blocks left out is no block at all"


class Passed:
    """Leaves out what lies between hooks."""

    def __call__(self, site, compute, h):
        return compute(h)

    def stepwise(self, site, h):
        return h
        yield


def test_keeps_the_schedulers_class_and_saves(tmp_path):
    pipe = tiny("dit")
    kind = type(pipe.scheduler)
    with gen.accelerate(pipe, every(2, ("trunk",))):
        assert isinstance(pipe.scheduler, kind) and pipe.scheduler.config == copy.deepcopy(pipe.scheduler.config)
        pipe.scheduler.save_pretrained(tmp_path)
    assert kind.from_pretrained(tmp_path).config["num_train_timesteps"] == 1000
