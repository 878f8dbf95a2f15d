"""Reading anybody's JSON, TOML and lines: strict, bounded, and refused in one line that names the source."""

import os

import pytest

from gen.config import reading
from gen.config.errors import UserError
from gen.config.reading import parse_json, read_json, read_lines, read_toml
from gen.data.photographs import Photographs

BAD = {
    "nothing": "",
    "cut": '{"a": 1',
    "two values": "1 2",
    "NaN": '{"a": NaN}',
    "infinity": "[-Infinity]",
    "overflow": "[1e999]",
    "5000 digits": "9" * 5000,
    "400 digits": "[" + "9" * 400 + "]",
    "long fraction": "0." + "1" * 5000,
    "deep lists": "[" * 100_000 + "]" * 100_000,
    "deep objects": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "90 levels": "[" * 90 + "]" * 90,
    "a key twice": '{"a": 1, "b": {"c": 1, "c": 2}}',
    "half a pair": r'{"text": "a\ud83d b"}',
    "half a pair in a key": r'{"\udc00": 1}',
    "control character": '["a\x1bb"]',
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_strict_json_is_refused_in_one_line(text, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(text)
    for read in (lambda: parse_json(text, "it"), lambda: read_json(file)):
        with pytest.raises(UserError, match=r"(it|a\.json) is no JSON") as caught:
            read()
        assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_json_is_read_as_it_is(tmp_path):
    value = {"a": [1, -2.5e-3, None, True, "ä🙂\n"], "b": {"c": 2**64}}
    file = tmp_path / "a.json"
    file.write_bytes(b"\xef\xbb\xbf" + reading.json.dumps(value).encode())  # a byte order mark is no part of it
    assert read_json(file) == value
    assert parse_json('{"clip": -Infinity}', "it", constants=True) == {"clip": float("-inf")}


def test_what_is_no_file_of_a_fit_size_is_refused_before_it_is_read(tmp_path, monkeypatch):
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no space
    os.mkfifo(tmp_path / "pipe.json")
    for name, message in {
        "large.json": "bytes; at most",
        "pipe.json": "no regular file",
        "none.json": "does not exist",
        "n\0l.json": "cannot be read",
        "": "is a folder",
    }.items():
        with pytest.raises(UserError, match=message):
            read_json(tmp_path / name)
    (tmp_path / "latin.json").write_bytes(b'["\xe4"]')
    with pytest.raises(UserError, match=r"latin\.json is no UTF-8 text: .* at byte 2"):
        read_json(tmp_path / "latin.json")


def test_lines_are_read_one_by_one_and_bounded(tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    file.write_bytes("\ufeffone\r\ntwo\x0c\u2028\n\nlast".encode())
    assert list(read_lines(file)) == ["one", "two\x0c\u2028", "", "last"]
    with file.open("wb") as stream:
        stream.write(b"one\n")
        stream.truncate(10**10)
    monkeypatch.setattr(reading, "MAX_LINE", 2**16)
    lines = read_lines(file)
    assert next(lines) == "one"
    with pytest.raises(UserError, match=r"a\.jsonl, line 2 has more than 65,536 bytes"):
        next(lines)
    with pytest.raises(UserError, match="does not exist"):
        next(read_lines(tmp_path / "none"))


@pytest.mark.parametrize("text", ["a = ", "a = " + "[" * 5000, "a = " + "9" * 5000], ids=["cut", "deep", "digits"])
def test_what_is_no_toml_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(UserError, match=r"a\.toml is no TOML") as caught:
        read_toml(tmp_path / "a.toml")
    assert len(str(caught.value)) < 400


def test_a_file_of_an_installed_package_is_found_without_importing_it(monkeypatch):
    assert reading.package_file("json", "decoder.py").is_file()
    assert reading.package_file("json", "none.py") is None and reading.package_file("no_such_package", "a") is None
    monkeypatch.setattr("gen.data.photographs.package_file", lambda package, file: None)
    with pytest.raises(UserError, match="lie in sklearn, which is not installed: pip install"):
        Photographs().open("train")
