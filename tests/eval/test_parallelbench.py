"""ParallelBench: questions drawn exactly as the published ones, and its metrics on cases worked out by hand."""

import hashlib
import json
import re
from itertools import product

import pytest

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.data.lists import Lists
from gen.eval.parallelbench.latin_square import LatinSquare
from gen.eval.parallelbench.lib.copy import fold, names_in, prompt_in
from gen.eval.parallelbench.lib.names import FIRST, LAST
from gen.eval.parallelbench.lib.rules import TASKS, expected, parse, solves, square, text_of
from gen.eval.parallelbench.lib.sample import seed_of
from gen.eval.parallelbench.lists import ListTask
from gen.eval.parallelbench.sudoku import Sudoku, solutions
from gen.eval.parallelbench.waiting_line import WaitingLine

# Of the published files: the seed, and a hash of every question's names, new name, place, example and worked example,
# names by their number in the product of first and last ones.
PUBLISHED = {
    "copy": (31940, "c8135531001f45ed", "8fe4a75a6e23d020"),
    "sort": (48898, "5183f2d73809e5ee", "f468a40473372884"),
    "reverse": (31383, "8b1f1e4788a647c2", "c8f017f506a0edc3"),
    "shuffle": (30142, "57de6007b7fb03f0", "2a7fdc46180435c8"),
    "insert_index": (49875, "5abc7daf7285da2a", "3babb26c7deca4e0"),
    "insert_random": (25751, "bd58c378e45325ab", "55cb843c42b0febb"),
    "remove_index": (46066, "fe5278f94eb87034", "d1626787fee736b6"),
    "remove_random": (47444, "4e17ad0ca2fbff37", "05cd3a073ad4e6bd"),
    "replace_index": (32235, "36cf25dab6e23ac4", "be57605703690a75"),
    "replace_random": (49003, "a907515f374cbc4f", "90cb53dfaff2318b"),
}
NUMBER = {f"{a} {b}": i for i, (a, b) in enumerate(product(FIRST, LAST))}


def digest(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def numbers(text):
    return [NUMBER[name] for name in re.findall('"([^"]* [^"]*)"', text) if name in NUMBER]


def drawn(bench):
    """What the hash of a set of questions is taken of."""
    rows = []
    for q in bench.questions:
        shown = numbers(q.messages[0]["content"])
        before = shown[:-1] if bench.task.startswith(("insert", "replace")) else shown  # without the new name
        answer = [] if bench.task == "sort" else numbers(q.example)
        rows.append([[NUMBER[name] for name in q.items], NUMBER.get(q.word), q.index, answer, before])
    return rows


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_drawn_as_the_published_ones(task):
    seed, short, _ = PUBLISHED[task]
    bench = WaitingLine(task)
    assert bench.seed == seed
    assert digest(drawn(bench)) == short
    assert [len(q.items) for q in bench.questions] == [3] * 25 + [4] * 25 + [5] * 25 + [6] * 25


@pytest.mark.parametrize("task", ["copy", "insert_random"])
def test_the_long_set_is_drawn_as_the_published_one(task):
    assert digest(drawn(WaitingLine(task, shortest=15, longest=15))) == PUBLISHED[task][2]


def test_the_latin_squares_are_the_published_ones():
    bench = LatinSquare()
    rows = [[list(q.items), q.example, q.messages[1]["content"]] for q in bench.questions]
    assert bench.seed == 51291
    assert digest(rows) == "0337d04409e18e87"
    assert all(bench.score(q, q.example) == 1 for q in bench.questions)


def test_there_are_as_many_names_as_the_seeds_were_drawn_for():
    assert (len(set(FIRST)), len(set(LAST))) == (len(FIRST), len(LAST) - 2) == (92, 190)
    assert seed_of("insert_index_list") == 49875


@pytest.mark.parametrize("task", TASKS)
def test_every_example_solves_its_question(task):
    bench = WaitingLine(task, n=40)
    for q in bench.prompts("test", 40):
        assert bench.score(q, q.example) == 1
        assert bench.score(q, "no idea") == 0
        assert task == "copy" or bench.score(q, text_of(q.items)) == (
            task == "sort" and list(q.items) == sorted(q.items)
        )
        assert len(q.messages) == 3
        assert q.text.count("\n") > 5
        assert (q.index is None) == (not task.endswith("_index"))


ABC = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("task", "reply", "right"),
    [
        ("copy", "abc", True),
        ("copy", "acb", False),
        ("sort", "abc", True),
        ("sort", "cab", False),
        ("reverse", "cba", True),
        ("reverse", "abc", False),
        ("shuffle", "acb", True),
        ("shuffle", "abc", False),
        ("shuffle", "aab", False),
        ("shuffle", "abcc", False),
        ("insert_index", "awbc", True),
        ("insert_index", "wabc", False),
        ("insert_random", "abwc", True),
        ("insert_random", "abcw", True),
        ("insert_random", "acwb", False),
        ("insert_random", "abc", False),
        ("insert_random", "wabwc", False),
        ("remove_index", "ac", True),
        ("remove_index", "ab", False),
        ("remove_random", "bc", True),
        ("remove_random", "cb", False),
        ("remove_random", "aa", False),
        ("remove_random", "abc", False),
        ("remove_random", "a", False),
        ("replace_index", "awc", True),
        ("replace_index", "abw", False),
        ("replace_random", "abw", True),
        ("replace_random", "wbc", True),
        ("replace_random", "wwc", False),
        ("replace_random", "wab", False),
        ("replace_random", "abc", False),
        ("replace_random", "wbcd", False),
    ],
)
def test_rules_accept_and_reject(task, reply, right):
    index = 1 if task.endswith("_index") else None
    assert solves(task, ABC, list(reply), "w", index) is right
    ids = {letter: i for i, letter in enumerate("abcdw")}  # the same of ids
    assert solves(task, [ids[v] for v in ABC], [ids[v] for v in reply], ids["w"], index) is right


def test_what_is_expected_is_one_answer_or_none():
    assert expected("replace_index", ABC, "w", 2) == ["a", "b", "w"]
    assert expected("remove_index", ABC, None, 0) == ["b", "c"]
    assert expected("insert_index", ABC, "w", 3) == ["a", "b", "c", "w"]
    assert [expected(task, ABC, "w") for task in TASKS if "random" in task or task == "shuffle"] == [None] * 4


@pytest.mark.parametrize(
    ("text", "loose", "strict"),
    [
        ('["Ada Moss", "Bo Lund"]', ["Ada Moss", "Bo Lund"], ["Ada Moss", "Bo Lund"]),
        ('Here: ["x"] or rather ["a", "b"]. Done', ["a", "b"], ["a", "b"]),
        ("[a, b]", ["a", "b"], None),
        ('["a","b"]', ["a", "b"], None),
        ('["a", "b"', ["a", "b"], None),
        ("a, b", ["a", "b"], None),
        ('["a", , "b"]', ["a", "b"], None),
        ('["a""b"]', ['a""b'], None),
        ("[]", [], None),
        ("", [], None),
    ],
)
def test_lists_are_read_from_replies(text, loose, strict):
    assert parse(text) == loose
    assert parse(text, strict=True) == strict


@pytest.mark.parametrize(
    ("text", "loose", "strict"),
    [
        ("A,B\nB,A", True, True),
        ("Sure:\nA, B\n\nB, A\n", True, True),
        ("A,B\nB,A\nA,B", True, True),
        ("A,B\nA,B", False, False),
        ("A,B", False, False),
        ("A,C\nC,A", False, False),
        ("A,B,B\nB,A", True, False),
    ],
)
def test_squares_are_read_from_replies(text, loose, strict):
    assert square(text, ["A", "B"]) is loose
    assert square(text, ["A", "B"], strict=True) is strict


def test_prompts_are_spread_over_the_lengths():
    bench = WaitingLine("reverse")
    assert [len(q.items) for q in bench.prompts("test", 8)] == [3, 3, 4, 4, 5, 5, 6, 6]
    assert bench.prompts("test", 8) == WaitingLine("reverse").prompts("test", 8)
    with pytest.raises(UserError, match="it has 100"):
        bench.prompts("test", 101)
    with pytest.raises(UserError, match="test split only"):
        bench.prompts("train", 8)


def test_a_strict_task_wants_the_exact_form():
    q = WaitingLine().questions[0]
    loose = ", ".join(q.items)
    assert WaitingLine().score(q, loose) == 1
    assert WaitingLine(strict=True).score(q, loose) == 0
    assert WaitingLine(strict=True).score(q, f"Of course! {text_of(q.items)}") == 1


CONFIG = """\
waiting_line/copy:
  metric: list_match_score
  prompt: 'At a desk: it''s
    late.

    {context}

    Copy it.

    '
  seed: 31940
waiting_line/sort:
  prompt: Sort {context}
    now.\\n
  seed: 48898
"""


def test_prompts_are_read_from_a_copy(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "task_config.yaml").write_text(CONFIG)
    assert prompt_in(tmp_path, "waiting_line/copy") == "At a desk: it's late.\n{context}\nCopy it.\n"
    assert prompt_in(tmp_path, "waiting_line/sort") == "Sort {context} now.\n"
    with pytest.raises(UserError, match=r"no task_config\.yaml with a prompt of waiting_line/shuffle"):
        prompt_in(tmp_path, "waiting_line/shuffle")
    assert fold("'a\n\n\n  b'") == "a\n\nb"


def test_names_that_are_not_the_published_ones_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no first_last_names\.yaml"):
        names_in(tmp_path)
    (tmp_path / "first_last_names.yaml").write_text("- - Ada\n  - Bo\n\n- - Moss\n  - Lund\n")
    with pytest.raises(UserError, match="2 first and 2 last names that are not those"):
        names_in(tmp_path)


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "waiting_line", "task": "sort", "n": 4},
        {"name": "latin_square", "size": 5},
        {"name": "lists", "task": "shuffle"},
    ],
)
def test_specs_round_trip(spec):
    made = build("eval.parallelbench", spec)
    assert build("eval.parallelbench", spec_of(made)) == made


@pytest.mark.parametrize(
    "make",
    [
        lambda: WaitingLine("fly"),
        lambda: WaitingLine(n=30),
        lambda: WaitingLine(shortest=7),
        lambda: LatinSquare(size=1),
        lambda: ListTask("fly"),
        lambda: ListTask().prompts("tset"),
    ],
)
def test_what_cannot_be_asked_is_refused(make):
    with pytest.raises(UserError):
        make()


@pytest.mark.parametrize("task", TASKS)
def test_lists_of_letters_score_their_own_answers(task):
    bench = ListTask(task)
    prompts = bench.prompts("test", 20)
    answers = [" ".join(bench.data.make("test", i)[1]) for i in range(20)]
    assert all(bench.score(p, a) == 1 for p, a in zip(prompts, answers, strict=True))
    assert bench.score(prompts[0], "") == 0
    for joint, _ in bench.joints():
        assert float(joint.probabilities.sum()) == pytest.approx(1)
        assert len({tuple(text) for text in joint.support.tolist()}) == len(joint.support)


@pytest.mark.parametrize("task", TASKS)
def test_the_replies_of_an_exact_model_are_the_right_ones(task):
    (joint, _), *_ = ListTask(task, Lists(low=4, high=4)).joints()
    head = {"insert_index": "insert_index e 4", "remove_index": "remove_index 3", "replace_index": "replace_index e 3"}
    words = head.get(task, f"{task} e" if task.startswith(("insert", "replace")) else task)
    prompt = f"{words} : a b c d ="
    if task in ("reverse", "replace_index"):  # one answer, whose words do not matter for the bound
        assert joint.support.shape == (1, 5)
        return
    said = [" ".join("abcde"[v] for v in text[:-1]) for text in joint.support.tolist()]
    assert all(ListTask(task).score(prompt, reply) == 1 for reply in said)
    assert len(said) == {"shuffle": 23, "insert_random": 5, "remove_random": 4, "replace_random": 4}.get(task, 1)


@pytest.mark.parametrize("holes", [1, 8, 12])
def test_a_sudoku_has_one_solution_which_is_right(holes):
    bench = Sudoku(holes=holes, n=6)
    for q in bench.prompts("test"):
        (only,) = solutions(tuple(tuple(0 if v == "_" else int(v) for v in row) for row in q.items))
        assert "".join(q.items).count("_") == holes
        assert q.example == "\n".join("".join(map(str, row)) for row in only)
        assert bench.score(q, q.example) == Sudoku(holes=holes, n=6, strict=True).score(q, q.example) == 1
        loose = "The answer:\n" + "\n".join(", ".join(line) for line in q.example.split("\n"))
        assert bench.score(q, loose) == 1
        assert Sudoku(holes=holes, n=6, strict=True).score(q, loose) == 0
        swapped = q.example.translate(str.maketrans("12", "21"))
        assert bench.score(q, swapped) == bench.score(q, q.example[:-1]) == 0
        assert q.messages[-1]["content"].endswith("\n".join(q.items))
    assert len({q.items for q in bench.questions}) > 1
    assert len(solutions(((0,) * 4,) * 4)) == 288
