"""DDiT: the published numbers of parameters; a Predictor, with and without a KV cache; blocks that are the identity."""

import pytest
import torch

from gen.models.ddit import DDiT
from gen.models.text import TextNet
from gen.text.contracts import Span

COUNTED = {"MDLM-OWT": 169_627_218, "MDLM-LM1B": 139_292_986}  # of the modules that mdlm's models/dit.py builds


def random_net(**changes):
    torch.manual_seed(0)
    net = DDiT.preset("nano", **changes).build().double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return net


@pytest.mark.parametrize("preset", COUNTED)
def test_parameters_are_the_published_ones(preset):
    with torch.device("meta"):
        net = DDiT.preset(preset).build()
    assert sum(p.numel() for p in net.parameters()) == COUNTED[preset]


def test_a_fresh_one_predicts_nothing_and_its_blocks_are_the_identity():
    net = DDiT.preset("nano").build()
    tokens = torch.randint(0, 256, (2, 9))
    assert not net(tokens).any() and isinstance(net, TextNet)
    with torch.no_grad():
        net.head_weight.normal_()
    expected = torch.nn.functional.layer_norm(net.embed(tokens), (64,)) @ net.head_weight.T
    torch.testing.assert_close(net(tokens), expected)


@pytest.mark.parametrize("changes", [{}, {"tied": True, "kv_heads": 2, "qk_norm": True, "qkv_bias": True, "shift": 1}])
def test_padding_positions_and_every_option_as_of_text(changes):
    net, tokens = random_net(**changes), torch.randint(0, 256, (2, 12))
    logits = net(tokens)
    assert logits.shape == (2, 12, 258) and not torch.equal(logits, random_net(**changes, hidden=96)(tokens))
    torch.testing.assert_close(net(tokens, torch.tensor([9, 9]))[:, :9], net(tokens[:, :9]))
    wanted = torch.tensor([[3, 7], [0, 11]])
    torch.testing.assert_close(net(tokens, positions=wanted), logits.gather(1, wanted[..., None].expand(-1, -1, 258)))


def test_blocks_of_a_cached_canvas_are_those_of_the_whole():
    net, tokens = random_net(block_size=4), torch.randint(0, 256, (2, 12))
    logits, cache = net(tokens), net.init_cache(2, 12)
    for start in range(0, 12, 4):
        positions = torch.arange(start, start + 4).expand(2, 4)
        span = Span(positions, positions[:, 0], start + 4)
        found = net(tokens, positions=positions, kv_cache=cache, span=span)
        torch.testing.assert_close(found, logits[:, start : start + 4])
