"""SiT-down: the published sizes, what is joined to what, and a middle of its own resolution and condition."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gen.config.errors import UserError
from gen.diffusion.alignment import Projector
from gen.diffusion.tap import FeatureRecorder
from gen.models.sit_down import SiTDown

PUBLISHED = {"B": (199.7, 24.1), "L": (686.6, 79.3), "XL": (954.4, 109.3)}  # 10^6 parameters, GMACs: table 2
COUNTED = {"B": 192_347_152, "L": 678_758_416, "XL": 946_237_840}  # by hand, without REPA's head


def digits(seed=0, **changes):
    torch.manual_seed(seed)
    net = SiTDown.preset("digits", **changes).build().double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return net


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_and_operations_are_the_published_ones(size):
    """With the head of the alignment, as REPA's code counts them; products of attention are not among the published."""
    millions, gmacs = PUBLISHED[size]
    spec = SiTDown.preset(f"SiT-down-{size}/2")
    with torch.device("meta"):
        net, head = spec.build(), Projector(spec.width, 768, 2048)
        cond, counter = {"y": torch.zeros(1, dtype=torch.int64)}, FlopCounterMode(display=False)
        with counter:
            net(torch.zeros(1, 4, 32, 32), torch.zeros(1), cond)
            head(torch.zeros(1, 64, spec.width))
    own, heads = (sum(p.numel() for p in module.parameters()) for module in (net, head))
    assert own == COUNTED[size] and round((own + heads) / 1e6, 1) == millions
    counts = counter.get_flop_counts()["Global"]
    products = sum(flops for op, flops in counts.items() if "attention" in str(op) or "bmm" in str(op))
    assert round((sum(counts.values()) - products) / 2e9, 1) == gmacs


def test_the_middle_has_a_quarter_of_the_tokens_and_the_last_blocks_read_the_first():
    net, sites = digits(outer=2), FeatureRecorder(("hidden.*",))
    x, t, cond = torch.randn(2, 1, 8, 8).double(), torch.rand(2).double(), {"y": torch.tensor([1, 2])}
    out = net(x, t, cond, tap=sites)
    assert [sites.features[f"hidden.{i}"].shape[1] for i in range(7)] == [16, 16, 4, 4, 4, 16, 16]

    class Replace:
        def __init__(self, site):
            self.site = site

        def bind(self, context):
            return self

        def __call__(self, site, compute, h):
            h = compute(h)
            return h + 1 if site == self.site else h

    with torch.no_grad():
        net.up.weight.zero_()  # nothing of the middle is left
        for join in net.joins:
            join.weight[:, net.spec.width :].zero_()
    assert torch.equal(net(x, t, cond), net(x, t, cond, tap=Replace("hidden.0")))
    with torch.no_grad():
        net.joins[1].weight[:, net.spec.width :].normal_()  # the last block reads the first
    assert not torch.equal(net(x, t, cond), net(x, t, cond, tap=Replace("hidden.0")))
    assert torch.equal(net(x, t, cond), net(x, t, cond, tap=Replace("hidden.3"))) and out.isfinite().all()


def test_what_does_not_fit_is_refused():
    for changes, said in (({"size": 6}, "divisible by 2 [*] patch, 4"), ({"width": 40}, "4 [*] heads, 16")):
        with pytest.raises(UserError, match=said):
            SiTDown.preset("digits", **changes)
