"""Operations on shared rows are those on the whole picture, and where values are stale what the paper says."""

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, group_norm, interpolate, pad
from torch.nn.functional import scaled_dot_product_attention as attend

from gen.config.errors import UserError
from gen.kernels.sequence_parallel.collectives import Traffic
from gen.kernels.sequence_parallel.patch_rows import corrected_moments, group_moments, whole_moments
from gen.kernels.sequence_parallel.patches import OneProcess
from gen.models.engines.lib.exchanges import Evaluation
from gen.models.engines.lib.rows import RowOperations

PARTS, ROWS = 4, 16


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_kernel(*size):
    return normal(7, 3, 6, *size), normal(8, 3)


def tokens(h):
    """[B, 6, H, W] as 2 heads of pixels."""
    return h.flatten(2).unflatten(1, (2, 3)).mT


def image(t, h):
    return t.mT.flatten(1, 2).reshape(h.shape)


OPERATIONS = {
    "conv 3": lambda h: conv2d(h, *of_kernel(3, 3), padding=1),
    "conv 5 x 3, dilated": lambda h: conv2d(h, *of_kernel(5, 3), padding=(4, 1), dilation=(2, 1)),
    "conv 3 of stride 2": lambda h: conv2d(h, *of_kernel(3, 3), stride=2, padding=1),
    "conv 4 of stride 2": lambda h: conv2d(h, *of_kernel(4, 4), stride=2, padding=1),
    "conv 2 of stride 2": lambda h: conv2d(h, *of_kernel(2, 2), stride=2),
    "conv 1 of stride 2": lambda h: conv2d(h, *of_kernel(1, 1), stride=2),
    "conv of 'same'": lambda h: conv2d(h, *of_kernel(3, 3), padding="same"),
    "module": nn.Conv2d(6, 2, 3, padding=1).double(),
    "padded below, stride 2": lambda h: conv2d(pad(h, (0, 1, 0, 1)), *of_kernel(3, 3), stride=2),
    "padded around": lambda h: conv2d(pad(h, (1, 1, 1, 1)), *of_kernel(3, 3)),
    "up 4": lambda h: conv_transpose2d(h, normal(7, 6, 1, 4, 4), groups=6, stride=2, padding=1),
    "up 3": lambda h: conv_transpose2d(h, normal(7, 6, 3, 3, 3), stride=2, padding=1, output_padding=1),
    "up 2": lambda h: conv_transpose2d(h, normal(7, 6, 3, 2, 2), stride=2),
    "norm": lambda h: group_norm(h + 3, 3, normal(7, 6), normal(8, 6), 1e-6),
    "norm of pixels": lambda h: group_norm(h.flatten(2), 2).reshape(h.shape),
    "attention": lambda h: image(attend(tokens(h), tokens(h * 2), tokens(-h)), h),
    "mean": lambda h: avg_pool2d(h, 2),
    "repeat": lambda h: interpolate(h, scale_factor=2.0, mode="nearest"),
}


def in_parts(operation, h, stale=None, portion=None, **how):
    """What parts compute of h, with `stale` as the values at the step before."""
    evaluation = Evaluation({}, synchronous=False, keep=True)
    for given in [h] if stale is None else [stale, h]:
        with RowOperations(OneProcess(PARTS, Traffic()), evaluation, portion) as rows:
            out = operation(given)
        assert rows.sites == [""]
    return out


@torch.no_grad()
@pytest.mark.parametrize("name", OPERATIONS)
def test_fresh_values_give_what_the_whole_gives(name):
    h, operation = normal(1, 2, 6, ROWS, 5), OPERATIONS[name]
    fresh = in_parts(operation, h)
    torch.testing.assert_close(fresh, operation(h), rtol=1e-12, atol=1e-12)
    assert torch.equal(in_parts(operation, h, stale=h), fresh)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in OPERATIONS if "norm" not in name])
def test_stale_values_are_those_of_the_step_before(name):
    """Each part is the operation on a picture of its own fresh rows and all others' stale ones."""
    before, h, operation = normal(1, 2, 6, ROWS, 5), normal(2, 2, 6, ROWS, 5), OPERATIONS[name]
    expected = []
    for part in range(PARTS):
        mixed, own = before.clone(), slice(part * ROWS // PARTS, (part + 1) * ROWS // PARTS)
        mixed[:, :, own] = h[:, :, own]
        expected.append(operation(mixed).chunk(PARTS, 2)[part])
    torch.testing.assert_close(in_parts(operation, h, before), torch.cat(expected, 2), rtol=1e-12, atol=1e-12)


def test_stale_moments_are_corrected_as_published_but_for_the_division():
    """First and second moment of all, and what the own ones changed by; a negative variance is the own one."""
    stale, fresh = (normal(seed, 2, 6, ROWS, 5) for seed in (1, 2))
    before, now = (torch.stack([group_moments(p, 3) for p in h.chunk(PARTS, 2)]) for h in (stale, fresh))

    def raw(moments):
        return moments[..., 0, :, :], moments[..., 1, :, :] + moments[..., 0, :, :].square()

    for part in range(PARTS):
        (m, m2), (own, own2), (old, old2) = raw(before), raw(now[part]), raw(before[part])
        mean, second = m.mean(0) + own - old, m2.mean(0) + own2 - old2
        variance = second - mean.square()
        variance = torch.where(variance < 0, now[part, 1], variance)
        torch.testing.assert_close(corrected_moments(before, part, now[part]), torch.stack([mean, variance]))
        assert torch.equal(corrected_moments(before, part, before[part]), whole_moments(before))
    before[:, 1], before[0, 1] = 0.1, 5.0
    own = torch.stack([before[0, 0], torch.full_like(before[0, 1], 0.2)])
    assert torch.equal(corrected_moments(before, 0, own)[1], own[1])


@torch.no_grad()
def test_a_portion_attends_to_the_nearest_rows():
    before, h = normal(1, 2, 6, ROWS, 5), normal(2, 2, 6, ROWS, 5)
    operation, own = OPERATIONS["attention"], ROWS // PARTS
    out = in_parts(operation, h, before, portion=0.5)
    for part in range(PARTS):
        mixed = before.clone()
        mixed[:, :, part * own : (part + 1) * own] = h[:, :, part * own : (part + 1) * own]
        seen = mixed[:, :, max(0, part * own - own // 2) : (part + 1) * own + own // 2]
        queries = h[:, :, part * own : (part + 1) * own]
        expected = image(attend(tokens(queries), tokens(seen * 2), tokens(-seen)), queries)
        torch.testing.assert_close(out[:, :, part * own : (part + 1) * own], expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_sites_keep_what_is_theirs():
    """An operation in a site that is left out changes the number of no other."""
    evaluation, outs = Evaluation({}, synchronous=False, keep=True), []
    for step in range(2):
        h = normal(1, 2, 6, ROWS, 5)
        with RowOperations(OneProcess(PARTS, Traffic()), evaluation, None) as rows:
            if step == 0:
                rows("blocks.0", lambda x: OPERATIONS["conv 3"](5 * x), h)
            outs.append(rows("blocks.1", OPERATIONS["norm"], OPERATIONS["conv 3"](h).tile(1, 2, 1, 1)))
    assert torch.equal(*outs)
    assert len(evaluation.stale) == 3


@torch.no_grad()
@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (lambda h: conv2d(h, *of_kernel(3, 3)), r"kernel 3, stride 1 and padding 0 does not keep rows"),
        (
            lambda h: conv_transpose2d(h, normal(7, 6, 1, 4, 4), groups=6, stride=2),
            "transposed convolution of kernel 4",
        ),
        (lambda h: conv2d(h, *of_kernel(11, 1), padding=(5, 0)), "parts have 4 rows where 5 are needed: take fewer"),
        (lambda h: conv2d(pad(h, (1, 1, 1, 1), mode="circular"), *of_kernel(3, 3)), "by zeros alone, not by circular"),
        (lambda h: interpolate(h, scale_factor=2.0, mode="bilinear"), "repeated, not interpolated"),
        (lambda h: interpolate(h, size=(9, 9)), "repeated, not interpolated"),
        (lambda h: avg_pool2d(h, 8), "a mean over 8 of 4 rows"),
        (lambda h: attend(tokens(h), tokens(h), tokens(h), torch.ones(80, 80).bool()), "masked attention"),
        (lambda h: nn.functional.instance_norm(h), "does not know how instance_norm goes over parts"),
        (lambda h: torch.fft.fftn(h, dim=(2, 3)), "fftn goes over parts"),
    ],
)
def test_what_does_not_go_by_rows_is_refused(operation, said):
    with pytest.raises(UserError, match=said):
        in_parts(operation, normal(1, 2, 6, ROWS, 5))


def test_gradients_are_refused_and_other_attention_is_left_alone():
    h = normal(1, 2, 6, ROWS, 5)
    with pytest.raises(UserError, match="passes no gradients on"):
        in_parts(OPERATIONS["conv 3"], h.requires_grad_())
    with torch.no_grad(), RowOperations(OneProcess(PARTS, Traffic()), Evaluation({}, True, False), None) as rows:
        rows.cross = True
        text = normal(3, 2, 2, 7, 3)
        ours = attend(tokens(h), text, text)
    assert torch.equal(ours, attend(tokens(h), text, text))
