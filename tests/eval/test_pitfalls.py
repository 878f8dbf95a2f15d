"""What has gone wrong in evaluations elsewhere, one function each."""

import itertools
from types import SimpleNamespace

import torch

from gen.eval.features.dinov2 import DINOv2Net
from gen.eval.features.inception import InceptionClassifier
from gen.eval.features.lib.inception_net import InceptionNet, seeded_weights


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_3_pictures_resized_by_another_rule() -> None:
    picture = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    net = SimpleNamespace(to=lambda device: lambda x, wanted: {"2048": x.mean((2, 3))}, fc=None)
    names = "tf1", "clean", "torchmetrics", "pytorch-fid"
    rules = [InceptionClassifier(net, "digest", name, "2048", 1) for name in names]
    assert len({rule.name for rule in rules}) == 4  # names decide what may share a table
    rows = [rule(picture) for rule in rules]
    assert min(float((a - b).abs().max()) for a, b in itertools.combinations(rows, 2)) > 1e-5


def test_5_spatial_features_of_another_layer() -> None:
    net, x = InceptionNet(seeded_weights()), torch.randn(1, 3, 299, 299)
    inputs = {}
    for name, block in net.blocks.items():
        block.register_forward_hook(lambda block, args, out, name=name: inputs.update({name: args[0]}))
    spatial = net(x, ("spatial", "2048"))["spatial"]
    layers = {name: net.blocks[name].convs["branch1x1"](inputs[name])[:, :7] for name in ("Mixed_6d", "Mixed_6e")}
    right, wrong = (layer.permute(0, 2, 3, 1).flatten(1) for layer in layers.values())
    assert torch.equal(spatial, right) and spatial.shape == (1, 17 * 17 * 7) and float((right - wrong).norm()) > 1
    assert float(spatial[0, 7 * (3 * 17 + 5) + 2]) == float(layers["Mixed_6d"][0, 2, 3, 5])  # positions first


def test_8_positions_of_dinov2_resampled_to_a_size() -> None:
    net = DINOv2Net(64, 1).requires_grad_(False)
    table = draw(37 * 37, 64, 0).float()
    net.pos_embed.copy_(torch.cat([torch.zeros(1, 64), table])[None])
    image = table.T.reshape(1, 64, 37, 37)
    by_factor, by_size = (
        torch.nn.functional.interpolate(image, **how, mode="bicubic").flatten(2).mT
        for how in ({"scale_factor": (16.1 / 37, 16.1 / 37)}, {"size": (16, 16)})
    )
    ours = net.positions(16)[:, 1:]
    torch.testing.assert_close(ours, by_factor)
    assert float((ours - by_size).norm() / ours.norm()) > 0.01


def test_9_average_pools_that_count_their_padding() -> None:
    net, x = InceptionNet(seeded_weights()), {"Mixed_5b": (192, 32), "Mixed_6b": (768, 192), "Mixed_7b": (1280, 192)}
    for name, (width, pooled) in x.items():
        out = net.blocks[name](torch.ones(1, width, 6, 6))[:, -pooled:]
        torch.testing.assert_close(out, out[:, :, :1, :1].expand_as(out))  # the border is as the middle
    rising = torch.arange(6.0).expand(1, 2048, 6, 6)
    last = net.blocks["Mixed_7c"](rising)[:, -192:]
    by_maximum = net.blocks["Mixed_7c"].convs["branch_pool"](torch.nn.functional.max_pool2d(rising, 3, 1, 1))
    torch.testing.assert_close(last, by_maximum)
