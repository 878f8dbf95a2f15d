"""Mixtures of experts against the plain sum over tokens and experts, in float64."""

import pytest
import torch
from torch.nn.functional import silu

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.models.layers.experts import Experts, Mixture
from gen.models.text import Text

WIDTH = 6
KINDS = {
    "softmax": Experts(5, 2, 4),
    "normalised": Experts(5, 3, 4, normalised=True, scale=0.5),
    "one": Experts(4, 1, 3, shared=5, score="sigmoid", normalised=True),
    "llada2": Experts(12, 3, 4, 7, 1, "sigmoid", True, 4, 2, True, 2.5),
    "groups": Experts(8, 4, 4, groups=2, top_groups=1),
}


def mixture(spec, seed=0):
    torch.manual_seed(seed)
    net = Mixture(WIDTH, spec).double()
    with torch.no_grad():
        for weight in (*net.parameters(), *net.buffers()):
            weight.normal_(0, 0.7)
    return net


def plainly(net, spec, h):
    """Token by token, expert by expert."""
    rows = []
    for x in h.flatten(0, 1):
        products = net.router.weight @ x
        scores = products.softmax(0) if spec.score == "softmax" else products.sigmoid()
        ranks = scores.tolist() if net.router.expert_bias is None else (scores + net.router.expert_bias).tolist()
        size = spec.count // spec.groups
        worth = [sum(sorted(ranks[g * size : (g + 1) * size])[-2:]) for g in range(spec.groups)]
        best = sorted(range(spec.groups), key=worth.__getitem__)[-spec.top_groups :]
        allowed = [e for e in range(spec.count) if spec.groups == 1 or e // size in best]
        chosen = sorted(allowed, key=ranks.__getitem__)[-spec.top_k :]
        total = scores[chosen].sum() if spec.normalised and spec.top_k > 1 else 1.0
        out = torch.zeros(WIDTH, dtype=h.dtype)
        for e in chosen:
            w1, w2, w3 = (getattr(net.experts, name)[e] for name in ("w1", "w2", "w3"))
            out = out + spec.scale * scores[e] / total * (w2 @ (silu(w1 @ x) * (w3 @ x)))
        rows.append(out if net.shared is None else out + net.shared(x))
    return torch.stack(rows).view_as(h)


@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_those_of_the_plain_sum(kind):
    spec = KINDS[kind]
    net, h = mixture(spec), torch.randn(3, 7, WIDTH, dtype=torch.float64)
    results = []
    for f in (net, lambda h: plainly(net, spec, h)):
        x = h.clone().requires_grad_()
        out = f(x)
        grads = torch.autograd.grad(out.square().sum(), [x, *net.parameters()], materialize_grads=True)
        results.append([out, *grads])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    assert results[0][0].std() > 0.05


def test_a_token_does_not_depend_on_the_others_and_parts_of_the_experts_add_up():
    spec = KINDS["llada2"]
    net, h = mixture(spec), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(net(h)[1:, 3:4], net(h[1:, 3:4]), rtol=1e-13, atol=1e-13)
    tokens, parts = h.flatten(0, 1), []
    chosen = net.router(tokens)[:2]
    whole = net.experts(tokens, *chosen)
    weights = {name: weight.detach() for name, weight in net.experts.named_parameters()}
    for first in range(0, spec.count, 4):  # 2 of 3 processes may have no token at all
        net.experts.first = first
        for name, weight in weights.items():
            setattr(net.experts, name, torch.nn.Parameter(weight[first : first + 4]))
        parts.append(net.experts(tokens, *chosen))
    torch.testing.assert_close(sum(parts), whole, rtol=1e-13, atol=1e-13)


def test_low_precision_chooses_by_float32_scores():
    net, h = mixture(KINDS["llada2"]), torch.randn(2, 5, WIDTH, dtype=torch.float64)
    out = net.bfloat16()(h.bfloat16())
    assert out.dtype == torch.bfloat16 and net.router(h.bfloat16().flatten(0, 1))[1].dtype == torch.float32


def test_autocast_chooses_the_experts_that_float32_chooses():
    net, h = mixture(KINDS["llada2"]).float(), torch.randn(64, 5, WIDTH)
    tokens = h.flatten(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        chosen, weights, _ = net.router(tokens)
        out = net(h)
    assert weights.dtype == torch.float32 and torch.equal(chosen, net.router(tokens)[0])
    assert (out - net(h)).norm() < 0.05 * net(h).norm()


def test_the_spec_of_a_model_with_experts():
    spec = Text.preset("nano", depth=3, experts=KINDS["llada2"])
    assert build("models", spec_of(spec)) == spec
    assert build("models", {"name": "text", "preset": "nano", "experts": {"count": 4, "top_k": 2, "hidden": 8}})
    net = spec.build()
    assert [isinstance(block.mlp, Mixture) for block in net.blocks] == [False, True, True]
    tokens = torch.randint(0, 258, (2, 9))
    assert net(tokens).std() < 0.3
    with torch.device("meta"):
        mini = Text.preset("LLaDA2-mini").build()
    assert 16.2e9 < sum(p.numel() for p in mini.parameters()) < 16.4e9


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": 9},
        {"groups": 3},
        {"groups": 8, "top_groups": 4},
        {"groups": 4, "top_k": 3},
        {"top_groups": 2},
        {"score": "tanh"},
        {"hidden": 0},
    ],
    ids=str,
)
def test_a_wrong_spec_is_one_line(wrong):
    with pytest.raises(UserError) as caught:
        Experts(**{"count": 8, "top_k": 2, "hidden": 4, **wrong})
    assert "\n" not in str(caught.value)


def test_all_blocks_dense_is_no_mixture():
    with pytest.raises(UserError, match="blocks without experts"):
        Text.preset("nano", experts=Experts(4, 2, 8, dense=2))
