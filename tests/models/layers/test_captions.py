"""Captions as a condition: padding is nothing, no caption is the null token, and wrong captions are one line."""

from dataclasses import replace

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import find, names
from gen.models.layers.captions import CaptionEmbedding

NAMES = [name for name in names("models") if hasattr(find(name, "models"), "text_width")]


def net_of(name, **changes):
    torch.manual_seed(0)
    net = replace(find(name, "models").preset("digits"), **changes).build().double().eval()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad and weight.std(correction=0) == 0:
                weight.add_(0.1 * torch.randn_like(weight))
    return net


def inputs(net, lengths=(0, 2, 5), total=8):
    n, spec = len(lengths), net.spec
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(n, 1, 8, 8, generator=g).double(), torch.rand(n, generator=g).double()
    cond = {"y": torch.arange(n), "text_mask": torch.arange(total) < torch.tensor(lengths)[:, None]}
    if spec.text_vocab:
        cond["text_ids"] = torch.randint(0, spec.text_vocab, (n, total), generator=g)
    else:
        cond["text"] = torch.randn(n, total, spec.text_width, generator=g).double()
    return x, t, cond


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("own", [False, True], ids=["given", "own"])
@torch.no_grad()
def test_padding_is_nothing_and_no_caption_is_what_null_says(name, own):
    net = net_of(name, **({"text_vocab": 9, "text_depth": 1} if own else {}))
    x, t, cond = inputs(net)
    out, key = net(x, t, cond), "text_ids" if own else "text"
    padded = {**cond, key: cond[key].clone()}
    padded[key][~cond["text_mask"]] = 7
    assert torch.equal(net(x, t, padded), out)
    short = {**cond, key: cond[key][:, :5], "text_mask": cond["text_mask"][:, :5]}
    torch.testing.assert_close(net(x, t, short), out, rtol=1e-10, atol=1e-10)
    null = net.null(cond)
    assert null["y"].tolist() == [10] * 3 and null.keys() == cond.keys() and not null["text_mask"].any()
    bare = {"y": null["y"]}
    torch.testing.assert_close(net(x, t, null), net(x, t, bare), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out[0], net(x, t, {"y": cond["y"]})[0], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(out[1:], net(x, t, {"y": cond["y"]})[1:])
    swapped = {**cond, key: cond[key].flip(1), "text_mask": cond["text_mask"].flip(1)}
    order = (net(x, t, swapped)[1:] - out[1:]).abs().max()
    assert (order > 1e-6) if own else (order < 1e-10)  # embeddings are a set, ids a sentence


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_stored_embedding_is_that_of_no_caption(name):
    net = net_of(name, null_text="stored")
    x, t, cond = inputs(net)
    with pytest.raises(UserError, match="not stored with this network"):
        net.null(cond)
    empty, mask = torch.randn(3, net.spec.text_width), torch.tensor([True, True, False])
    net.store_null_text(empty, mask)
    again = net_of(name, null_text="stored")
    again.load_state_dict(net.state_dict())
    given = {**cond, "text": torch.zeros_like(cond["text"]), "text_mask": torch.zeros_like(cond["text_mask"])}
    given["text"][:, :3], given["text_mask"][:, :3] = empty.double(), mask
    for one in (net, again):
        torch.testing.assert_close(one(x, t, one.null(cond)), net(x, t, {**given, "y": one.null(cond)["y"]}))
    with pytest.raises(UserError, match="the network's is at most"):
        net.store_null_text(torch.randn(3, net.spec.text_width + 1), mask)


@torch.no_grad()
def test_the_pooled_embedding_of_no_caption_is_stored_too():
    """It was zeros, which no encoder gives."""
    net = net_of("mmdit", null_text="stored", pooled_width=5)
    x, t, cond = inputs(net)
    cond["pooled"] = torch.randn(3, 5).double()
    empty, mask, pooled = torch.randn(3, net.spec.text_width), torch.tensor([True, True, False]), torch.randn(5)
    net.store_null_text(empty, mask, pooled)
    again = net_of("mmdit", null_text="stored", pooled_width=5)
    again.load_state_dict(net.state_dict())
    given = {"y": net.null(cond)["y"], "pooled": pooled.double().expand(3, -1)}
    given["text"], given["text_mask"] = empty.double().expand(3, -1, -1), mask.expand(3, -1)
    bare, expected = {"y": given["y"]}, again(x, t, given)
    for none in (again.null(cond), bare, {**given, "text_mask": torch.zeros(3, 3, dtype=torch.bool)}):
        torch.testing.assert_close(again(x, t, none), expected)
    assert not torch.allclose(again(x, t, {**given, "pooled": torch.zeros(3, 5).double()}), expected)
    zeros = net_of("mmdit", pooled_width=5)  # of a learned null token
    torch.testing.assert_close(
        zeros(x, t, zeros.null(cond)), zeros(x, t, {**bare, "pooled": torch.zeros(3, 5).double()})
    )
    assert "captions.null_pooled" not in zeros.state_dict() and "captions.null_pooled" in net.state_dict()
    with pytest.raises(UserError, match=r"pooled embedding of no caption is \[4\]; the network's is \[5\]"):
        net.store_null_text(empty, mask, pooled[:4])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda c: {**c, "text_ids": c["y"][:, None]}, "given: cond..text_ids"),
        (lambda c: {k: v for k, v in c.items() if k != "text_mask"}, "text_mask.. is missing"),
        (lambda c: {**c, "text_mask": c["text_mask"].double()}, "must be torch.bool"),
        (lambda c: {**c, "text": c["text"][..., 1:]}, "at most 16, 16"),
        (lambda c: {**c, "text": c["text"].long()}, "torch.int64"),
        (lambda c: {**c, "text": c["text"].repeat(1, 3, 1)}, "at most 16"),
    ],
)
def test_a_wrong_caption_is_one_line(name, wrong, said):
    net = net_of(name)
    x, t, cond = inputs(net)
    with pytest.raises(UserError, match=said) as caught:
        net(x, t, wrong(cond))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text_vocab": 9}, "give both"),
        ({"text_depth": 1}, "give both"),
        ({"text_vocab": 9, "text_depth": 1, "text_width": 20}, "2 . heads"),
        ({"text_vocab": 9, "text_depth": 1, "null_text": "stored"}, "is of given embeddings"),
        ({"text_length": 0}, "text_length"),
    ],
)
def test_fields_that_do_not_fit_are_refused(name, fields, said):
    with pytest.raises(UserError, match=said):
        find(name, "models").preset("digits", **fields)


def test_the_learned_null_token_gets_a_gradient_from_rows_without_a_caption_alone():
    net = net_of("pixart")
    x, t, cond = inputs(net)
    gradients = []
    for rows in (slice(0, 1), slice(1, 3)):
        net.zero_grad()
        net(x[rows], t[rows], {key: value[rows] for key, value in cond.items()}).square().sum().backward()
        gradients.append(float(net.captions.null_text.grad.abs().max()))
    assert gradients[0] > 0 and gradients[1] == 0
    assert isinstance(net.captions, CaptionEmbedding)
