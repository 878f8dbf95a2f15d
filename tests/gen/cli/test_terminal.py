"""What names, paths and messages from files hold never steers the terminal."""

import io
import json
import sys
import warnings

import pytest
import torch

import gen
from gen.cli import main
from gen.cli.lib.terminal import Terminal
from gen.config.errors import UserError, printable
from gen.training.log import ProgressBar
from tests.gen.tiny import tiny

EVIL = "\x1b[2Jgen: all is well\r\x9b1m\u202e\x07\x08\x7f\u2028"


def harmless(text):
    return all(c in "\n\t" or c.isprintable() or c == "\u200d" for c in text)


@pytest.mark.parametrize("text", ["plain", "ä 🙂 👩‍🔬 日本 α", "C:\\x\\n", "tab\\t"])
def test_what_is_printable_stays_as_it_is(text):
    assert printable(text) == text


def test_control_characters_become_escapes():
    assert printable(EVIL) == r"\x1b[2Jgen: all is well\r\x9b1m\u202e\x07\x08\x7f\u2028"
    assert printable("a\nb\ud83d") == r"a\nb\ud83d" and printable("a\nb", keep="\n") == "a\nb"
    assert str(UserError(f"{EVIL} is missing")).isprintable()
    assert printable(str(UserError(EVIL))) == printable(EVIL)  # an error within an error


LINES = {
    "sample": ["sample", EVIL],
    "sample a file": ["sample", "run", "--out", f"{EVIL}/a"],
    "train": ["train", f"{EVIL}.json"],
    "unknown verb": [EVIL],
    "unknown key": ["train", "digits", f"--{EVIL}", "1"],
    "import": ["import", EVIL, "--out", "x"],
    "import within": ["import", f"f{EVIL}", "--out", "x"],
    "watch": ["watch", EVIL],
    "leaderboard": ["leaderboard", EVIL],
    "debug": ["sample", EVIL, "--debug"],
    "a spec": ["sample", "run", "--solver", json.dumps({"name": EVIL})],
    "a manifest": ["sample", "manifest"],
    "a tag": ["import", "tags.pt", "--out", "x"],
    "evaluate": ["evaluate", f"run{EVIL}", "-n", "10", "--steps", "1", "--metrics", "kid"],
    "list": ["list", EVIL],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("names")
    gen.train(tiny(steps=1), root / "run", quiet=True)
    (root / "run").rename(root / f"run{EVIL}")
    gen.train(tiny(steps=1), root / "run", quiet=True)
    (root / "manifest").mkdir()
    (root / "manifest/manifest.json").write_text(json.dumps({"format": EVIL}))
    (root / f"f{EVIL}").write_text("no weights")
    torch.save({EVIL: {"a": torch.ones(1)}, "b": EVIL}, root / "tags.pt")
    return root


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_no_verb_prints_them(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    main(line)
    said = capsys.readouterr()
    assert harmless(said.out) and harmless(said.err)
    lines = [one for one in said.err.splitlines() if not one.endswith(" s to go")]
    assert len(lines) <= 2 or "--debug" in line


def test_warnings_and_progress_are_harmless_lines(tmp_path, monkeypatch, capsys):
    import gen.cli.list as verb

    def run(args):
        print(warnings.formatwarning(UserWarning(f"left out {EVIL}"), UserWarning, "a.py", 1), end="", file=sys.stderr)
        ProgressBar(EVIL, 1).advance()
        print(EVIL)
        return 0

    monkeypatch.setattr(verb, "run", run)
    assert main(["list"]) == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[0].startswith(r"gen: left out \x1b[2J") and len(lines) == 2
    assert "\x1b" not in said.out + said.err


def test_a_terminal_is_a_stream_like_any_other(capsys):
    stream = Terminal(sys.stdout)
    stream.write("\r 10% |#| \r")
    stream.write("\r")
    print("a\tb", EVIL, file=stream)
    assert capsys.readouterr().out.startswith("\r 10% |#| \r\ra\tb \\x1b") and not stream.isatty()


@pytest.mark.parametrize("colour", [True, False])
def test_the_bar_of_a_terminal_is_coloured_and_no_name_steers_it(colour, monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", Terminal(screen))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "" if colour else "1")
    bar = ProgressBar(EVIL, 2)
    bar.advance(2, loss=0.5)
    bar.say(EVIL)
    bar.close()
    text = screen.getvalue()
    assert ("\x1b[32m" in text) == colour and r"\x1b[2J" in text and "loss=0.5" in text
    assert r"\x1b[0m" not in text  # a colour that is shown, not set
    assert harmless(text.replace("\x1b[32m", "").replace("\x1b[0m", "").replace("\r", ""))
