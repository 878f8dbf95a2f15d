"""The comparison with the field's tools, without them: what it computes itself, and what it says to install."""

import pytest
import torch

import scripts.compare_tools as compare


def test_it_names_what_is_missing_and_how_to_install_it(monkeypatch) -> None:
    monkeypatch.setattr(compare, "PACKAGES", {"torch": "torch", "no_such_tool": "no-such-tool==1.0"})
    with pytest.raises(SystemExit) as stop:
        compare.check_packages()
    assert str(stop.value) == "missing: no-such-tool==1.0\npip install --no-deps --target FOLDER no-such-tool==1.0"


def test_a_line_says_how_far_two_programs_are_apart(capsys) -> None:
    x, y = compare.seeded_rows(120, 24)
    (line,) = compare.lines(["CMMD"], "numpy", compare.ours("cmmd", x, y), lambda: [compare.cmmd(x, y)], 1)
    assert line.difference < 1e-9 and line.ratio > 0 and "CMMD  numpy" in capsys.readouterr().out
    own, theirs = compare.ours("inception_score", 2 * x), lambda: [2 * compare.adm_score(2 * x)]
    (line,) = compare.lines(["IS"], "wrong", own, theirs, 0)
    assert line.difference == pytest.approx(0.5) and line.cells()[-1] == ""
    a, b = compare.seeded_pictures(3)
    assert a.shape == b.shape == (3, 3, 32, 32) and a.dtype == torch.uint8 and int(b.min()) >= 64
