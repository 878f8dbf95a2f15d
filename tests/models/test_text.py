"""The text transformer: who sees whom, what is predicted where, and that nothing depends on what it must not."""

import json

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.tap import Chain, FeatureRecorder, Skip
from gen.models.text import Text
from gen.text.contracts import Span

SMALL = {
    "vocab_size": 11,
    "mask_token_id": 10,
    "eos_token_ids": (9,),
    "length": 24,
    "width": 16,
    "depth": 3,
    "heads": 4,
    "kv_heads": 2,
}


def network(dtype=torch.float64, seed=0, **changes):
    """A small network in which everything matters: weights are large, gains are not one, offsets are not zero."""
    torch.manual_seed(seed)
    net = Text(**{**SMALL, **changes}).build()
    with torch.no_grad():
        for weight in net.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.3)
    return net.to(dtype)


def canvas(b=3, n=16, seed=1, vocab=11):
    return torch.randint(0, vocab, (b, n), generator=torch.Generator().manual_seed(seed))


def close(a, b, tol=1e-12):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


class Leaf:
    """A tap that cuts the graph at the embedded tokens, so that gradients by place can be read off."""

    def __call__(self, site, compute, h):
        if site == "trunk":
            h = self.h = h.detach().requires_grad_()
        return compute(h)


def felt(net, tokens, where, **how):
    """By which places [B, N] the logits at places `where` are moved at all, and by how much."""
    leaf = Leaf()
    net(tokens, tap=leaf, **how)[:, where].square().sum().backward()
    return leaf.h.grad.abs().sum(-1)


# Specs


def test_the_spec_builds_an_equal_thing_and_says_its_shape():
    spec = Text(**SMALL)
    assert build("models", json.loads(json.dumps(spec_of(spec)))) == spec
    assert build("models", {"name": "text", "preset": "nano"}) == Text.preset("nano")
    assert spec.shape == (24,) and spec.classes == 0
    net = spec.build()
    assert (net.vocab_size, net.mask_token_id, net.eos_token_ids, net.block_size, net.shift) == (11, 10, (9,), None, 0)
    assert net.device == torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("preset", Text.presets)
def test_every_preset_runs_on_the_meta_device(preset):
    spec = Text.preset(preset)
    with torch.device("meta"):
        assert spec.build()(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, spec.vocab_size)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 3},
        {"kv_heads": 3},
        {"shift": 2},
        {"mask_token_id": 11},
        {"eos_token_ids": (10,)},
        {"eos_token_ids": (-1,)},
        {"block_size": 0},
        {"depth": 0},
        {"heads": 16, "kv_heads": 16},  # a head of width 1 cannot be turned
    ],
    ids=str,
)
def test_a_wrong_spec_is_one_line(wrong):
    with pytest.raises(UserError) as caught:
        Text(**{**SMALL, **wrong})
    assert "\n" not in str(caught.value)


# What is predicted


@pytest.mark.parametrize("block_size", [None, 4])
def test_a_row_does_not_depend_on_its_batch_nor_on_padding(block_size):
    net, tokens, lengths = network(block_size=block_size), canvas(), torch.tensor([16, 9, 5])
    together = net(tokens, lengths)
    for i, n in enumerate(lengths.tolist()):
        close(net(tokens[i : i + 1, :n])[0], together[i, :n])
        longer = torch.cat([tokens[i : i + 1, :n], canvas(1, 7, seed=5)], 1)
        close(net(longer, lengths[i : i + 1])[0, :n], together[i, :n])


def test_logits_at_places_are_those_of_all_places():
    net, tokens = network(shift=1), canvas()
    positions = torch.tensor([[0, 3, 15], [7, 7, 2], [15, 0, 1]])
    close(net(tokens, positions=positions), net(tokens).gather(1, positions[..., None].expand(-1, -1, 11)))


def test_shift_reads_the_place_before_and_place_0_itself():
    plain, shifted, tokens = network(), network(shift=1), canvas()
    expected = plain(tokens)
    close(shifted(tokens), torch.cat([expected[:, :1], expected[:, :-1]], 1))


def test_shared_heads_are_repeated_ones():
    few, many, tokens = network(), network(kv_heads=None), canvas()
    state = few.state_dict()
    for name in [n for n in state if ".attn.k." in n or ".attn.v." in n]:
        state[name] = state[name].unflatten(0, (2, 4)).repeat_interleave(2, 0).flatten(0, 1)
    many.load_state_dict(state)
    close(few(tokens), many(tokens))
    lengths = torch.tensor([16, 9, 5])  # with a mask another kernel is taken
    close(few(tokens, lengths)[1, :9], many(tokens, lengths)[1, :9])


def test_only_distances_matter_to_the_rotary_angles():
    net, tokens, places = network(), canvas(), torch.arange(16)
    close(net(tokens, position_ids=places + 100), net(tokens), 1e-3)  # angles are float32
    assert (net(tokens, position_ids=2 * places) - net(tokens)).abs().max() > 0.1
    each = places + torch.tensor([[0], [3], [9]])
    close(net(tokens, position_ids=each)[1], net(tokens[1:2], position_ids=places + 3)[0])


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"qkv_bias": True}, {"tied": True}, {"hidden": 24}], ids=str)
def test_options_change_the_answer_and_gradients_reach_every_weight(options):
    net, tokens = network(**options), canvas()
    net(tokens).log_softmax(-1)[..., 0].sum().backward()
    assert not [n for n, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert ("head.weight" in net.state_dict()) != net.spec.tied


@pytest.mark.parametrize("block_size", [None, 4])
def test_bfloat16_weights(block_size):
    exact, rounded, tokens = network(block_size=block_size), network(block_size=block_size).bfloat16(), canvas()
    out = rounded(tokens)
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact(tokens)).norm() / exact(tokens).norm() < 0.1
    assert rounded.init_cache(2, 5).keys[0].dtype == torch.bfloat16


def test_it_begins_nearly_uniform():
    torch.manual_seed(0)
    logp = Text(**SMALL).build()(canvas()).log_softmax(-1)
    assert (logp.exp() * 11 - 1).abs().max() < 0.5


# Who sees whom


def test_every_place_feels_every_other_one():
    assert (felt(network(), canvas(), [3]) > 0).all()


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("n", [16, 14])
def test_later_blocks_are_not_felt(shift, n):
    net, tokens = network(block_size=4, shift=shift), canvas(n=n)
    for last in range(n):
        seen_by = max(last - shift, 0)
        end = (seen_by // 4 + 1) * 4
        moved = felt(net, tokens, [last])
        assert (moved[:, :end] > 0).all()
        assert (moved[:, end:] == 0).all()


def test_padding_is_not_felt():
    moved = felt(network(), canvas(), [3], lengths=torch.tensor([16, 9, 5]))
    assert [(row > 0).sum().item() for row in moved] == [16, 9, 5]
    assert (moved[1, :9] > 0).all()


@pytest.mark.parametrize("block_size", [None, 4])
def test_documents_in_one_canvas_are_texts_of_their_own(block_size):
    """Attention depends on distances alone; a document here starts where a block does."""
    net, tokens = network(block_size=block_size), canvas()
    documents = torch.tensor([[0] * 8 + [1] * 8, [0] * 16, [5] * 4 + [2] * 12])
    out = net(tokens, documents=documents)
    close(out[0, :8], net(tokens[:1, :8])[0])
    close(out[0, 8:], net(tokens[:1, 8:])[0], 1e-4)  # angles are float32
    close(out[1], net(tokens[1:2])[0])
    close(out[2, 4:], net(tokens[2:, 4:])[0], 1e-4)


def test_a_long_canvas_is_computed_in_tiles_and_a_short_one_under_one_mask():
    net, tokens = network(block_size=4, length=300), torch.randint(10, (2, 260))
    close(net(tokens)[:, :120], net(tokens[:, :120]))
    documents = (torch.arange(260) >= 120).long().expand(2, -1)
    close(net(tokens, documents=documents)[:, 120:], net(tokens[:, 120:]), 1e-4)


def test_one_pass_over_noisy_and_clean_halves_is_a_pass_for_each_block():
    """BD3-LM's training mask: noisy block b sees itself and the clean blocks before it (arXiv 2503.09573)."""
    net, clean, n, size = network(block_size=4), canvas(vocab=10), 16, 4
    noisy = torch.where(torch.rand(clean.shape) < 0.5, 10, clean)
    both = net(torch.cat([noisy, clean], 1), block_diffusion=size)
    for b in range(n // size):
        lo, hi = b * size, (b + 1) * size
        close(both[:, lo:hi], net(torch.cat([clean[:, :lo], noisy[:, lo:hi]], 1))[:, lo:hi])
    close(both[:, n:], net(clean))


# Memory


def spans(rows, n):
    """Spans that cover the places lo[i] .. hi[i] of each row."""
    lo, hi = torch.tensor(rows).T
    places = lo[:, None] + torch.arange(int((hi - lo).max()))
    return Span(torch.where(places < hi[:, None], places, n), lo, n)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_span_of_everything_is_a_plain_call(block_size, shift, dtype):
    net, tokens, lengths = network(dtype, block_size=block_size, shift=shift), canvas(), torch.tensor([16, 9, 5])
    kv_cache, positions = net.init_cache(3, 16), torch.tensor([[0, 4, 2], [1, 8, 0], [4, 3, 0]])
    got = net(tokens, lengths, positions, kv_cache=kv_cache, span=spans([(0, 16), (0, 9), (0, 5)], 16))
    close(got, net(tokens, lengths, positions), 1e-12 if dtype == torch.float64 else 1e-5)
    assert kv_cache.filled[:, :16].sum(1).tolist() == [16, 9, 5]


def test_blocks_from_memory_are_exact_at_any_depth():
    net, tokens = network(block_size=4, depth=6), canvas()
    kv_cache = net.init_cache(3, 16)
    for lo in range(0, 16, 4):
        positions = torch.arange(lo, lo + 4).expand(3, -1)
        close(
            net(tokens, None, positions, kv_cache=kv_cache, span=spans([(lo, lo + 4)] * 3, 16)),
            net(tokens, positions=positions),
        )


def test_memory_is_what_was_computed_then():
    """A change before the span is not noticed, one in the span is; rows that are taken out keep theirs."""
    net, tokens, positions = network(), canvas(), torch.tensor([[9], [9], [9]])
    kv_cache = net.init_cache(3, 16)
    before = net(tokens, None, positions, kv_cache=kv_cache, span=spans([(0, 16)] * 3, 16))
    changed = tokens.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 10
    rows = torch.tensor([2, 0])
    span = spans([(8, 12)] * 2, 16)
    close(net(changed[rows], None, positions[rows], kv_cache=kv_cache.take(rows), span=span), before[rows])
    changed[:, 8] = (changed[:, 8] + 1) % 10
    again = net(changed[rows], None, positions[rows], kv_cache=kv_cache.take(rows), span=span)
    assert (again - before[rows]).abs().max() > 1e-3


def test_places_that_were_never_computed_are_not_seen():
    net, tokens, positions = network(), canvas(), torch.tensor([[1], [1], [1]])
    got = net(tokens, None, positions, kv_cache=net.init_cache(3, 16), span=spans([(0, 6)] * 3, 16))
    close(got, net(tokens[:, :6], positions=positions))


# Taps and wrong inputs


def test_a_tap_that_only_looks_changes_no_bit():
    net, tokens, record = network(), canvas(), FeatureRecorder()
    assert torch.equal(net(tokens, tap=Chain((record, Skip(())))), net(tokens))
    sites = {"trunk", "final", *(f"{s}.{i}" for s in ("hidden", "blocks") for i in range(3))}
    assert set(record.features) == sites | {f"blocks.{i}.{s}" for s in ("attn", "mlp") for i in range(3)}
    assert record.features["hidden.2"].shape == (3, 16, 16)


def test_without_its_blocks_a_place_sees_its_own_token_only():
    net, tokens = network(), canvas()
    out = net(tokens, tap=Skip(("blocks.*",)))
    close(out[0, 0], net(tokens[:1, :1], tap=Skip(("blocks.*",)))[0, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda net, x: net(x.float()),
        lambda net, x: net(x[0]),
        lambda net, x: net(canvas(n=25)),
        lambda net, x: net(x, documents=torch.ones(3, 15, dtype=torch.int64)),
        lambda net, x: net(x, documents=torch.ones(3, 16)),
        lambda net, x: net(x[:, 1:], block_diffusion=4),
        lambda net, x: net(x, block_diffusion=0),
        lambda net, x: net(x, kv_cache=net.init_cache(3, 16)),
        lambda net, x: net(x, kv_cache=net.init_cache(3, 16), span=spans([(0, 16)] * 3, 16)),
        lambda net, x: net(x, None, x, kv_cache=net.init_cache(3, 15), span=spans([(0, 16)] * 3, 16)),
    ],
)
def test_wrong_input_is_one_line(wrong):
    with pytest.raises(UserError) as caught:
        wrong(network(), canvas())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("block_size", [None, 4])
@pytest.mark.parametrize("n", [16, 400], ids=["short", "tiles"])
def test_the_last_block_computes_queried_positions_alone(block_size, n):
    """Without gradients; the same logits and keys as where it computes all."""
    torch.manual_seed(0)
    net = Text(vocab_size=20, length=400, width=32, depth=2, heads=2, mask_token_id=19, eos_token_ids=(),
               block_size=block_size).build().double()  # fmt: skip
    tokens, lengths = torch.randint(20, (2, n)), torch.tensor([n, n - 3])
    positions = (torch.tensor([[3], [n - 6]]) + torch.arange(6)).clamp(max=n - 1)
    span = Span(torch.arange(n).expand(2, -1), torch.zeros(2, dtype=torch.int64), n)
    sizes: list[int] = []
    net.blocks[1].mlp.register_forward_hook(lambda _module, inputs, _out: sizes.append(inputs[0].shape[1]))
    caches = [net.init_cache(2, n) for _ in range(2)]
    for one, other in (({}, {}), [{"kv_cache": cache, "span": span} for cache in caches]):
        with torch.no_grad():
            few = net(tokens, lengths, positions, **one)
        torch.testing.assert_close(few, net(tokens, lengths, positions, **other), rtol=1e-12, atol=1e-12)
    for kind in ("keys", "values"):  # of the last block at all positions, though it computes six
        few, whole = (torch.stack(getattr(cache, kind)) for cache in caches)
        assert bool(whole[:, :, :, :n].any(-1).all())
        torch.testing.assert_close(few, whole, rtol=1e-12, atol=1e-12)
    assert sizes == [6, n, 6, n]
