"""The page and its companions: complete, self-contained, inert, honest about ties and about what cannot be compared."""

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from gen.config.errors import UserError
from gen.eval.estimate import Estimate
from gen.eval.leaderboard import leaderboard, table
from gen.eval.metrics import Column
from gen.eval.metrics.accuracy import Accuracy
from gen.eval.metrics.fid import FID
from gen.eval.metrics.recall import Recall
from gen.eval.ranking import Row, groups
from gen.eval.record import Measurement
from tests.eval.test_record import made, measured

HOSTILE = '<script>alert(1)</script><img src="http://evil.example/x.png">|`a`\n=cmd'


class Page(HTMLParser):
    """What a browser would see: tags, what they load, the cells of every table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "xlink:href") and v]
        assert not [k for k, v in attrs if k.startswith("on")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture
def records():
    return [
        made("teacher", fid=2.0, nfe=8),
        made("one step", fid=25.0, nfe=1),
        made("student", fid=2.2, nfe=1),
        made("fewer", fid=1.0, n=300),
    ]


def test_ranks_by_fid_within_a_group_and_marks_ties(records) -> None:
    found = groups(records)
    assert [[r.record.label for r in g.rows] for g in found] == [["teacher", "student", "one step"], ["fewer"]]
    assert [r.ties for r in found[0].rows] == [(2,), (1,), ()]  # 0.2 apart, with 2 hypot(.1, .1) = 0.28
    assert [r.rank for r in found[0].rows] == [1, 2, 3]


def test_many_ties_are_told_in_few_words() -> None:
    assert Row(made(), 3, (1, 2, 4, 5, 6, 7, 9)).tied("#") == "#1, #2, #4–#7, #9"
    assert Row(made(), 1, ()).tied() == "" and Row(made(), 1, (2, 3, 4)).tied() == "2, 3, 4"


def test_page_is_complete_and_loads_nothing(records, tmp_path) -> None:
    path = leaderboard(records, tmp_path / "deep" / "lb.html", title="Digits & co")
    text = path.read_text()
    page = Page(text)
    assert page.open == [] and page.tags.count("script") == 1 and "link" not in page.tags
    script = text.partition("<script>")[2].partition("</script>")[0]
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in text
    assert page.loads and all(v.startswith("data:image/png;base64,") for v in page.loads)
    assert "http://" not in text and "https://" not in text and "@import" not in text and "url(" not in text
    assert "default-src 'none'" in text and len(text) < 3e6
    assert "<h1>Digits &amp; co</h1>" in text and "prefers-color-scheme: dark" in text and "@media print" in text
    first, second = page.tables
    assert [row[2] for row in first if len(row) > 5] == [
        "Method",
        "Real images1,437 train images: the floor",
        "teacherheun, 4 steps",
        "studentheun, 4 steps",
        "one stepheun, 4 steps",
    ]
    heads = ["NFE", "FID↓", "KID↓", "Accuracy↑", "Nearest", "Images/s", "Params"]
    assert first[0][3:] == heads
    shown = ["8", "2.00±0.10tie with 2", "1.000±0.050", "98.0±1.0%", "1.100±0.010", "1,000", "318K"]
    assert first[2][3:] == shown
    assert first[1][4:] == ["0.500±0.060", "−0.100±0.030", "–", "1.040±0.010", "–", "–"]
    assert first[3] == ["", "gen evaluate runs/teacher --steps 4"]
    assert len(second) == 4 and second[2][2].startswith("fewer")
    assert text.count('<svg class="plot"') == 4 and len(re.findall(r'<img class="strip" alt="[^"]+"', text)) == 6


def test_words_of_a_record_stay_words(tmp_path) -> None:
    record = made(HOSTILE, run=HOSTILE, command=HOSTILE, device=HOSTILE, labels=HOSTILE)
    column = Column("fid", HOSTILE, note=HOSTILE)
    hostile = Measurement(column, {"name": HOSTILE}, Estimate(1.0, 0.1, 9), Estimate(0.5, 0.1, 9))
    reference = replace(record.reference, data={"name": HOSTILE})
    record = replace(record, sampler={"solver": {"name": HOSTILE}}, reference=reference, metrics=(hostile,))
    path = leaderboard([record, made("=1+1", device="other", n=999)], tmp_path)
    page = Page(path.read_text())
    assert page.tags.count("script") == 1 and page.tags.count("img") == 4
    assert all(v.startswith("data:") for v in page.loads)
    rows = list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))
    assert rows[1]["label"] == "'=1+1"
    lines = path.with_suffix(".md").read_text().splitlines()
    outside_code = [re.sub(r"`[^`]*`", "", line) for line in lines if not line.startswith("|")] + lines[4:8]
    assert not [line for line in outside_code if "<" in line]
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert set(cells) == {9, 12}


def test_csv_holds_every_number_in_full(records, tmp_path) -> None:
    path = leaderboard(records, tmp_path / "lb.html").with_suffix(".csv")
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [row["label"] for row in rows] == ["teacher", "student", "one step", "fewer"]
    assert float(rows[1]["fid"]) == 2.2 and float(rows[1]["kid_se"]) == 0.05 and rows[1]["ties"] == "1"
    assert rows[0]["comparability"] == rows[1]["comparability"] != rows[3]["comparability"]
    assert rows[0]["fid_floor"] == "0.5" and rows[0]["params"] == "317700" and rows[0]["accuracy_floor"] == ""


def test_text_and_markdown_say_the_same(records, tmp_path) -> None:
    text = table(records)
    assert text.count("comparability") == 2 and text.count("real images") == 2
    line = next(line for line in text.splitlines() if "student" in line)
    numbers = ["2.20 ± 0.10", "1.100 ± 0.050", "98.0 ± 1.0 %", "1.100 ± 0.010", "8,000", "317,700", "#1"]
    assert " ".join(line.split()) == " ".join(["2 student heun, 4 steps 1", *numbers])
    markdown = leaderboard(records, tmp_path).with_suffix(".md").read_text()
    assert " | ".join(["| 2 | student | heun, 4 steps | 1", *numbers, ""]).rstrip() in markdown
    assert "1. `gen evaluate runs/teacher --steps 4`" in markdown


def test_a_record_with_nothing_but_an_fid_is_shown(tmp_path) -> None:
    bare = made(metrics=[measured(FID(), 3.0, 0.2)], floor=None, speed=None, params=None, strip=None, command=None)
    page = Page(leaderboard(bare, tmp_path / "lb.html").read_text())
    assert page.tables[0][1][4:] == ["3.00±0.20", "–", "–"]
    assert "3.00 ± 0.20" in table(bare)


def test_own_pictures_are_called_as_their_folder() -> None:
    own = replace(made().reference, data={"name": "folder", "path": "/data/cats/"})
    assert table([replace(made(), reference=own)]).startswith("cats, test split (360 images)")
    assert table([made()]).startswith("digits, test split")


def test_a_row_without_a_mark_is_not_in_the_legend(records, tmp_path) -> None:
    others = replace(made("of another tool", run="pictures"), nfe=None, speed=None)
    legend = [
        re.findall(r"</svg>([^<]+)</li>", leaderboard(rows, tmp_path).read_text())
        for rows in (records[:2], [*records[:2], others])
    ]
    assert legend[0] == legend[1] != []


def test_any_column_with_a_direction_ranks(records, tmp_path) -> None:
    rows = [
        replace(r, metrics=(*r.metrics, measured(Recall(), v)))
        for r, v in zip(records[:3], (0.2, 0.6, 0.9), strict=True)
    ]
    (group,) = groups(rows, "recall")
    assert [row.record.label for row in group.rows] == ["student", "one step", "teacher"]
    text = leaderboard(rows, tmp_path, rank_by="recall").read_text()
    assert "Recall, higher is better" in text and "Recall against NFE on digits" in text
    for key, says in (("nearest", "cannot be"), ("recal", "Did you mean 'recall'")):
        with pytest.raises(UserError, match=says.replace("cannot be", "can be ranked by 'nearest'")):
            groups(rows, key)


def test_records_of_the_same_samples_share_a_row() -> None:
    first = made(metrics=[measured(FID(), 2.0)])
    second = made(metrics=[measured(Recall(), 0.5)])
    more = made(metrics=[measured(Accuracy(), 0.8), measured(FID(), 2.0)])  # the same samples, the same number
    again, other = made(metrics=[measured(FID(), 3.0)]), made("other", metrics=[measured(Accuracy(), 0.9)])
    (group,) = groups([first, second, more, again, other])
    keys = [[m.column.key for m in row.record.metrics] for row in group.rows]
    assert keys == [["fid", "recall", "accuracy"], ["fid"], ["accuracy"]]
    assert group.rows[2].ties == ()  # it has no FID to be compared


def test_one_column_holds_one_set_of_options(tmp_path) -> None:
    def recall(label, value, nearest):
        (column,) = Recall.columns
        metric = {"name": "recall", "nearest": nearest}
        return made(label, metrics=[Measurement(column, metric, Estimate(value, 0.01, 1000))])

    records = [recall("a", 0.5, 3), recall("b", 0.7, 5)]
    (group,) = groups(records)
    assert group.headings() == ["Recall nearest=3", "Recall nearest=5"]
    text = leaderboard(records, tmp_path).with_suffix(".csv").read_text()
    cells = next(csv.DictReader(io.StringIO(text)))
    assert (cells["label"], cells["recall"], cells["recall(nearest=5)"]) == ("a", "0.5", "")


def test_needs_no_torch() -> None:
    code = "import sys, gen.eval.leaderboard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_page_of_another_kind_is_refused_and_no_folder_made(records, tmp_path) -> None:
    for name in ("board.csv", "board.htm", "v1.2"):
        with pytest.raises(UserError, match=rf"{name}; give a page .html, .csv and .md .* or a folder"):
            leaderboard(records, tmp_path / name)
    (tmp_path / "v1.2").mkdir()
    assert leaderboard(records, tmp_path / "v1.2") == tmp_path / "v1.2/leaderboard.html"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v1.2"]


def test_writing_again_leaves_three_files(records, tmp_path) -> None:
    for _ in range(2):
        assert leaderboard(records, tmp_path) == tmp_path / "leaderboard.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["leaderboard.csv", "leaderboard.html", "leaderboard.md"]
