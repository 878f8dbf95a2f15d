"""The seam into a network."""

from __future__ import annotations

import torch

from gen.diffusion.tap import Chain, FeatureRecorder, Skip


def network(h, tap=None):
    """Two blocks, as every model writes them."""
    for i in range(2):
        for name, f in (("attn", lambda h: h * 2), ("mlp", lambda h: h + 1)):
            h = h + (f(h) if tap is None else tap(f"blocks.{i}.{name}", f, h))
    return h


def test_record_keeps_what_matches_and_changes_nothing():
    h = torch.randn(3, 4)
    record = FeatureRecorder(("blocks.*.mlp",))
    assert torch.equal(network(h, record), network(h))
    assert list(record.features) == ["blocks.0.mlp", "blocks.1.mlp"]
    assert torch.equal(record.features["blocks.0.mlp"], 3 * h + 1)


def test_record_keeps_gradients():
    h = torch.randn(3, requires_grad=True)
    record = FeatureRecorder()
    network(h, record)
    record.features["blocks.0.attn"].sum().backward()
    assert torch.equal(h.grad, torch.full((3,), 2.0))


def test_two_records_share_nothing():
    first, second = FeatureRecorder(), FeatureRecorder()
    network(torch.ones(1), first)
    assert second.features == {}


def test_skip_leaves_the_residual_stream_alone():
    h = torch.randn(3)
    assert torch.equal(network(h, Skip(("*",))), h)
    only_attn = network(h, Skip(("*.mlp",)))
    torch.testing.assert_close(only_attn, 9 * h)


def test_skip_does_not_compute():
    called = []
    Skip(("a",))("a", lambda h: called.append(1) or h, torch.ones(1))
    assert called == []


def test_chain_calls_the_first_tap_outermost():
    trace = []

    def tracer(name):
        def tap(site, compute, h):
            trace.append(f"{name} in {site}")
            out = compute(h)
            trace.append(f"{name} out")
            return out

        return tap

    out = Chain((tracer("a"), tracer("b")))("s", lambda h: h + 1, torch.zeros(1))
    assert trace == ["a in s", "b in s", "b out", "a out"]
    assert float(out) == 1


def test_an_outer_record_sees_what_an_inner_skip_did():
    h = torch.randn(2)
    record = FeatureRecorder()
    network(h, Chain((record, Skip(("blocks.0.attn",)))))
    assert torch.equal(record.features["blocks.0.attn"], torch.zeros(2))
    record = FeatureRecorder()
    network(h, Chain((Skip(("blocks.0.attn",)), record)))
    assert "blocks.0.attn" not in record.features


def test_an_empty_chain_computes():
    assert torch.equal(network(torch.ones(2), Chain(())), network(torch.ones(2)))
