"""Films of moving digits: cyclic shifts of their first frame, by index, with the truth beside them."""

import torch

from gen.data.moving_digits import MovingDigits


def test_a_film_is_its_first_frame_shifted_around():
    spec = MovingDigits(n=50)
    train, test = spec.open("train"), spec.open("test")
    assert (len(train), len(test)) == (50, 5) and train.fingerprint != test.fingerprint
    assert train.fingerprint == MovingDigits(n=50).open("train").fingerprint
    speeds = set()
    for i in range(20):
        item, ((number, row, column, down, right),) = train[i], spec.path("train", i)
        film, digit = item["x"][0], train.source[number % len(train.source)]
        assert film.shape == (8, 16, 16) and item["y"] == digit["y"]
        for k, frame in enumerate(film):
            assert torch.equal(frame, film[0].roll((k * down, k * right), (0, 1)))
        assert torch.equal(film[0].roll((-row, -column), (0, 1))[:8, :8], digit["x"][0])
        assert film[0].sum() == digit["x"].sum() - (256 - 64)
        speeds |= {down, right}
    assert speeds == {-2, -1, 0, 1, 2}
    assert torch.equal(train[7]["x"], MovingDigits(n=20).open("train")[7]["x"])  # whatever n is


def test_of_two_digits_the_brighter_pixel_is_seen():
    two, spec = MovingDigits(digits=2).open("train"), MovingDigits(digits=2)
    item, (first, second) = two[3], spec.path("train", 3)
    alone = []
    for number, row, column, _, _ in (first, second):
        still = torch.full((16, 16), -1.0)
        still[:8, :8] = two.source[number % len(two.source)]["x"][0]
        alone.append(still.roll((row, column), (0, 1)))
    assert torch.equal(item["x"][0, 0], torch.maximum(*alone)) and first != second
    assert item["y"] == two.source[second[0] % len(two.source)]["y"]
