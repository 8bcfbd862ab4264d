"""An alarm is raised when a member answers under another name, or bills another price, and once."""

from __future__ import annotations

import random

import pytest

from alarm_cases import Heard, until
from ensemble.alarms import FIRST_ANSWERS, MOST_NAMES, REST


@pytest.fixture
def heard() -> Heard:
    return Heard()


# Names


def test_a_new_name_is_told_once(heard: Heard) -> None:
    heard.answers("oak-1", times=FIRST_ANSWERS)
    heard.answers("oak-2", "oak-1", "oak-2", times=5)
    [alarm] = heard
    assert (alarm.kind, alarm.expected, alarm.found) == ("name", "oak-1", "oak-2")
    assert "expected an answer by oak-1, found one by oak-2." in alarm.text


def test_all_names_of_the_first_answers_are_usual(heard: Heard) -> None:
    heard.answers("azure/oak", "oak", times=FIRST_ANSWERS)
    heard.answers(times=FIRST_ANSWERS)
    assert heard == []


@pytest.mark.parametrize(
    ("usual", "new", "akin"),
    [
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("azure/gpt-4o", "openai/gpt-4o", True),
        ("claude-3-5-sonnet-20240620", "anthropic/claude-3-5-sonnet@20241022", True),
        ("mistral-large-2407", "mistral-large-2411", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("llama-3-8b", "llama-3-70b", False),
    ],
)
def test_another_date_or_provider_is_another_model(heard: Heard, usual: str, new: str, akin: bool) -> None:
    heard.answers(usual, times=FIRST_ANSWERS)
    heard.answers(new)
    [alarm] = heard
    assert alarm.found == new
    assert (f"from {usual} it differs only in provider or date" in alarm.text) is akin


def test_a_provider_that_never_repeats_a_name_is_not_listened_to(heard: Heard) -> None:
    heard.answers(*(f"request-{i}" for i in range(1_000)))
    assert heard == []


def test_names_without_end_are_told_up_to_a_limit(heard: Heard) -> None:
    heard.answers("oak", times=FIRST_ANSWERS)
    heard.answers(*(f"oak-{i}" for i in range(1_000)))
    assert [alarm.found for alarm in heard] == [f"oak-{i}" for i in range(MOST_NAMES - 1)]
    assert "no longer told" in heard[-1].text and "no longer told" not in heard[-2].text


def test_an_answer_without_a_name_says_nothing_of_it(heard: Heard) -> None:
    heard.attempts(100, 0.0, random.Random(0))
    heard.answers("oak")
    assert heard == []


# Prices


@pytest.mark.parametrize("told", [0.0124, 0.0076, 0.0])
def test_a_price_that_differs_is_told_after_twenty_answers(heard: Heard, told: float) -> None:
    step = lambda: heard.answers("oak", expected_usd=0.01, told_usd=told)  # noqa: E731
    assert until(heard, step, 100) == FIRST_ANSWERS
    [alarm] = heard
    assert alarm.kind == "price" and alarm.observations == FIRST_ANSWERS
    assert alarm.expected == pytest.approx(0.2) and alarm.found == pytest.approx(20 * told)
    assert f"{20 * told:.6f} USD" in alarm.text


def test_a_long_and_correct_past_does_not_hide_a_new_price(heard: Heard) -> None:
    heard.answers("oak", times=20_000, expected_usd=0.01, told_usd=0.01)
    step = lambda: heard.answers("oak", expected_usd=0.01, told_usd=0.02)  # noqa: E731
    assert until(heard, step, 100) == FIRST_ANSWERS


def test_cheap_answers_are_told_of_once_a_cent_is_at_stake(heard: Heard) -> None:
    step = lambda: heard.answers("oak", expected_usd=1e-5, told_usd=2e-5)  # noqa: E731
    assert until(heard, step, 2_000) == pytest.approx(0.01 / 0.98e-5, abs=2)


def test_what_is_free_in_the_pool_and_not_at_the_provider_is_told(heard: Heard) -> None:
    assert until(heard, lambda: heard.answers("oak", expected_usd=0.0, told_usd=0.001), 100) == FIRST_ANSWERS


@pytest.mark.parametrize("each_usd", [1e-5, 0.001, 0.5])
def test_a_price_within_two_percent_or_off_by_chance_is_no_news(heard: Heard, each_usd: float) -> None:
    draw = random.Random(9)
    heard.answers("oak", times=5_000, expected_usd=each_usd, told_usd=1.019 * each_usd)
    for _ in range(50_000):
        heard.answers("oak", expected_usd=each_usd, told_usd=each_usd * draw.uniform(0.9, 1.1))
    assert heard == []


def test_a_price_is_told_once_in_a_while(heard: Heard) -> None:
    heard.answers("oak", times=REST + FIRST_ANSWERS, expected_usd=0.01, told_usd=0.02)
    assert len(heard) == 1
    heard.answers("oak", times=FIRST_ANSWERS, expected_usd=0.01, told_usd=0.02)
    assert len(heard) == 2
