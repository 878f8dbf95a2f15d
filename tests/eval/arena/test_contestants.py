"""Which pictures belong together, and what is refused."""

import pytest

from gen.config.errors import UserError
from gen.eval.arena.contestants import contestants


def folder(path, *names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"picture")
    return path


def test_the_same_name_is_the_same_picture(tmp_path) -> None:
    a = folder(tmp_path / "a", "x/0.png", "1.jpg", "only.png", "notes.txt")
    b = folder(tmp_path / "b", "1.webp", "x/0.PNG")
    first, second = contestants([a, b])
    assert (first.name, second.name) == ("a", "b")
    assert first.pictures == {"1": a / "1.jpg", "x/0": a / "x/0.png"}
    assert list(second.pictures) == ["1", "x/0"]


def test_without_common_names_the_position_is(tmp_path) -> None:
    folders = [folder(tmp_path / "a", "a0.png", "a1.png"), folder(tmp_path / "b", "b1.png", "b0.png")]
    first, second = contestants(folders, ["one", "two"])
    assert [p.name for p in first.pictures.values()] == ["a0.png", "a1.png"]
    assert list(first.pictures) == list(second.pictures) and [p.name for p in second.pictures.values()] == [
        "b0.png",
        "b1.png",
    ]


def test_refuses_what_cannot_be_compared(tmp_path) -> None:
    a, b = folder(tmp_path / "a", "0.png"), folder(tmp_path / "b", "1.png", "2.png")
    twice, empty = folder(tmp_path / "twice", "0.png", "0.jpg"), folder(tmp_path / "empty", "notes.txt")
    for folders, names, says in (
        ([a], None, "two or more models"),
        ([a, tmp_path / "c" / ".." / "a"], None, "the name 'a' twice"),
        ([a, b], ["one"], "2 folders and 1 names"),
        ([a, b], ["one", ""], "a name of its own"),
        ([a, b], None, "different numbers of pictures: 1 in"),
        ([a, empty], None, "holds no pictures"),
        ([a, tmp_path / "none"], None, "is no folder"),
        ([a, twice], None, "allowed: one of a name"),
    ):
        (tmp_path / "c").mkdir(exist_ok=True)
        with pytest.raises(UserError) as error:
            contestants(folders, names)
        assert says in str(error.value)
