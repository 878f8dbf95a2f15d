"""Questions of a file: what is read, how replies are checked, and the command that measures several runs on them."""

import json
import sys

import pytest

from gen.config.errors import UserError
from gen.eval.question_file import QuestionFile


def written(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def asked(tmp_path, answer, checker="exact", prompt="p"):
    return QuestionFile(written(tmp_path / "q.jsonl", {"prompt": prompt, "answer": answer}), checker)


@pytest.mark.parametrize(
    ("checker", "answer", "scores"),
    [
        ("exact", " a b\n", {"a b": 1, "a b ": 1, "A b": 0, "": 0}),
        ("exact", ["a", "b"], {"b": 1, "c": 0}),
        ("regex", r"= (4|four)\b", {"2 + 2 = four": 1, "= 44": 0}),
        ("bleu", "the cat sat down there", {"the cat sat down there": 1, "dogs": 0}),
        ("words", "the Red fox", {"a Red fox": 2 / 3, "fox the Red": 1, "": 0}),
    ],
)
def test_replies_are_checked(tmp_path, checker, answer, scores):
    task = asked(tmp_path, answer, checker)
    assert {reply: task.score("p", reply) for reply in scores} == pytest.approx(scores)


@pytest.mark.slow  # imports nltk
def test_summaries_are_scored_by_rouge(tmp_path):
    task = asked(tmp_path, "the cats sat down", "rouge_l")
    scores = [task.score("p", reply) for reply in ("the cat sat", "", "the cats sat down")]
    assert scores == pytest.approx([6 / 7, 0, 1])


def test_a_function_of_the_users_own_checks(tmp_path, monkeypatch):
    (tmp_path / "own_checks.py").write_text(
        "def same_length(prompt, reply, answer):\n    return len(reply) == len(prompt + answer)\n"
        "def wrong(prompt, reply, answer):\n    return 2\n"
        "def broken(prompt, reply, answer):\n    return answer[9]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    task = asked(tmp_path, "ab", "own_checks:same_length")
    assert [task.score("p", "xyz"), task.score("p", "x")] == [1, 0]
    with pytest.raises(UserError, match="a score from 0 to 1"):
        asked(tmp_path, "a", "own_checks:wrong").score("p", "a")
    with pytest.raises(UserError, match="failed on the reply 'xy': IndexError"):
        asked(tmp_path, "a", "own_checks:broken").score("p", "xy")
    with pytest.raises(UserError, match="own_checks:missing"):
        asked(tmp_path, "a", "own_checks:missing").score("p", "a")
    sys.modules.pop("own_checks", None)


def test_what_is_compared_is_the_questions_and_the_checker(tmp_path):
    first, moved = asked(tmp_path, "a"), QuestionFile(written(tmp_path / "r.jsonl", {"prompt": "p", "answer": "a"}))
    assert first.protocol == moved.protocol
    assert first.protocol != asked(tmp_path, "a", "regex").protocol
    assert first.protocol != asked(tmp_path, "b").protocol


@pytest.mark.parametrize(
    ("line", "checker", "told"),
    [
        ({"prompt": "p"}, "exact", "line 1 is"),
        ({"question": "p", "answer": "a"}, "exact", "line 1 is"),
        ({"prompt": "p", "messages": [], "answer": "a"}, "exact", "line 1 is"),
        ({"messages": [{"role": "cat", "content": "p"}], "answer": "a"}, "exact", "line 1: message 1 has the role"),
        ({"prompt": 3, "answer": "a"}, "exact", "line 1 is"),
        ({"prompt": "p", "answer": []}, "exact", "a list of strings"),
        ({"prompt": "p", "answer": "("}, "regex", "no regular expression"),
        ({"prompt": "p", "answer": "a"}, "exakt", "Did you mean 'exact'"),
    ],
)
def test_bad_questions_are_refused(tmp_path, line, checker, told):
    with pytest.raises(UserError, match=told):
        QuestionFile(written(tmp_path / "q.jsonl", line), checker).prompts()


def test_questions_are_spread_over_the_file(tmp_path):
    lines = [{"prompt": str(i), "answer": "a"} for i in range(10)]
    task = QuestionFile(written(tmp_path / "q.jsonl", *lines))
    assert task.prompts("test", 5) == ["0", "2", "4", "6", "8"]
    assert len(task.prompts("test", 100)) == 10
    with pytest.raises(UserError, match="split"):
        task.prompts("train", 1)


def test_chats_are_prompts_of_messages(tmp_path):
    chat = [{"role": "user", "content": "2 + 2?"}]
    task = QuestionFile(
        written(tmp_path / "q.jsonl", {"messages": chat, "answer": "4"}, {"prompt": "p", "answer": "5"})
    )
    (first, second) = task.prompts()
    assert (first.messages, first.text, second) == (tuple(chat), "2 + 2?\n", "p")
    assert [task.score(first, "4"), task.score(first, "5"), task.score(second, "5")] == [1, 0, 1]
