"""The laws of mixers of tokens, over the whole folder, and each one against what it is a case of."""

import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, glu, normalize, silu

from gen.config.errors import UserError
from gen.config.spec import build, names, spec_of
from gen.models.layers import attention
from gen.models.layers.mixers.chimera import scan
from gen.models.layers.mixers.delta import delta_rule
from gen.models.layers.mixers.gla import GLALayer
from gen.models.layers.mixers.lib.directions import Both
from gen.models.layers.mixers.lib.orders import Reordered, Sorted, scan_order
from gen.models.layers.mixers.mom import MoM, MoMLayer, MoMRouter
from gen.models.layers.mixers.monarch import monarch
from gen.models.layers.mixers.pararnn import derivative, solve, step
from gen.models.layers.mixers.rnn import RNN, RNNLayer, slstm
from gen.models.layers.mixers.routing import RoutingLayer, cluster_loss
from gen.models.layers.mixers.titans import memorise, recall
from gen.models.layers.ssm.s4 import dplr_dense, untruncated

MIXERS = names("models.layers.mixers")
OTHERS = [{"name": "attention", "radius": 1}, {"name": "rnn", "cell": "gru"}, {"name": "rnn", "cell": "slstm"}]
OTHERS += [
    {"name": name, "shared": True} for name in ("mamba2", "gla", "delta", "rnn", "pararnn", "chimera", "s4", "titans")
]
OTHERS += [{"name": "titans", "layers": 1, "chunk": 3}, {"name": "hiss", "chunk": 2, "low": "s4d", "high": "linear"}]
ALL = [*({"name": name} for name in MIXERS), *OTHERS]
SIDE, ROUTED = 4, ("routing", "seqboat")


def made(spec, width=16, side=SIDE):
    """A mixer in float64, whose every part matters."""
    torch.manual_seed(0)
    net = build("models.layers.mixers", spec).build(width, (side, side)).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return net


def tokens(n=2, t=SIDE**2, width=16, seed=1):
    return torch.randn(n, t, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_a_row_alone_is_that_of_a_batch_and_all_weights_learn(spec):
    mixer, h = made(spec), tokens(3)
    out = mixer(h)
    assert out.shape == h.shape
    torch.testing.assert_close(mixer(h[1:2]), out[1:2], rtol=1e-11, atol=1e-11)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in mixer.parameters())
    saved = build("models.layers.mixers", spec)
    assert build("models.layers.mixers", json.loads(json.dumps(spec_of(saved)))) == saved


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_what_a_token_sees(spec):
    """All, or those of its square; and with one set of weights tokens turned round give the output turned round."""
    mixer, h = made(spec), tokens(1).requires_grad_()
    mixer(h)[0, 5].sum().backward()
    seen = h.grad[0].abs().amax(-1) > 0
    if spec.get("radius"):
        near = [abs(i // SIDE - 1) <= 1 and abs(i % SIDE - 1) <= 1 for i in range(SIDE**2)]
        assert seen.tolist() == near
    elif spec["name"] == "chimera":  # the second state, and so the first, lags by one at each step down
        assert seen[[0, 1, 4, 5, 6, 9, 10, 15]].all() and not seen[[2, 3, 8, 12]].any()
    elif spec["name"] in ROUTED:  # those that a router sends to the same place
        assert seen[5] and seen.sum() > 1
    else:
        assert seen.all()
    if spec.get("shared"):
        torch.testing.assert_close(mixer(h.flip(1)), mixer(h).flip(1), rtol=1e-12, atol=1e-12)


def test_cells_are_torchs():
    """LSTM and GRU of one head, values and gradients; sLSTM is its plain exponential gates."""
    for cell, theirs in (("lstm", nn.LSTM), ("gru", nn.GRU)):
        torch.manual_seed(0)
        layer, other = RNNLayer(6, 1, cell).double(), theirs(6, 6, batch_first=True).double()
        n = layer.gates
        order = [0, 1, 2, 3][:n]
        with torch.no_grad():
            other.weight_ih_l0.copy_(layer.x_proj.weight)
            other.bias_ih_l0.copy_(layer.x_proj.bias)
            other.weight_hh_l0.copy_(layer.recurrent[order].squeeze(1).mT.flatten(0, 1))
            other.bias_hh_l0.copy_(layer.bias.flatten())
        h = tokens(2, 7, 6)
        ours = layer.run(layer.x_proj(h).unflatten(-1, (n, 1, -1))).flatten(2)
        expected = other(h)[0]
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
        grads = [torch.autograd.grad(out.square().sum(), w)[0] for out, w in
                 ((ours, layer.x_proj.weight), (expected, other.weight_ih_l0))]  # fmt: skip
        torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)
    x, state, plain = tokens(5, 4, 3), None, (0.0, 0.0)
    for token in x:
        gates = token.unflatten(0, (4, 1)).unsqueeze(0)  # [1, 4, 1, 3]
        state = tuple(torch.full((1, 1, 3), v).double() for v in (0, 0, -math.inf)) if state is None else state
        out, state = slstm(gates, torch.zeros_like(gates), state)
        i, f, z, o = gates.unbind(1)
        plain = (f.sigmoid() * plain[0] + i.exp() * z.tanh(), f.sigmoid() * plain[1] + i.exp())
        torch.testing.assert_close(out, o.sigmoid() * plain[0] / plain[1], rtol=1e-12, atol=1e-12)


def test_newton_solves_the_recurrence():
    """Quadratically; exact in as many iterations as tokens; the gradient is that of the loop."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 12, 3, 5, generator=g, dtype=torch.float64).requires_grad_()
    a = (torch.randn(3, 5, generator=g, dtype=torch.float64) * 0.9).requires_grad_()
    h, loop = torch.zeros(2, 5, dtype=torch.float64), []
    for token in x.unbind(1):
        h = step(h, token, a)
        loop.append(h)
    loop = torch.stack(loop, 1)
    errors = [float((solve(x, a, n) - loop).detach().abs().max()) for n in (1, 2, 3, 4, 12)]
    assert errors[1] < 0.3 * errors[0] and errors[2] < 0.1 * errors[1] and errors[3] < 0.01 * errors[2]
    assert errors[4] < 1e-13
    weights = torch.randn(loop.shape, generator=g, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((out * weights).sum(), (x, a)) for out in (solve(x, a, 12), loop))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
    at = torch.randn(4, 5, dtype=torch.float64).requires_grad_()
    slope = torch.autograd.grad(step(at, x[0, :4], a).sum(), at)[0]
    torch.testing.assert_close(derivative(at, x[0, :4], a), slope, rtol=1e-12, atol=1e-12)


def test_chimera_counts_the_paths_of_a_lattice():
    """An impulse at the top left, with constant coefficients; without crossing, two scans."""
    A1, A2, A3, A4, size = 0.7, 0.3, 0.5, 0.6, 5
    one = torch.ones(1, size, size, 1, dtype=torch.float64)
    impulse = torch.zeros_like(one)
    impulse[0, 0, 0] = 1
    h1, _ = scan(A1 * one, A2 * one, A3 * one, A4 * one, impulse, torch.zeros_like(one))
    for v in range(size):
        for t in range(size):
            paths = [
                math.comb(v - 1, k - 1) * math.comb(t, k) * (A3 * A2) ** k * A4 ** (v - k) * A1 ** (t - k)
                for k in range(1, min(v, t) + 1)
            ]
            expected = A1**t if v == 0 else sum(paths)
            assert float(h1[0, v, t]) == pytest.approx(expected, abs=1e-15)
    h1, h2 = scan(A1 * one, 0 * one, 0 * one, A4 * one, one, one)
    for v in range(size):
        assert float(h1[0, 1, v]) == pytest.approx((1 - A1 ** (v + 1)) / (1 - A1), rel=1e-12)
        assert float(h2[0, v, 1]) == pytest.approx((1 - A4 ** (v + 1)) / (1 - A4), rel=1e-12)


def test_a_memory_of_all_tokens_is_gated_attention_and_of_two_kinds_is_two_of_them():
    h = tokens()
    torch.manual_seed(0)
    layer = MoMLayer(16, MoM(memories=1, chosen=1, share=False)).double()
    other = GLALayer(16, 4, 8, 16).double()
    names_ = {"q_proj": "q_proj", "k_proj": "k_proj.0", "v_proj": "v_proj.0", "gate": "gates.0", "norm": "norm"}
    for ours, theirs in {**names_, "g_proj": "g_proj", "o_proj": "o_proj"}.items():
        other.get_submodule(ours).load_state_dict(layer.get_submodule(theirs).state_dict())
    torch.testing.assert_close(layer(h), other(h), rtol=1e-12, atol=1e-12)
    two = MoMLayer(16, MoM(memories=2, chosen=1, share=False)).double()
    with torch.no_grad():  # the sign of the first channel decides
        two.router.weight.zero_()
        two.router.weight[0, 0], two.router.weight[1, 0] = 1, -1
        for of in (two.k_proj, two.v_proj, two.gates):
            of[1].load_state_dict(of[0].state_dict())
    two.norm = nn.Identity()
    two.g_proj = two.o_proj = nn.Identity()
    for row in h:
        out, kind = two(row[None])[0], row[:, 0] > 0
        for side in (kind, ~kind):  # each as if the others were not there
            torch.testing.assert_close(two(row[side][None])[0], out[side], rtol=1e-11, atol=1e-11)
    router = MoMRouter(3, 3, 2)
    router.weight.data = torch.tensor([3.0, 1.0, 2.0]).diag()
    memories, shares, _ = router(torch.ones(3))
    assert memories.tolist() == [0, 2]
    torch.testing.assert_close(shares, torch.tensor([1 / (1 + math.exp(-1)), 1 / (1 + math.e)]))


def test_the_delta_rule_recalls_what_it_was_told_last():
    """With unit keys and a rate of 1 a key's value is replaced; it is gradient descent on |M k - v|^2 / 2."""
    g = torch.Generator().manual_seed(0)
    k = torch.eye(3, dtype=torch.float64)[[0, 1, 0, 2, 1]][None, :, None]
    v = torch.randn(1, 5, 1, 2, generator=g, dtype=torch.float64)
    one = torch.ones(1, 5, 1, dtype=torch.float64)
    torch.testing.assert_close(delta_rule(k, k, v, one, one), v)
    out = delta_rule(k[:, [0, 1, 2, 3, 0]], k, v, one, one)
    torch.testing.assert_close(out[0, 4], v[0, 2])  # told at the third token
    q, k = (torch.randn(1, 5, 1, 3, generator=g, dtype=torch.float64) for _ in range(2))
    keep, rate = (torch.rand(1, 5, 1, generator=g, dtype=torch.float64) for _ in range(2))
    memory = torch.zeros(2, 3, dtype=torch.float64)
    for t, expected in enumerate(delta_rule(q, k, v, keep, rate)[0, :, 0]):
        memory = (keep[0, t] * memory).requires_grad_()
        loss = (memory @ k[0, t, 0] - v[0, t, 0]).square().sum() / 2
        memory = (memory - rate[0, t] * torch.autograd.grad(loss, memory)[0]).detach()
        torch.testing.assert_close(memory @ q[0, t, 0], expected, rtol=1e-12, atol=1e-12)


def test_hyena_is_a_direct_convolution():
    layer, h = made({"name": "hyena"}), tokens(1, 9)
    v, second = (layer.short(layer.in_proj(h).mT).mT.chunk(3, -1)[i] for i in (2, 1))
    v = v * layer.short(layer.in_proj(h).mT).mT.chunk(3, -1)[0]
    K = layer.long.filter(9)
    direct = torch.stack([sum(K[:, t - s] * v[0, s] for s in range(9)) for t in range(9)])  # K_-1 is the last
    expected = layer.o_proj((direct + layer.long.bias * v[0]) * second[0])
    torch.testing.assert_close(layer(h)[0], expected, rtol=1e-11, atol=1e-11)


def test_one_cluster_is_attention_and_two_kinds_of_tokens_are_two_attentions():
    """The means descend the distance to their nearest vectors, and nothing but they feels it."""
    torch.manual_seed(0)
    plain, h = attention.Attention(16, 4).double(), tokens(2, 10)
    one, two = RoutingLayer(16, 4, 1).double(), RoutingLayer(16, 4, 2).double()
    for layer in (one, two):
        layer.load_state_dict({**plain.state_dict(), "means": layer.means})
    torch.testing.assert_close(one(h), plain(h), rtol=1e-12, atol=1e-12)
    kinds = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1, 1])
    with torch.no_grad():  # a bias of each head's q and k that is one of two directions: the token's first channel says
        two.qkv.weight[:32, 0] = 30 * two.means[:, 0].repeat(2, 1).flatten()
        two.means[:, 1] = -two.means[:, 0]
        plain.qkv.weight[:] = two.qkv.weight
    h[..., 0] = torch.where(kinds == 0, 1.0, -1.0).double()
    out = two(h)
    for kind in (0, 1):
        torch.testing.assert_close(out[:, kinds == kind], plain(h[:, kinds == kind]), rtol=1e-11, atol=1e-11)
    weights = torch.randn(out.shape, dtype=torch.float64)
    with_loss = torch.autograd.grad((out * weights).sum(), tuple(two.parameters()))
    q, k, _ = two.qkv(h).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    x = normalize(torch.cat([q, k], 2), dim=-1)
    nearest = (x[..., None, :] - normalize(two.means, dim=-1)[:, None]).square().sum(-1).amin(-1).mean()
    torch.testing.assert_close(nearest, cluster_loss(x, normalize(two.means, dim=-1)), rtol=1e-12, atol=1e-14)
    alone = torch.autograd.grad(nearest, two.means)[0]
    torch.testing.assert_close(dict(zip(dict(two.named_parameters()), with_loss, strict=True))["means"], alone)
    assert layer(h[:, :3]).shape == (2, 3, 16)  # not a multiple of the clusters


def test_s4_is_its_dense_recurrence_both_ways():
    mixer, h = made({"name": "s4", "state": 4}), tokens(1, 16)

    def outputs(layer, h):
        A, P, B, C, dt = layer.system()
        step, into = dplr_dense(A, P, B, dt)
        out = untruncated(A, P, C, dt, 16)
        x, ys = torch.zeros_like(into), []
        for u in h[0]:
            x = (step @ x[..., None])[..., 0] + into * u[:, None]
            ys.append((out * x).sum(-1).real + layer.D * u)
        return glu(layer.output_linear(gelu(torch.stack(ys))), -1)

    expected = outputs(mixer.ahead, h) + outputs(mixer.back, h.flip(1)).flip(0)
    torch.testing.assert_close(mixer(h)[0], expected, rtol=1e-10, atol=1e-10)


def test_a_memory_that_learns_is_gradient_descent_and_with_one_matrix_the_delta_rule():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 8, 2, 3, generator=g, dtype=torch.float64) for _ in range(3))
    a, e, r = (0.1 + 0.5 * torch.rand(2, 8, 2, generator=g, dtype=torch.float64) for _ in range(3))
    zero = [torch.zeros(2, 3, 3, dtype=torch.float64)]
    expected = delta_rule(q, k, (1 - a)[..., None] * v, 1 - a, r / (1 - a))
    torch.testing.assert_close(memorise(zero, q, k, v, a, 0 * e, r, 1), expected, rtol=1e-12, atol=1e-13)
    start = [torch.randn(2, *shape, generator=g, dtype=torch.float64) for shape in ((5, 3), (4, 5), (3, 4))]
    for chunk in (1, 3):
        ours = memorise(start, q, k, v, a, e, r, chunk)
        for b, head in itertools.product(range(2), range(2)):
            memory = first = [weight[head].clone() for weight in start]
            speed = [torch.zeros_like(weight) for weight in memory]
            for t in range(8):
                first = memory if t % chunk == 0 else first
                leaves = [weight.detach().requires_grad_() for weight in first]
                loss = (recall(leaves, k[b, t, head]) - v[b, t, head]).square().sum() / 2
                slopes = torch.autograd.grad(loss, leaves)
                speed = [e[b, t, head] * s - r[b, t, head] * slope for s, slope in zip(speed, slopes, strict=True)]
                memory = [(1 - a[b, t, head]) * weight + s for weight, s in zip(memory, speed, strict=True)]
                torch.testing.assert_close(ours[b, t, head], recall(memory, q[b, t, head]), rtol=1e-11, atol=1e-11)


def test_two_levels_are_chunks_alone_and_their_means():
    mixer, h = made({"name": "hiss", "chunk": 4, "low": "rnn", "high": "gla"}), tokens()
    parts = [mixer.low(part) for part in h.split(4, 1)]
    above = mixer.up(mixer.high(torch.stack([part.mean(1) for part in parts], 1)))
    expected = torch.cat([part + above[:, i, None] for i, part in enumerate(parts)], 1)
    torch.testing.assert_close(mixer(h), expected, rtol=1e-12, atol=1e-12)
    torch.nn.init.zeros_(mixer.up.weight)
    moved = h.clone()
    moved[:, 5] += 1
    assert torch.equal((mixer(moved) != mixer(h)).any(-1).any(0), torch.arange(16) // 4 == 1)


def test_tokens_awake_attend_to_each_other_where_they_lie():
    """As a mask of all tokens; all awake it is gated attention, and none it is a map of moving averages."""
    for window in (0, 1):
        layer, h = made({"name": "seqboat", "window": window}), tokens(3)
        m = silu(layer.averages(h))
        p = layer.router(m).softmax(-1)[..., 1]
        awake = p > 0.5
        assert 0 < awake.sum() < awake.numel()
        z, r, v = silu(layer.zrv(m)).split([16, 16, 16], -1)
        q, k = z * layer.scale[0] + layer.shift[0], z * layer.scale[1] + layer.shift[1]
        rank = awake.cumsum(1)
        near = (rank[:, :, None] - rank[:, None]).abs() <= (window or 16)
        scores = (q @ k.mT / 4).masked_fill(~(awake[:, None] & near), -torch.inf)
        shares = scores.softmax(-1).nan_to_num() * (p * awake)[..., None]  # a token asleep may see none
        expected = layer.plain(m) + shares @ v * r @ layer.o_proj.weight.T + layer.o_proj.bias * (p * awake)[..., None]
        torch.testing.assert_close(layer(h), expected, rtol=1e-11, atol=1e-11)
        torch.nn.init.zeros_(layer.router.weight)
        layer.router.bias.data = torch.tensor([0.0, -1.0]).double()
        torch.testing.assert_close(layer(h), layer.plain(m))
    future = layer.averages.kernels(16)[1]
    p, lose = layer.averages.take[0, :, :, None].sigmoid(), layer.averages.lose[0, :, :, None].sigmoid()
    state, outs = torch.zeros(16, 2, 1).double(), []
    for token in h[0]:
        state = (1 - p * lose) * state + p * layer.averages.into[0, :, :, None] * token[:, None, None]
        outs.append((state * layer.averages.out[0, :, :, None]).sum((1, 2)) / 2**0.5)
    expected = torch.stack(outs) + layer.averages.skip * h[0]
    for t, s in itertools.combinations(range(16), 2):
        expected[t] += future[:, s - t - 1] * h[0, s]
    torch.testing.assert_close(layer.averages(h[:1])[0], expected, rtol=1e-11, atol=1e-11)


def test_a_monarch_matrix_is_its_dense_one_and_one_of_them_is_fourier_s():
    layer = made("monarch").long
    h, eye = tokens(), torch.eye(16, dtype=torch.float64)[..., None].expand(-1, -1, 16)
    dense = layer(eye)  # [from, to, width], of each head its own
    torch.testing.assert_close(layer(h), torch.einsum("fte,bfe->bte", dense, h), rtol=1e-12, atol=1e-12)
    rows, columns, n = 3, 4, 12
    j, i = torch.arange(rows).double(), torch.arange(columns).double()

    def waves(product, size):
        return torch.polar(torch.ones_like(product), -2 * math.pi * product / size)

    down = waves(i[:, None, None] * j[:, None], n) * waves(j[:, None] * j, rows)  # [columns, rows, rows], twiddled
    across = waves(i[:, None] * i, columns).expand(rows, -1, -1)
    x = torch.randn(n, dtype=torch.complex128)
    y = monarch(x.view(1, rows, columns, 1, 1), down[None], across[None])[0, ..., 0, 0]
    torch.testing.assert_close(y.mT.flatten(), torch.fft.fft(x), rtol=1e-13, atol=1e-13)
    assert made("monarch", 16).long.grid == (4, 4)
    assert [build("models.layers.mixers", "monarch").build(8, (1, n)).long.grid for n in (12, 7)] == [(3, 4), (1, 7)]


def test_orders_read_every_token_once_and_are_undone():
    """Steps of zigzag and of Hilbert's curve are to a neighbour; a learned order follows tokens that are shuffled."""
    for grid in ((4, 4), (3, 5), (1, 6)):
        for order, block in itertools.product(("rows", "alternate", "zigzag", "hilbert"), range(4)):
            read, shape = scan_order(order, grid, block)
            read = torch.arange(math.prod(grid)) if read is None else read
            assert math.prod(shape) == len(read) and sorted(read.tolist()) == list(range(len(read)))
            if order == "zigzag" or (order == "hilbert" and grid == (4, 4)):
                steps = torch.stack([read // grid[1], read % grid[1]]).diff().abs().sum(0)
                assert (steps == 1).all()
    h, mixer = tokens(), made("rnn")
    read = torch.randperm(16)
    torch.testing.assert_close(Reordered(mixer, read)(h)[:, read], mixer(h[:, read]))
    by_score = Sorted(mixer, 16).double()
    assert torch.equal(by_score(h)[:, read], by_score(h[:, read]))
    order = by_score.score(h[0])[:, 0].argsort()
    torch.testing.assert_close(by_score(h[:1])[:, order], mixer(h[:1, order]))
    by_score(h).square().sum().backward()
    assert by_score.score.weight.grad.abs().max() > 0
    for order in ("zigzag", "hilbert", "learned"):
        spec = {"name": "mixer", "mixer": "rnn", "order": order, "size": (4, 6), "width": 8, "depth": 3, "classes": 0}
        net = build("models", spec).build()
        assert net(torch.randn(2, 4, 4, 6), torch.rand(2), {}).shape == (2, 4, 4, 6)


def test_wrong_sizes_are_one_line():
    with pytest.raises(UserError, match=r"Mixed\.width 10"):
        build("models", {"name": "mixer", "mixer": "gla", "width": 10, "size": 8})
    with pytest.raises(UserError, match=r"MoM\.chosen 5; allowed: at most MoM.memories, 4"):
        MoM(chosen=5)
    with pytest.raises(UserError, match=r"HiSS\.chunk 3; allowed: a divisor of the number of tokens, 16"):
        build("models.layers.mixers", {"name": "hiss", "chunk": 3}).build(8, (4, 4))
    assert isinstance(RNN().build(8, (2, 2)), Both)
