"""VideoDiT: a fresh one is a DiT frame by frame; then frames see each other, and their order."""

import torch

from gen.models.dit import DiT
from gen.models.video import VideoDiT
from tests.models.test_families import random_net
from tests.models.test_other_shapes import batch

SPEC = VideoDiT.preset("digits", frames=3, size=8, width=16, depth=2, heads=2, classes=3)


def film_and_frames():
    """A film network with the weights of a network of pictures, its blocks of time fresh; and that network."""
    frames = random_net(DiT(size=8, patch=4, channels=1, classes=3, width=16, depth=2, heads=2, time_scale=1000.0))
    film = SPEC.build().double().eval()
    weights = film.state_dict()
    for name, value in frames.state_dict().items():
        block, _, rest = name.removeprefix("blocks.").partition(".")
        weights[f"blocks.{2 * int(block)}.{rest}" if name.startswith("blocks.") else name] = value
    film.load_state_dict(weights)
    return film, frames


@torch.no_grad()
def test_a_fresh_film_model_is_a_dit_frame_by_frame():
    film, frames = film_and_frames()
    x, t, cond = batch(film)
    each = frames(x.transpose(1, 2).flatten(0, 1), t.repeat_interleave(3), {"y": cond["y"].repeat_interleave(3)})
    torch.testing.assert_close(film(x, t, cond), each.unflatten(0, (3, 3)).transpose(1, 2), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_trained_frames_see_each_other_at_the_same_position_first_and_their_order():
    net = random_net(SPEC)
    x, t, cond = batch(net, 1)
    out, other = net(x, t, cond), x.clone()
    other[:, :, 2] += 1
    assert (net(other, t, cond) - out)[:, :, 0].abs().max() > 1e-6
    turned = net(x.flip(2), t, cond).flip(2)
    assert (turned - out).abs().max() > 1e-6  # without an embedding of the frame's number they would be equal
    one = VideoDiT.preset("digits", frames=1, size=8, width=16, depth=1, heads=2).build()
    assert one(torch.randn(2, 1, 1, 8, 8), torch.rand(2), {"y": torch.tensor([0, 1])}).shape == (2, 1, 1, 8, 8)
