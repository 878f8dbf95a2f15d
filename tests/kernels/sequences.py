"""What each process of tests/kernels/test_sequence_parallel.py computes, and the inputs that all of them know."""

import pytest
import torch
import torch.distributed as dist

from gen.kernels.attention import Bidirectional, BlockCausal, Causal
from gen.kernels.sequence_parallel import (
    Traffic,
    gather_tokens,
    gather_tokens_bytes,
    lasp2_attention,
    lasp2_attention_bytes,
    local_tokens,
    process_grid,
    ring_attention,
    ring_attention_bytes,
    ulysses_attention,
    ulysses_attention_bytes,
    usp_attention,
    usp_attention_bytes,
)

N, HEADS = 12, 4
RULES = {"everyone": Bidirectional(), "causal": Causal(), "blocks": BlockCausal(4)}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def numbers(*shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def packed(dtype):
    """qkv, and what its output is multiplied by for a loss."""
    return numbers(2, N, 3, HEADS, 8, dtype=dtype), numbers(2, N, HEADS, 8, dtype=dtype, seed=1)


def separate(dtype):
    """q, k, v [B, T, H, d or e], with keys far apart so that no process's normaliser is the others', and the weights.

    Tokens are the second dimension here, as everywhere but in the op.
    """
    q, k = (numbers(2, N, HEADS, 8, dtype=dtype, seed=s) for s in (2, 3))
    v, weights = (numbers(2, N, HEADS, 5, dtype=dtype, seed=s) for s in (4, 5))
    return q, 10 * k, v, weights


def attentions(kind, group):
    """Ulysses under every rule, and the ring where it can: outputs, gradients, bytes counted and predicted."""
    found, count, qkv_weights = {}, dist.get_world_size(group), packed(DTYPES[kind])
    ops = {f"ring {kind}": (ring_attention, ring_attention_bytes, {})}
    if HEADS % count == 0:
        for name, rule in RULES.items():
            ops[f"ulysses {name} {kind}"] = (ulysses_attention, ulysses_attention_bytes, {"rule": rule})
    for name, (op, predicted, options) in ops.items():
        qkv, weights = (local_tokens(x, group) for x in qkv_weights)
        qkv, traffic = qkv.clone().requires_grad_(), Traffic()
        out = op(qkv, **options, group=group, traffic=traffic)
        forward = traffic.sent
        (out * weights).sum().backward()
        found |= {f"{name} out": out, f"{name} dqkv": qkv.grad}
        found[f"{name} sent"] = torch.tensor([forward, traffic.sent])
        found[f"{name} predicted"] = torch.tensor([predicted(qkv, count), predicted(qkv, count, backward=True)])
    return found


def linears(kind, group):
    *inputs, weights = (local_tokens(x, group).transpose(1, 2) for x in separate(DTYPES[kind]))
    q, k, v = (x.clone().requires_grad_() for x in inputs)
    traffic, count = Traffic(), dist.get_world_size(group)
    out = lasp2_attention(q, k, v, group=group, traffic=traffic)
    forward = traffic.sent
    (out * weights).sum().backward()
    predicted = [lasp2_attention_bytes(q, v, count, backward) for backward in (False, True)]
    found = {"out": out, "dq": q.grad, "dk": k.grad, "dv": v.grad}
    found = {f"linear {kind} {name}": value.transpose(1, 2) for name, value in found.items()}
    return found | {f"linear {kind} sent": torch.tensor([forward, traffic.sent]),
                    f"linear {kind} predicted": torch.tensor(predicted)}  # fmt: skip


def gathering(group):
    """h^2 of gathered tokens, weighted otherwise on every process, so that the gradient must come from all."""
    h = local_tokens(numbers(2, N, 3, dtype=torch.float64), group).clone().requires_grad_()
    traffic, count = Traffic(), dist.get_world_size(group)
    whole = gather_tokens(h, group=group, traffic=traffic)
    ((dist.get_rank(group) + 1) * whole.square()).sum().backward()
    predicted = gather_tokens_bytes(h, count, backward=True)
    return {"gather out": whole, "gather grad": h.grad, "gather sent": torch.tensor([traffic.sent, predicted])}


def rotated(group):
    """Both with gains and with angles of all positions, as a network with a rope has them."""
    qkv, weights = packed(torch.float64)
    gain, angles = 1 + numbers(8, dtype=torch.float64, seed=6), numbers(N, 4, dtype=torch.float64, seed=7)
    found = {}
    for name, op in (("ulysses", ulysses_attention), ("ring", ring_attention)):
        if name == "ulysses" and HEADS % dist.get_world_size(group):
            continue
        own = local_tokens(qkv, group).clone().requires_grad_()
        out = op(own, **rotation(gain, angles), group=group)
        (out * local_tokens(weights, group)).sum().backward()
        found |= {f"rotated {name} out": out, f"rotated {name} dqkv": own.grad}
    return found


def rotation(gain, angles):
    both = angles.repeat_interleave(2, -1)
    return {"q_gain": gain, "k_gain": gain.flip(0), "cos": both.cos(), "sin": both.sin()}


def interpreted():
    """The ring by our Triton kernels, which take no smaller heads than these."""
    qkv, weights = (local_tokens(numbers(1, N, *rest, 2, 16, dtype=torch.float32)).clone() for rest in ((3,), ()))
    out = ring_attention(qkv.requires_grad_())
    (out * weights).sum().backward()
    return {"out": out, "dqkv": qkv.grad}


def refusals():
    """Each in one line, which names what would do."""
    qkv = packed(torch.float32)[0]
    count = dist.get_world_size()
    if HEADS % count:
        with pytest.raises(ValueError, match=r"^ulysses_attention: 4 heads do not divide over 3 .* ring_attention$"):
            ulysses_attention(local_tokens(qkv))
    with pytest.raises(ValueError, match=r"^ring_attention: cos and sin go together; cos is missing$"):
        ring_attention(local_tokens(qkv), sin=torch.zeros(N, 8))
    with pytest.raises(ValueError, match=rf"^ring_attention: cos is \[{N // count}, 8\]; it must be \[12, 8\] or"):
        ring_attention(local_tokens(qkv), cos=torch.zeros(N // count, 8), sin=torch.zeros(N // count, 8))
    with pytest.raises(ValueError, match=r"^ring_attention: the rule is Causal\(\); .* ulysses_attention takes any$"):
        ring_attention(local_tokens(qkv), Causal())
    with pytest.raises(ValueError, match=rf"^local_tokens: 11 tokens do not divide over {count} processes$"):
        local_tokens(qkv[:, :11])
    for op, wrong in ((ulysses_attention, qkv[0]), (ring_attention, qkv[:, :, :2])):
        with pytest.raises(ValueError, match="it must be"):
            op(wrong)
    q = separate(torch.float32)[0]
    with pytest.raises(ValueError, match="they must be"):
        lasp2_attention(q, q[:, :2], q)


def grids():
    """USP in every grid of these processes, with gains and angles; and what it refuses."""
    count, found = dist.get_world_size(), {}
    qkv, weights = (local_tokens(x) for x in packed(torch.float64))
    gain, angles = 1 + numbers(8, dtype=torch.float64, seed=6), numbers(N, 4, dtype=torch.float64, seed=7)
    for ulysses in (1, 2, 4):
        own, traffic = qkv.clone().requires_grad_(), Traffic()
        out = usp_attention(own, **rotation(gain, angles), grid=process_grid(ulysses), traffic=traffic)
        forward = traffic.sent
        (out * weights).sum().backward()
        predicted = [usp_attention_bytes(own, ulysses, count // ulysses, backward) for backward in (False, True)]
        found |= {f"{ulysses} out": out, f"{ulysses} dqkv": own.grad}
        found |= {
            f"{ulysses} sent": torch.tensor([forward, traffic.sent]),
            f"{ulysses} predicted": torch.tensor(predicted),
        }
    with pytest.raises(ValueError, match=r"^process_grid: 4 processes do not form rows of 3$"):
        process_grid(3)
    with pytest.raises(ValueError, match=r"^usp_attention: 3 heads do not divide over rows of 2 processes$"):
        usp_attention(qkv[:, :, :, :3], grid=process_grid(2))
    with pytest.raises(ValueError, match=r"^usp_attention: qkv is .*; it must be \[B, N / P, 3, H, d\]$"):
        usp_attention(qkv[0], grid=process_grid(2))
    return found


def everything():
    """The results of all three processes, under "3 ...", and of the group of the last two, under "2 ..."."""
    found = {}
    for count, group in ((3, None), (2, dist.new_group([1, 2]))):
        if group is None or dist.get_rank() > 0:
            for kind in DTYPES:
                found |= {f"{count} {name}": v for name, v in (attentions(kind, group) | linears(kind, group)).items()}
            found |= {f"{count} {name}": v for name, v in (rotated(group) | gathering(group)).items()}
    refusals()
    return found
