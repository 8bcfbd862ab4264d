"""The scorers that come along, and loading one's own."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble.errors import ConfigError, InputError
from ensemble.learning.scoring import choice_letter, exact_match, last_number, load_scorer


@pytest.mark.parametrize(
    ("wanted", "answer", "reward"),
    [
        ("Paris", ' **"paris."** ', 1.0),
        ("New  York", "new\nyork", 1.0),
        (["colour", "color"], "Color", 1.0),
        (7, "7", 1.0),
        ("Ⅸ", "ix", 1.0),
        ("Paris", "It is Paris", 0.0),
        ("a.b", "ab", 0.0),
        ("Paris", "", 0.0),
    ],
)
def test_exact_match(wanted: object, answer: str, reward: float) -> None:
    assert exact_match({"answer": wanted}, answer) == reward


@pytest.mark.parametrize(
    ("wanted", "answer", "reward"),
    [
        (18, "She has 3 left and earns $18.", 1.0),
        ("#### 1,000", "The total is \\boxed{1000}", 1.0),
        ("1000", "that makes 1{,}000 marbles", 1.0),
        (1000, "about 1e3", 1.0),
        (0.5, "x = .50", 1.0),
        ("1/2", "0.5", 1.0),
        ("3/4", "\\frac{3}{4}", 1.0),
        ("3/4", "1/4", 0.0),
        (-5, "x = -5", 1.0),
        (-5, "\u22125 degrees", 1.0),
        (5, "10-5", 1.0),
        (5, "-5", 0.0),
        (0.33, "1/3", 0.0),
        (7, "7 or 8", 0.0),
        (7, "no idea", 0.0),
        (0, "5/0", 0.0),
        (1, "9" * 1000, 0.0),
    ],
)
def test_last_number(wanted: object, answer: str, reward: float) -> None:
    assert last_number({"answer": wanted}, answer) == reward


@given(st.integers(-(10**15), 10**15), st.integers(0, 6))
def test_a_number_is_itself_however_it_is_written(whole: int, places: int) -> None:
    value = Fraction(whole, 10**places)
    sign, digits = "-" if whole < 0 else "", f"{abs(whole):0{places + 1}d}"
    cut = len(digits) - places
    plain = f"{sign}{digits[:cut]}" + (f".{digits[cut:]}" if places else "")
    grouped = f"{sign}{int(digits[:cut]):,}" + (f".{digits[cut:]}" if places else "")
    for written in (plain, grouped, f"{value.numerator}/{value.denominator}"):
        assert last_number({"answer": plain}, f"First 12, then {written}.") == 1.0
        assert last_number({"answer": plain}, f"{written}, no: {whole + 10**16}") == 0.0


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The answer is (C).", "C"),
        ("Answer: **C**", "C"),
        ("**Answer:** (J)", "J"),
        ("the answer is $\\boxed{\\text{B}}$", "B"),
        ("So we get \\boxed{G}", "G"),
        ("C", "C"),
        ("c", "C"),
        ("C. Paris", "C"),
        ("The correct option is D", "D"),
        ("Not A, since it is cold.\nThe answer is B because it is warm.", "B"),
        ("The answer is A because of that", "A"),
        ("(A) is tempting, but (B) it is", "B"),
        ("The answer is A... no, the answer is (E)", "E"),
        ("The answer:\n\nF", "F"),
    ],
)
def test_choice_letter(answer: str, letter: str) -> None:
    assert choice_letter({"answer": letter.lower()}, answer) == 1.0
    assert choice_letter({"answer": "H"}, answer) == 0.0


@pytest.mark.parametrize(
    "answer", ["", "I don't know", "The answer is a dog", "The answer is A dog", "Answer: Z"]
)
def test_no_choice_is_no_reward(answer: str) -> None:
    assert {choice_letter({"answer": letter}, answer) for letter in "ABCDEFGHIJ"} == {0.0}


@given(st.text(max_size=200))
def test_any_answer_gets_a_reward(answer: str) -> None:
    for scorer, wanted in ((exact_match, "x"), (last_number, "1"), (choice_letter, "A")):
        assert scorer({"answer": wanted}, answer) in (0.0, 1.0)


@pytest.mark.parametrize("scorer", [exact_match, last_number, choice_letter])
@pytest.mark.parametrize("record", [{}, {"answer": None}, {"answer": ""}])
def test_a_record_without_an_answer_is_an_error(scorer: Any, record: dict[str, Any]) -> None:
    with pytest.raises(InputError, match='right answer as "answer"'):
        scorer(record, "4")


def test_a_record_with_an_unusable_answer_is_an_error() -> None:
    with pytest.raises(InputError, match="expected a number"):
        last_number({"answer": "four"}, "4")
    with pytest.raises(InputError, match="expected a letter, A to J"):
        choice_letter({"answer": "Paris"}, "C")


def test_load_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_scorer("ensemble.learning.scoring:exact_match") is exact_match
    (tmp_path / "mine.py").write_text("def grade(record, answer):\n    return float(record['a'] == answer)\n")
    monkeypatch.chdir(tmp_path)
    for spec in ("mine.py:grade", "./mine.py:grade", f"{tmp_path}/mine.py:grade"):
        assert load_scorer(spec)({"a": "x"}, "x") == 1.0


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("exact_match", "expected a scorer such as"),
        ("module:", "expected a scorer such as"),
        ("nowhere.py:grade", "expected a Python file at nowhere.py, found none"),
        ("no.such.module:grade", "cannot be imported: ModuleNotFoundError.*write module.py:grade"),
        ("broken.py:grade", "broken.py cannot be imported: ZeroDivisionError: division by zero"),
        ("mine.py:grad", "expected a function grad in mine.py, found grade"),
        ("mine.py:LIMIT", "expected a function LIMIT in mine.py, found grade"),
    ],
)
def test_a_scorer_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, what: str
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "mine.py").write_text("LIMIT = 3\ndef grade(record, answer):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=what):
        load_scorer(spec)
