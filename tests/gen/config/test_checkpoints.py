"""Checkpoints: complete or absent, every byte covered, nothing unpickled."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch

from gen.config import checkpoints as m
from gen.config.errors import NonFinite, UserError
from gen.config.spec import digest

FILES = {
    "net.safetensors": {"w": torch.arange(6.0).reshape(2, 3)},
    "state/net.safetensors": {"w/step": torch.tensor(3.0)},
}


@pytest.fixture
def saved(tmp_path):
    place = tmp_path / "step-0000003"
    m.write(place, FILES, {"step": 3})
    return place


def test_round_trip_is_exact(saved):
    info = m.read(saved)
    assert info["step"] == 3
    for name, tensors in FILES.items():
        for key, value in m.read_tensors(saved, name, info).items():
            assert torch.equal(value, tensors[key])


def test_nothing_is_left_beside_it(saved):
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize("name", ["net.safetensors", "state/net.safetensors", "manifest.json"])
def test_every_flipped_byte_is_found(saved, name):
    content = (saved / name).read_bytes()
    for at in range(0, len(content), max(1, len(content) // 40)):
        (saved / name).write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(UserError, match=r"damaged|format|cannot be read|is no JSON|no UTF-8"):
            m.read(saved)


@pytest.mark.parametrize("name", ["net.safetensors", "manifest.json"])
def test_truncation_and_loss_are_found(saved, name):
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[:-7])
    with pytest.raises(UserError, match=r"damaged|is no JSON"):
        m.read(saved)
    (saved / name).unlink()
    with pytest.raises(UserError, match=r"cannot be read|does not exist"):
        m.read(saved)


def test_newest_passes_over_the_damaged_one_by_name(saved):
    later = saved.with_name("step-0000004")
    m.write(later, FILES, {"step": 4})
    assert m.newest(saved.parent) == later
    (later / "net.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-0000004"):
        assert m.newest(saved.parent) == saved


@pytest.mark.parametrize(
    "text",
    ["{", "[" * 10**5, "9" * 5000, '{"format": NaN}', "[]", "\xff"],
    ids=["cut", "deep", "long", "nan", "list", "latin"],
)
def test_newest_passes_over_a_manifest_that_is_no_json(saved, text):
    later = saved.with_name("step-0000004")
    m.write(later, FILES, {"step": 4})
    (later / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.warns(UserWarning, match="step-0000004"):
        assert m.newest(saved.parent) == saved


def test_a_file_outside_the_checkpoint_is_refused(saved):
    info = json.loads((saved / "manifest.json").read_text())
    info["files"]["../../secret"] = info["files"]["net.safetensors"]
    body = {k: v for k, v in info.items() if k != "sha256"}
    (saved / "manifest.json").write_text(json.dumps(body | {"sha256": digest(body)}))
    with pytest.raises(UserError, match="outside"):
        m.read(saved)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(NonFinite, match="w is not finite"):
        m.write(tmp_path / "step-0000001", {"net.safetensors": {"w": torch.tensor([1.0, float("nan")])}}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_old_one(saved, monkeypatch):
    monkeypatch.setattr(m, "sync", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        m.write(saved, FILES, {"step": 3})
    monkeypatch.undo()
    assert m.read(saved)["step"] == 3
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_failed_rename_leaves_the_old_one(saved, monkeypatch):
    rename = Path.rename

    def refuse(self, target):
        if self.name.startswith(".partial") and "state" not in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"):
        m.write(saved, FILES, {"step": 4})
    monkeypatch.undo()
    assert m.read(saved)["step"] == 3
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_full_disk_is_an_error_of_the_file_system(saved, monkeypatch):
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(m, "write_file", lambda *args: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left on device"):
        m.write(saved, FILES, {"step": 4})
    assert m.read(saved)["step"] == 3
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_prune_keeps_the_newest(tmp_path):
    for step in range(1, 6):
        m.write(tmp_path / m.checkpoint_name(step), FILES, {"step": step})
    m.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000004", "step-0000005"]


def test_nothing_is_ever_unpickled(saved):
    seen = []
    sys.addaudithook(lambda event, args: seen.append(event) if event == "pickle.find_class" else None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = m.read(m.newest(saved.parent))
        m.read_tensors(saved, "net.safetensors", info)
    assert seen == []


def test_prune_never_removes_the_whole_for_the_sake_of_the_damaged(tmp_path):
    for step in (1, 2, 7, 8):
        m.write(tmp_path / m.checkpoint_name(step), FILES, {"step": step})
    for step in (7, 8):
        (tmp_path / m.checkpoint_name(step) / "manifest.json").write_text("{}")
    m.prune(tmp_path, 2)
    assert {p.name for p in tmp_path.iterdir()} == {m.checkpoint_name(step) for step in (1, 2, 7, 8)}
