"""Transformers of pipelines whose blocks are stages: families one by one, on one process and on several."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from gen.config.errors import UserError
from gen.diffusion.tap import BoundTap, Context
from gen.models.engines.pipefusion import PipeFusion
from tests.models.pipefusion_pipeline_shares import FAMILIES
from tests.models.pipeline_shares import network_of, token_count
from tests.over import over
from tests.ranks import spread

attend = torch.nn.functional.scaled_dot_product_attention


class Recording(TorchFunctionMode):
    """Keys and values of every attention to the sample's own tokens; those of `given`, if any, instead of some.

    given: of each attention in turn, the keys and values, and `fresh`: positions of what stays.
    """

    def __init__(self, tokens, given=None, fresh=None):
        super().__init__()
        self.tokens, self.given, self.fresh, self.found = tokens, given, fresh, []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (self.attention if func is attend else func)(*args, **(kwargs or {}))

    def attention(self, query, key, value, *args, **kwargs):
        if self.tokens <= query.shape[2] == key.shape[2]:
            if self.given is not None:
                other, stay = self.given[len(self.found)], self.fresh(key.shape[2])[:, None]
                key, value = (torch.where(stay, new, old) for new, old in zip((key, value), other, strict=True))
            self.found.append((key, value))
        return attend(query, key, value, *args, **kwargs)


def by_definition(net, text_first, before, x, t, cond, patches):
    """One stale evaluation: the whole network once for each patch, all of whose tokens but the patch's are cut off.

    The patch meets keys of the patches before it from their own evaluations, those behind it from `before`. A text
    passes with the first patch.
    """
    tokens = token_count(net, x)
    with Recording(tokens) as recording:
        net(before, t, cond)
    kept, n, out = recording.found, tokens // patches, []
    for patch in range(patches):

        def fresh(length, patch=patch):
            text = length - tokens
            start, positions = text if text_first else 0, torch.arange(length)
            own = (positions >= start + patch * n) & (positions < start + (patch + 1) * n)
            is_text = (positions < start) if text_first else (positions >= tokens)
            return own | is_text if patch == 0 else own

        with Recording(tokens, kept, fresh) as recording:
            whole = net(x, t, cond)
        kept = recording.found
        out.append(whole.chunk(patches, 1 if x.ndim == 3 else -2)[patch])
    return torch.cat(out, 1 if x.ndim == 3 else -2)


@pytest.mark.slow
@over(name=[name for name in FAMILIES if name not in ("sd3", "flux")])
def test_each_family(name):
    check(name)


@over(name=["sd3", "flux"])
def test_patches_are_those_of_the_definition_and_of_the_network_if_frozen(name):
    check(name)


@torch.no_grad()
def check(name):
    net, x, t, cond = network_of(name)
    exact, modules = net(x, t, cond), list(net.inner.modules())
    ours = PipeFusion(parts=2, patches=2).prepare(net)
    tap = ours.start_loop(4, None)
    for step in range(2):
        out = ours(x, t, cond, tap=BoundTap(tap, Context(step, 4, 0, 0.5)))
        torch.testing.assert_close(out, exact, rtol=1e-5, atol=1e-5)
    stale = ours(1.3 * x, t, cond, tap=BoundTap(tap, Context(2, 4, 0, 0.5)))
    assert not torch.allclose(stale, net(1.3 * x, t, cond), atol=1e-4)
    if name not in ("cogvideox", "hunyuan_video", "kontext", "ltx", "wan"):  # whose patches are no rows of a picture
        text_first = ours.split.text == "first"
        expected = by_definition(net, text_first, x, 1.3 * x, t, cond, 2)
        torch.testing.assert_close(stale, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours(1.3 * x, t, cond), net(1.3 * x, t, cond), rtol=1e-5, atol=1e-5)
    assert torch.equal(net(x, t, cond), exact)
    assert not any("forward" in vars(module) or module._forward_pre_hooks for module in modules)


def test_refusals():
    for name, said in (
        ("sana", "cannot divide this SanaTransformer2DModel: its attention is linear"),
        ("wan22", "cannot divide this WanTransformer3DModel: its pipeline has two"),
        ("sd15", "cannot divide this UNet2DConditionModel: it has no blocks in a row"),
    ):
        with pytest.raises(UserError, match=f"the engine 'pipefusion' {said}"):
            PipeFusion(parts=2).prepare(network_of(name)[0])
    net, x, t, cond = network_of("pixart")
    with torch.no_grad(), pytest.raises(UserError, match="8 tokens do not divide into 3 patches"):
        ours = PipeFusion(parts=2, patches=3).prepare(net)
        tap = ours.start_loop(4, None)
        for step in range(2):
            ours(x, t, cond, tap=BoundTap(tap, Context(step, 4, 0, 0.5)))


@pytest.mark.slow
def test_processes_are_the_stages_of_one_process(tmp_path):
    ranks = spread("tests.models.pipefusion_pipeline_shares:everything", 2, tmp_path)
    for name in FAMILIES:
        for rank in ranks:
            outputs = rank[f"{name} outputs"]
            torch.testing.assert_close(outputs, ranks[0][f"{name} one process"], rtol=1e-4, atol=1e-5, msg=name)
            sent, foretold = rank[f"{name} sent"].tolist()
            assert sent == foretold, name
