import pytest
import torch

from gen.models.layers.lightnet import LightNetMixer, Lrpe, MdTpe, Tpe, bidirectional, causal, lrpe_angles, recurrent
from gen.models.lightnet import LightNet


def qkv(scale=1.0, shape=(2, 3), T=7, d=5, e=4):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*shape, T, n, generator=g, dtype=torch.float64) for n in (d, d, e))
    return q, scale * k, v


def softmax_per_channel(q, k, v, only_before):
    """o_t = sum_s (q_t . softmax_s(k)) v_s, a token at a time, as the identity stands."""
    outs = []
    for t in range(q.shape[-2]):
        seen = slice(0, t + 1) if only_before else slice(None)
        share = k[..., seen, :].softmax(-2)  # each channel over the tokens seen
        outs.append(((q[..., t, None, :] * share).sum(-1, keepdim=True) * v[..., seen, :]).sum(-2))
    return torch.stack(outs, -2)


def gradients(form, q, k, v):
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    out = form(*inputs)
    return out, torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum(), inputs)


@pytest.mark.parametrize("scale", [1.0, 10.0])
@pytest.mark.parametrize("form", [bidirectional, causal, recurrent])
def test_the_recurrence_is_a_softmax_per_channel_and_so_are_its_gradients(form, scale):
    out, grads = gradients(form, *qkv(scale))
    true, true_grads = gradients(lambda *a: softmax_per_channel(*a, only_before=form is not bidirectional), *qkv(scale))
    torch.testing.assert_close(out, true, rtol=0, atol=1e-12)
    for grad, true_grad in zip(grads, true_grads, strict=True):
        torch.testing.assert_close(grad, true_grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("form", [bidirectional, causal, recurrent])
def test_keys_of_any_size_overflow_nowhere_and_only_their_differences_count(form):
    q, k, v = qkv(1000.0)
    out, grads = gradients(form, q.float(), k.float(), v.float())
    assert all(x.isfinite().all() for x in (out, *grads))
    q, k, v = qkv()
    torch.testing.assert_close(form(q, k + 1000 * torch.arange(5.0), v), form(q, k, v), rtol=0, atol=1e-11)


def test_the_last_token_of_the_causal_form_has_seen_what_every_token_of_the_whole_has():
    q, k, v = qkv()
    torch.testing.assert_close(causal(q, k, v)[..., -1, :], bidirectional(q, k, v)[..., -1, :], rtol=0, atol=1e-14)


@pytest.mark.parametrize("dim", [6, 5])
def test_lrpe_knows_relative_positions_only(dim):
    side, heads = 4, 3
    angles = lrpe_angles(side, heads, dim)
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, heads, 1, dim, generator=g, dtype=torch.float64)
    placed = [torch.cat([z * angles.cos(), z * angles.sin()], -1) for z in (x, y)]
    inner = torch.einsum("hsd,htd->hst", *placed).reshape(heads, side, side, side, side)  # rows and columns of both
    row, column, across, down = inner[:, 0, 0, 0, 0], inner[:, 1, 2, 2, 3], inner[:, 1, 2, 1, 3], inner[:, 1, 2, 2, 2]
    torch.testing.assert_close(inner[:, :3, :3, :3, :3], inner[:, 1:, 1:, 1:, 1:], rtol=0, atol=1e-13)
    torch.testing.assert_close(inner[:, :, :3, :, :3], inner[:, :, 1:, :, 1:], rtol=0, atol=1e-13)
    torch.testing.assert_close(row, (x * y).sum((1, 2)), rtol=0, atol=1e-13)
    assert len({round(z[0].item(), 9) for z in (row, column, across, down)}) == 4  # each kind of step is seen


def test_lrpe_layer_has_these_angles_in_blocks_of_the_published_order():
    angles = lrpe_angles(3, 2, 4)
    torch.testing.assert_close(
        angles[1, 5], torch.tensor([1, 1, 2, 2]).double() * 10_000 ** -(torch.tensor([4, 5] * 2) / 4)
    )
    x = torch.randn(2, 2, 9, 4)
    torch.testing.assert_close(Lrpe(3, 2, 4)(x), torch.cat([x * angles.cos(), x * angles.sin()], -1).float())


def test_the_mixer_with_positions_is_a_softmax_weighted_by_cosines_of_differences():
    torch.manual_seed(0)
    mixer = LightNetMixer(12, 2, 3, Lrpe(3, 2, 6)).double()
    h = torch.randn(2, 9, 12, dtype=torch.float64)
    angles = lrpe_angles(3, 2, 6)
    mixer.lrpe.cos, mixer.lrpe.sin = angles.cos(), angles.sin()  # not rounded to float32
    q, k, v = (p(h).reshape(2, 9, 2, 6).transpose(1, 2) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    difference = angles[:, :, None] - angles[:, None]  # [heads, t, s, d]
    weight = torch.nn.functional.silu(q)[:, :, :, None] * k.softmax(2)[:, :, None] * difference.cos()
    read = (weight.sum(-1) @ v).transpose(1, 2).flatten(2)
    normed = read / (read.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    gate = torch.nn.functional.silu(mixer.g_proj(h))
    torch.testing.assert_close(mixer(h), mixer.o_proj(normed * gate), rtol=0, atol=1e-12)


def test_tpe_is_a_decaying_sum_of_predecessors():
    torch.manual_seed(0)
    tpe = Tpe(6, 2).double()
    torch.nn.init.normal_(tpe.q)
    x = torch.randn(3, 5, 6, dtype=torch.float64)
    state, decay, outs = torch.zeros(3, 2, 3, 3, dtype=torch.float64), tpe.log_decay.sigmoid()[:, None, None], []
    for n in range(5):  # linear attention, as its recurrence stands: S = decay S + k v^T, o = S^T q
        state = decay * state + tpe.k.reshape(2, 3, 1) * x[:, n].reshape(3, 2, 1, 3)
        outs.append((tpe.q.reshape(2, 1, 3) @ state).flatten(1))
    torch.testing.assert_close(tpe(x), tpe.o_proj(tpe.norm(torch.stack(outs, 1))), rtol=0, atol=1e-12)


def test_tpe_forgets_nothing_once_its_decay_is_saturated():
    tpe = Tpe(4, 2).double()
    torch.nn.init.constant_(tpe.log_decay, 50.0)
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    torch.testing.assert_close(tpe(x), tpe.o_proj(tpe.norm(x.cumsum(1))), rtol=1e-12, atol=1e-12)


def test_md_tpe_is_one_along_each_row_plus_one_down_each_column():
    torch.manual_seed(0)
    tpe = MdTpe(8, 2, 3)
    x = torch.randn(2, 9, 8)
    grid = x.reshape(2, 3, 3, 8)
    rows = torch.stack([tpe.tpes[0](grid[:, i]) for i in range(3)], 1)
    columns = torch.stack([tpe.tpes[1](grid[:, :, j]) for j in range(3)], 2)
    torch.testing.assert_close(tpe(x), (rows + columns).flatten(1, 2))


def test_without_positions_the_order_of_the_patches_is_not_seen():
    spec = LightNet.preset("digits", tpe=False, lrpe=False, absolute=False)
    torch.manual_seed(0)
    net = spec.build().double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    t, cond = torch.full((2,), 0.5, dtype=torch.float64), {"y": torch.tensor([1, 2])}
    torch.testing.assert_close(net(x.roll(4, 3), t, cond), net(x, t, cond).roll(4, 3), rtol=0, atol=1e-12)
    placed = LightNet.preset("digits", tpe=False, absolute=False).build().double()
    placed.load_state_dict(net.state_dict())
    assert not torch.allclose(placed(x.roll(4, 3), t, cond), placed(x, t, cond).roll(4, 3), rtol=0, atol=1e-3)


def test_state_dict_has_the_public_names_of_a_mixer():
    assert {k: tuple(v.shape) for k, v in LightNetMixer(8, 2, 3, Lrpe(2, 2, 4)).state_dict().items()} == {
        "q_proj.weight": (8, 8),
        "k_proj.weight": (8, 8),
        "v_proj.weight": (8, 8),
        "g_proj.0.weight": (3, 8),
        "g_proj.1.weight": (8, 3),
        "g_norm.weight": (8,),
        "o_proj.weight": (8, 8),
    }
