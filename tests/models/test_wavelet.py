import pytest
import torch

from gen.config.errors import UserError
from gen.models.layers.wavelet import dwt, idwt, inverse_laplacian, inverse_packet, laplacian, packet, packet_matrix


def image(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_every_transform_is_undone(levels):
    x = image(2, 3, 16, 8)
    for back in (
        idwt(*dwt(x, levels)),
        inverse_packet(packet(x, levels, 0.3), levels, 0.3),
        inverse_laplacian(laplacian(x, levels)),
    ):
        torch.testing.assert_close(back, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_wavelets_keep_the_energy_and_inner_products(levels):
    x, y = image(2, 1, 3, 16, 16)
    torch.testing.assert_close((packet(x, levels) * packet(y, levels)).sum(), (x * y).sum(), rtol=1e-12, atol=0)
    means, details = dwt(x, levels)
    energy = means.square().sum() + sum(d.square().sum() for d in details)
    torch.testing.assert_close(energy, x.square().sum(), rtol=1e-12, atol=0)
    matrix = packet_matrix(levels)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(4**levels, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("levels", [1, 2])
def test_a_constant_is_in_the_first_band_alone(levels):
    x = image(1, 2, 1, 1).expand(1, 2, 8, 8)
    means, details = dwt(x, levels)
    torch.testing.assert_close(means, 2**levels * x[..., : 8 // 2**levels, : 8 // 2**levels], rtol=1e-13, atol=0)
    assert all(d.abs().max() < 1e-14 for d in details)
    bands = packet(x, levels, 2.0**-levels)
    torch.testing.assert_close(bands[:, :, 0], x[..., : 8 // 2**levels, : 8 // 2**levels], rtol=1e-13, atol=0)
    assert bands[:, :, 1:].abs().max() < 1e-14
    coarse, *rest = laplacian(x, levels)
    torch.testing.assert_close(coarse, x[..., : 8 // 2**levels, : 8 // 2**levels], rtol=1e-13, atol=0)
    assert all(r.abs().max() < 1e-14 for r in rest)


def test_one_step_by_hand():
    a, b, c, d = 1.0, 2.0, 4.0, 8.0
    means, (detail,) = dwt(torch.tensor([[[[a, b], [c, d]]]], dtype=torch.float64))
    assert means.item() == (a + b + c + d) / 2
    assert detail.flatten().tolist() == [(a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]


@pytest.mark.parametrize("levels", [2, 3])
def test_a_packet_is_the_step_repeated_on_every_band(levels):
    x = image(2, 3, 16, 16)
    bands = x[:, :, None]  # [B, C, bands, H, W]
    for _ in range(levels):
        bands = torch.stack([packet(band, 1) for band in bands.unbind(2)], 2).flatten(2, 3)
    torch.testing.assert_close(packet(x, levels), bands, rtol=0, atol=1e-13)


def test_gradients_pass_back_and_forth():
    x = image(1, 2, 8, 8).requires_grad_()
    (grad,) = torch.autograd.grad((packet(x, 2) * packet(x.detach(), 2)).sum(), x)
    torch.testing.assert_close(grad, x.detach(), rtol=0, atol=1e-13)


def test_laplacian_parts_are_what_the_coarser_image_lacks():
    x = image(1, 1, 8, 8)
    coarse, middle, fine = laplacian(x, 2)
    assert [part.shape[-1] for part in (coarse, middle, fine)] == [2, 4, 8]
    half = x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    torch.testing.assert_close(coarse, half.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5)), rtol=0, atol=1e-14)
    zero = torch.zeros_like(coarse)
    torch.testing.assert_close(
        inverse_laplacian([coarse, middle, fine]),
        inverse_laplacian([coarse, 0 * middle, 0 * fine]) + inverse_laplacian([zero, middle, 0 * fine]) + fine,
        rtol=0,
        atol=1e-13,
    )


def test_a_size_that_does_not_divide_is_one_line():
    for transform in (dwt, packet, laplacian):
        with pytest.raises(UserError, match="2 levels need a height and width divisible by 4; got 6 x 8"):
            transform(image(1, 1, 6, 8), 2)
