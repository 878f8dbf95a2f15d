"""RAE's discriminator: its sizes, its file, its frozen ViT against PyTorch's own blocks, its heads' symmetry."""

import hashlib
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from gen.config.errors import MissingDependency, UserError
from gen.models.discriminators.dino import DinoHeads, head, trunk_of

SMALL = DinoHeads(path="random", blocks=(3, 1, 3), kernel=3, side=16, patch=4, width=8, depth=4, heads=2)


def pictures(n=2, channels=3, side=12):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_sizes_are_the_published_ones():
    with FakeTensorMode():
        net = DinoHeads(path="nowhere.pth").build(3, (256, 256))
        assert net(torch.zeros(2, 3, 256, 256)).shape == (2, 3920)
    assert [sum(p.numel() for p in part.parameters()) for part in net.heads] == [1_477_249] * 5
    assert sum(p.numel() for p in net.parameters()) == 7_386_245


def test_only_heads_are_stored_and_gradients_reach_the_pictures():
    net = SMALL.build(1, (12, 12))
    assert all(name.startswith("heads.") for name in net.state_dict())
    x = pictures(channels=1).requires_grad_()
    logits = net(x)
    assert logits.shape == (2, 3 * 16)
    logits.sum().backward()
    assert x.grad.abs().sum() > 0 and all(p.grad is not None for p in net.parameters())
    assert all(p.grad is None for p in trunk_of(SMALL, torch.empty(0)).parameters())
    net.eval()
    torch.testing.assert_close(net(x)[1:], net(x[1:]), rtol=1e-4, atol=1e-5)  # norms are of each picture
    with pytest.raises(UserError, match="these have 4"):
        SMALL.build(4, (12, 12))


def test_the_frozen_network_is_a_pre_norm_transformer():
    trunk, x = trunk_of(SMALL, torch.empty(0)), pictures(side=16)
    shift = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    h = trunk.patch_embed["proj"](((x + 1) / 2 - shift[0]) / shift[1]).flatten(2).mT
    h = torch.cat([trunk.cls_token.expand(2, -1, -1), h], 1) + trunk.pos_embed
    kept = trunk(x)
    assert sorted(kept) == [1, 3] and len(trunk.blocks) == 3
    for number, ours in enumerate(trunk.blocks, 1):
        theirs = nn.TransformerEncoderLayer(
            8, 2, 32, 0.0, partial(F.gelu, approximate="tanh"), 1e-6, batch_first=True, norm_first=True
        )
        names = {"attn.qkv.": "self_attn.in_proj_", "attn.proj.": "self_attn.out_proj.", "mlp.fc1.": "linear1.",
                 "mlp.fc2.": "linear2."}  # fmt: skip
        state = ours.state_dict()
        for mine, other in names.items():
            state = {name.replace(mine, other): value for name, value in state.items()}
        theirs.load_state_dict(state)
        h = theirs(h)
        if number in kept:
            torch.testing.assert_close(kept[number], h[:, 1:].mT, rtol=1e-4, atol=1e-5)
    half = nn.functional.interpolate(x, (8, 8))
    wide = nn.functional.interpolate(half, (16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(trunk(half)[3], trunk(wide)[3])


def test_a_head_knows_no_first_token_and_no_scale_of_weights():
    net, h = head(8, 3).double(), torch.randn(2, 8, 10, dtype=torch.float64)
    for _ in range(100):
        net(h)  # power iterations
    net.eval()
    torch.testing.assert_close(net(h.roll(3, 2)), net(h).roll(3, 2))
    for convolution in (net[0][0], net[1].fn[0], net[2]):
        largest = torch.linalg.matrix_norm(convolution.weight.flatten(1), 2)
        assert float(largest.detach()) == pytest.approx(1, rel=1e-4)
    y = net[0](h)
    torch.testing.assert_close(net[1](y), (net[1].fn(y) + y) / 2**0.5)


def test_weights_come_from_a_file_of_known_digest(tmp_path):
    trunk, file = trunk_of(SMALL, torch.empty(0)), tmp_path / "dino.pth"
    torch.save({**trunk.state_dict(), "norm.weight": torch.ones(8)}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    spec = replace(SMALL, path=str(file), sha256=digest)
    spec.build(3, (12, 12))
    assert torch.equal(trunk_of(spec, torch.empty(0))(pictures())[3], trunk(pictures())[3])
    for changes, says, kind in (
        ({"sha256": "00"}, f"has sha256 {digest}", UserError),
        ({"patch": 2}, "pos_embed is", UserError),
        ({"depth": 5, "blocks": (5,)}, "blocks.3.* not there", UserError),
        ({"path": ""}, "is no file: give dino_deitsmall8_pretrain.pth", MissingDependency),
        ({"blocks": (5,)}, "allowed: 1 to 4", UserError),
        ({"kernel": 4}, "must be odd", UserError),
    ):
        with pytest.raises(kind, match=says):
            replace(spec, **changes).build(3, (12, 12))
