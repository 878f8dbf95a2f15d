"""The law of engines whose processes compute each sample together: they decide alike, or they wait for ever."""

import contextlib

import pytest
import torch.distributed as dist

from gen.config.errors import UserError
from gen.config.spec import build, find, names
from gen.diffusion.cache_report import CacheReport
from gen.diffusion.net import members
from gen.models.engines.branches import BranchesNet
from gen.models.engines.patches import Patches
from tests.models.patch_shares import pipeline_of

BY_FEATURES = ["fbcache", "teacache", "magcache", "speca", "cg_taylor", {"name": "shared", "sites": ["trunk"]}]
BY_STEPS = ["fora", "taylorseer", {"name": "magcache", "ratios": [1.0] * 3}]


class OwnSession:
    """A user's cache, which does not say what it decides by."""

    def start(self, steps):
        return self

    def bind(self, context):
        return lambda site, compute, h: compute(h)

    def report(self):
        return CacheReport(3, (), (), (), ())


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", world_size=1, rank=0)
    yield
    dist.destroy_process_group()


def refusing_all_caches(engine):
    """Pipefusion takes none."""
    none = pytest.raises(UserError, match="takes no cache")
    return none if type(engine).__name__ == "PipeFusion" else contextlib.nullcontext()


def collective_engines():
    kinds = [name for name in names("models.engines") if hasattr(find(name, "models.engines"), "collective")]
    built = [build("models.engines", name) for name in kinds]
    return [engine for engine in built if engine.collective] + [Patches(parts=2)]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own, of collectives that it renames
def test_engines_that_share_out_a_sample_refuse_caches_that_decide_by_features(one_process):
    plain, split = pipeline_of("dit"), []
    for engine in collective_engines():
        pipeline = plain.prepared(engine)
        net = pipeline.denoiser.net
        assert isinstance(net.splits_samples, bool), f"{engine}: say whether sites see a part of each sample"
        split += [type(engine).__name__] if net.splits_samples else []
        for cache in (*BY_FEATURES, OwnSession()):
            if net.splits_samples:
                with pytest.raises(UserError, match=r"each process sees a part of each sample.* such as fora"):
                    pipeline.sample(1, steps=3, cache=cache)
            else:
                pipeline.sample(1, steps=3, cache=cache)
        for cache in BY_STEPS:
            with refusing_all_caches(engine):
                pipeline.sample(1, steps=3, cache=cache)
    assert {"Patches", "Sequence"} <= set(split)
    within = BranchesNet(Patches(parts=2).prepare(plain.denoiser.net), 0, None, "branches of patches")
    with pytest.raises(UserError, match="under 'branches of patches' each process sees a part"):
        members(within).loop_tap(3, build("samplers.caches", "fbcache").start(3))
