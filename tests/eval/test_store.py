"""Rows on disk: whatever is damaged, missing or unlike the rest is not there."""

import json

import pytest
import torch

from gen.config.errors import UserError
from gen.eval.store import RowFile, open_store

ROWS = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))


def filled(folder, name="features", rows=ROWS, chunk=4) -> RowFile:
    file = RowFile(folder, name, len(rows), chunk)
    for i, part in reversed(list(enumerate(rows.split(chunk)))):
        file.write(i, part)
    return file


def test_rows_come_back_in_order_whatever_the_order_of_writing(tmp_path) -> None:
    assert torch.equal(filled(tmp_path).rows(), ROWS)
    labels, pictures = torch.arange(23), torch.randint(0, 256, (23, 1, 2, 2), dtype=torch.uint8)
    for name, rows in (("labels", labels), ("images", pictures), ("nfe", ROWS[:, 0].double())):
        found = filled(tmp_path, name, rows)
        assert torch.equal(found.rows(), rows) and found.rows().dtype == rows.dtype
        assert RowFile(tmp_path, name, 23, 4).missing() == []  # of another process


def test_a_chunk_that_is_damaged_is_missing(tmp_path) -> None:
    filled(tmp_path)
    data, digests = tmp_path / "features.rows", tmp_path / "features.sha256"
    whole = data.read_bytes(), digests.read_bytes()
    for file, content, at in ((data, whole[0], 5 * 4 * 9), (digests, whole[1], 32 * 2 + 3)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert RowFile(tmp_path, "features", 23, 4).missing() == [2]
        with pytest.raises(UserError, match="the features of 1 of 6 chunks are missing, the first at sample 8"):
            RowFile(tmp_path, "features", 23, 4).rows()
        file.write_bytes(content)
    data.write_bytes(whole[0][:300])  # cut short
    assert RowFile(tmp_path, "features", 23, 4).missing() == [3, 4, 5]
    assert torch.equal(filled(tmp_path).rows(), ROWS)  # and written again


def test_what_is_unlike_the_rest_is_refused(tmp_path) -> None:
    file = filled(tmp_path)
    with pytest.raises(UserError, match=r"features of different shapes: \[23, 5\], \[23, 6\]"):
        file.write(0, torch.zeros(4, 6))
    with pytest.raises(UserError, match="the features of sample 9 are not finite"):
        file.write(2, torch.tensor([[0.0], [torch.nan], [0.0], [0.0]]).expand(4, 5))
    with pytest.raises(UserError, match="a are bool; allowed: float32"):
        RowFile(tmp_path, "a", 4, 4).write(0, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(UserError, match="are missing"):
        RowFile(tmp_path, "none", 4, 4).rows()


def test_a_store_is_one_set_of_pictures_and_one_extractor(tmp_path) -> None:
    one = open_store(tmp_path, {"pictures": "ab", "n": 3})
    assert one == open_store(tmp_path, {"n": 3, "pictures": "ab"}) != open_store(tmp_path, {"pictures": "ac", "n": 3})
    (one / "identity.json").write_text(json.dumps({"pictures": "other"}))
    with pytest.raises(UserError, match="holds the features of something else"):
        open_store(tmp_path, {"pictures": "ab", "n": 3})
