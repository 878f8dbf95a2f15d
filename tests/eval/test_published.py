"""Published rows, votes and what belongs to one row only: shown apart, complete in every format, ranking nothing."""

import csv
import io
import json
from dataclasses import replace

import pytest

from gen.cli import main
from gen.config.errors import UserError
from gen.eval.arena.votes import Vote, VoteList
from gen.eval.estimate import Estimate
from gen.eval.leaderboard import leaderboard, table
from gen.eval.metrics import Column
from gen.eval.metrics.fid import FID
from gen.eval.pages import compact
from gen.eval.published import COLUMN_ORDER, Published
from gen.eval.ranking import ranking
from gen.eval.record import Measurement, Neighbours, PerClass, write_record
from gen.eval.sources import collect, collect_all
from tests.eval.test_leaderboard import HOSTILE, Page
from tests.eval.test_record import PNG, made

LIST = """
[[entry]]
path = "run"

[[published]]
label = "EDM"
source = "arXiv 2206.00364"
values = {fid = 1.97, inception_score = 9.84}
other_values = {rFID = 0.5}
protocol = "edm-cifar10"
nfe = 35
about = "minimum of three seeds"

[[published]]
label = "DiT-XL/2"
source = "https://arxiv.org/abs/2212.09748"
values = {recall = 0.57, fid = 2.27, sfid = 4.6}
protocol = "adm-imagenet256"
params = 675000000
"""


def claim(label="EDM", **changes):
    fields = {"source": "a paper", "values": {"fid": 1.0}, "protocol": "edm-cifar10", **changes}
    return Published(label=label, **fields)


def vote(ballot, *models):
    return Vote(ballot=ballot, picture="0", models=models, ranks=tuple(range(1, len(models) + 1)))


@pytest.fixture
def listed(tmp_path):
    """A list of a run that followed a protocol, a published row of the same one, and one of another."""
    for record in (made("teacher", fid=2.0), made("student", fid=1.9)):
        write_record(replace(record, protocol="edm-cifar10"), tmp_path / "run" / "eval")
    file = tmp_path / "list.toml"
    file.write_text(LIST)
    return file


def test_a_published_row_stands_beside_its_protocol_and_ties_with_nothing(listed) -> None:
    shown = ranking(collect_all(listed))
    (group,), (claims,) = shown.groups, shown.claims
    assert [row.ties for row in group.rows] == [(2,), (1,)] and [p.label for p in group.published] == ["EDM"]
    assert claims.protocol == "adm-imagenet256" and claims.columns == ("fid", "sfid", "recall")
    assert [shown.heading(key) for key in (*claims.columns, "own score")] == ["FID", "sFID", "Recall", "own score"]
    assert len(collect(listed)) == 2
    assert group.best(group.columns[0]) == 1.9  # of those that were measured


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1K"), (317_700, "318K"), (999_600, "1M"), (675e6, "675M"), (7.24e9, "7.24B")],
)
def test_parameters_are_printed_as_papers_do(count, text) -> None:
    assert compact(count) == text


def test_every_format_has_every_published_row(listed, tmp_path) -> None:
    page = leaderboard(listed, tmp_path / "out")
    first, second = Page(page.read_text()).tables
    row = next(row for row in first if len(row) > 2 and "EDM" in row[2])
    assert row[0] == "" and row[2].startswith(
        "EDMarXiv 2206.00364; minimum of three seeds; IS 9.84, rFID 0.5; protocol"
    )
    assert row[3:6] == ["35", "1.97", "–"] and "tie" not in "".join(row)
    assert second[1][1:] == ["–", "2.27", "4.6", "0.57", "675M"]
    assert '<a href="https://arxiv.org/abs/2212.09748" rel="noreferrer">' in page.read_text()
    rows = list(csv.DictReader(io.StringIO(page.with_suffix(".csv").read_text())))
    assert [row["kind"] for row in rows] == ["measured", "measured", "published", "published"]
    assert (rows[2]["fid"], rows[2]["inception_score"], rows[2]["rFID"]) == ("1.97", "9.84", "0.5")
    assert rows[2]["comparability"] == rows[0]["comparability"]
    assert (rows[3]["sfid"], rows[3]["source"], rows[3]["rank"]) == ("4.6", "https://arxiv.org/abs/2212.09748", "")
    assert "| EDM | published: arXiv 2206.00364; IS 9.84, rFID 0.5 | 35 | 1.97 |" in page.with_suffix(".md").read_text()
    assert "published, not measured here: adm-imagenet256" in table(listed)


def test_a_row_can_name_its_table_and_one_that_is_not_there_is_refused() -> None:
    record = made()
    shown = ranking([record, claim(table=record.comparability)])
    assert len(shown.groups[0].published) == 1 and not shown.claims
    assert [c.protocol for c in ranking([record, claim()]).claims] == ["edm-cifar10"]  # the record followed none
    with pytest.raises(UserError, match="EDM: there is no table 'abc'"):
        ranking([record, claim(table="abc")])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"values": {}}, "a source and values"),
        ({"values": {"fid": float("nan")}}, "finite numbers"),
        ({"values": {"IS": 9.8}}, "no column 'IS'. Did you mean 'inception_score'. Allowed: accuracy, .*other_values"),
        ({"values": {"FIDs": 9.8}}, "no column 'FIDs'. Did you mean 'fid'"),
        ({"values": {"accuracy": 98}}, "accuracy = 98; allowed: a share, from 0 to 1"),
        ({"other_values": {"fid": 1.0}}, "other_values has fid, which has a place of its own"),
        ({"other_values": {"params": 1.0}}, "other_values has params"),
        (
            {"protocol": "edm_cifar10"},
            "no protocol 'edm_cifar10'. Did you mean 'edm-cifar10'. Allowed: adm-.*other_protocol",
        ),
        ({"other_protocol": "GenEval"}, "protocol, or other_protocol"),
    ],
)
def test_a_published_name_that_nobody_knows_is_refused_with_the_nearest(wrong, says) -> None:
    with pytest.raises(UserError, match=says):
        claim(**wrong)


def test_what_gen_does_not_know_is_given_as_such() -> None:
    row = claim(protocol="", other_protocol="GenEval, 553 prompts", values={}, other_values={"GenEval": 0.8})
    (claims,) = ranking([row]).claims
    assert claims.protocol == "GenEval, 553 prompts" and claims.columns == ("GenEval",)


def test_columns_stand_in_the_order_of_the_protocol() -> None:
    keys = ("recall", "precision", "own", "fid", "sfid")
    metrics = [Measurement(Column(key, key), {"name": key}, Estimate(1.0, 0.1, 9)) for key in keys]
    (group,) = ranking([made(metrics=metrics, protocol="adm-imagenet256")]).groups
    assert [m.column.key for m in group.columns] == ["fid", "sfid", "precision", "recall", "own"]
    assert group.ranked_by.column.key == "fid"
    (group,) = ranking([made(metrics=metrics)]).groups
    assert [m.column.key for m in group.columns] == list(keys)
    assert all(len(set(order)) == len(order) for order in COLUMN_ORDER.values())


def test_published_words_stay_words(tmp_path) -> None:
    row = claim(
        HOSTILE,
        source="javascript:alert(1)" + HOSTILE,
        about=HOSTILE,
        protocol="",
        other_protocol=HOSTILE,
        other_values={"=1": 2.0},
    )
    page = leaderboard([made(), row, VoteList(HOSTILE, (vote("x", HOSTILE, "b"),))], tmp_path)
    parsed = Page(page.read_text())
    assert parsed.tags.count("script") == 1 and "a" not in parsed.tags and parsed.tags.count("img") == 2
    cells = [cell for line in csv.reader(io.StringIO(page.with_suffix(".csv").read_text())) for cell in line]
    assert not [cell for cell in cells if cell.startswith("=")]


def test_votes_make_a_table_of_their_own(listed, tmp_path, capsys) -> None:
    votes = tmp_path / "votes.jsonl"
    lines = [{"ballot": str(i), "picture": "0", "models": ["a", "b"], "ranks": [1, 2]} for i in range(3)]
    votes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["leaderboard", str(votes), str(listed), "--out", str(tmp_path / "lb.html")]) == 0
    out = capsys.readouterr().out
    assert "arena votes: 3 votes" in out
    rows = list(csv.DictReader(io.StringIO((tmp_path / "lb.csv").read_text())))
    voted = [row for row in rows if row["kind"] == "voted"]
    assert [(row["label"], row["rank"], row["n"]) for row in voted] == [("a", "1", "3"), ("b", "2", "3")]
    assert float(voted[0]["arena_score"]) == float(voted[0]["arena_mu"]) - 3 * float(voted[0]["arena_sigma"])
    assert "Votes of people: votes" in (tmp_path / "lb.html").read_text()
    votes.write_text(votes.read_text().splitlines()[0] + "\n")
    assert main(["leaderboard", str(votes), "--out", str(tmp_path / "alone.html")]) == 0
    assert (
        "arena votes: 1 vote\n" in capsys.readouterr().out
        and "1 vote of people" in (tmp_path / "alone.html").read_text()
    )


def test_a_row_shows_its_classes_and_neighbours(tmp_path) -> None:
    per_class = PerClass(FID().columns[0], ("cat", HOSTILE), (Estimate(3.0, 0.1, 50), None))
    record = made(per_class=(per_class,), neighbours=Neighbours(PNG, (0.5, 0.25), "features of digits_cnn"))
    text = leaderboard([record], tmp_path).read_text()
    page = Page(text)
    assert "FID of each class" in text and "distances 0.5, 0.25" in text and "<span>cat</span> 3.00<i>±0.10</i>" in text
    assert page.tags.count("details") == 2 and page.tags.count("script") == 1 and page.open == []
