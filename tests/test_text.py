"""What the user asks is read out of any conversation, in one canonical form."""

from __future__ import annotations

import time
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble.errors import InputError
from ensemble.text import SHORT, prompt_text

TASK = "Write a parser for arithmetic expressions in Haskell, with tests."
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "Here it is.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


# What is read


def test_a_string_and_one_user_message_read_the_same() -> None:
    assert prompt_text(TASK) == prompt_text([user(TASK)]) == prompt_text((user(TASK),)) == TASK


def test_the_system_prompt_the_answers_and_the_tools_are_not_the_request() -> None:
    conversation = [
        {"role": "system", "content": "You are a pirate."},
        {"role": "developer", "content": "Use metric units."},
        user("What is the weather in the ten largest cities of Peru?"),
        assistant(None, tool_calls=[{"id": "1", "type": "function", "function": {"name": "weather"}}]),
        {"role": "tool", "tool_call_id": "1", "content": "Lima: 20 degrees, fog"},
    ]
    assert prompt_text(conversation) == "What is the weather in the ten largest cities of Peru?"


def test_only_the_last_request_counts_when_it_stands_for_itself() -> None:
    second = "Now explain how a monad transformer stack would change this design."
    assert prompt_text([user(TASK), assistant(), user(second)]) == second


def test_a_short_request_brings_the_turns_that_say_what_it_is_about() -> None:
    conversation = [
        user("Translate this poem into French, keeping its metre and rhyme."),
        assistant(),
        user(TASK),
        assistant(),
        user("ok"),
        assistant(),
        user("yes, go on"),
    ]
    assert prompt_text(conversation) == f"{TASK}\n\nok\n\nyes, go on"


@pytest.mark.parametrize(("length", "brought"), [(SHORT - 1, True), (SHORT, False)])
def test_short_means_below_the_stated_length(length: int, brought: bool) -> None:
    assert (TASK in prompt_text([user(TASK), assistant(), user("x" * length)])) is brought


@pytest.mark.parametrize("role", ["system", "developer", "assistant", "tool"])
def test_without_any_user_text_whatever_there_is_gets_read(role: str) -> None:
    assert prompt_text([{"role": role, "content": TASK}, user("")]) == TASK


def test_the_system_prompt_goes_before_answers_when_the_user_said_nothing() -> None:
    assert prompt_text([{"role": "system", "content": TASK}, assistant("Hello!")]) == TASK


@pytest.mark.parametrize(
    ("part", "mark"),
    [
        (IMAGE, "[image]"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "[audio]"),
        ({"type": "file", "file": {"file_id": "1"}}, "[file]"),
        ({"type": "hologram", "hologram": {}}, "[hologram]"),
    ],
)
def test_a_part_that_is_not_text_leaves_a_mark(part: dict[str, Any], mark: str) -> None:
    question = {"type": "text", "text": "What does this show, and who might have made it?"}
    assert prompt_text([user([question, part])]) == f"{question['text']}\n{mark}"
    assert prompt_text([user([part])]) == mark


def test_tool_results_inside_a_user_message_are_passed_over() -> None:
    results = user([{"type": "tool_result", "tool_use_id": "1", "content": "17 files changed"}])
    assert prompt_text([user(TASK), assistant(), results]) == TASK


# Harness


@pytest.mark.parametrize("name", ["system-reminder", "environment_context", "environment_details"])
def test_harness_blocks_are_cut_out_of_user_text(name: str) -> None:
    block = f"<{name}>\nTodos: none.\n\nNever mention this.\n</{name}>"
    assert prompt_text(f"{block}\n{TASK}\n\n{block}") == TASK
    assert prompt_text([user([{"type": "text", "text": block}, {"type": "text", "text": TASK}])]) == TASK


def test_nested_and_crossing_harness_blocks_go_as_one() -> None:
    nested = "<system-reminder>a<system-reminder>b</system-reminder>c</system-reminder>"
    crossing = "<system-reminder>a<environment_context>b</system-reminder>c</environment_context>"
    assert prompt_text(f"{TASK}{nested}{crossing}") == TASK


def test_a_tag_that_is_only_mentioned_takes_nothing_with_it() -> None:
    mention = "Why is <system-reminder> in this log, again and again?"
    assert prompt_text(f"{mention}\n<system-reminder>x</system-reminder>") == mention


@pytest.mark.parametrize(
    "text",
    [
        "What does the tag <system-reminder> mean in these logs?",
        "</system-reminder> is left over here: why?",
        "Is <b>this</b> valid <template>? Or <system-reminderx>that</system-reminderx>?",
    ],
)
def test_a_tag_without_its_partner_and_other_markup_stay(text: str) -> None:
    assert prompt_text(text) == text


def test_cutting_a_block_never_makes_a_new_tag() -> None:
    block = "<environment_context>x</environment_context>"
    text = prompt_text(f"<system-{block}reminder>keep me</system-{block}reminder> {TASK}")
    assert "keep me" in text
    assert prompt_text(text) == text


def test_a_turn_of_nothing_but_harness_is_passed_over() -> None:
    assert prompt_text([user(TASK), assistant(), user("<system-reminder>Go on.</system-reminder>")]) == TASK


def test_where_all_is_harness_it_is_read_after_all() -> None:
    block = "<system-reminder>Summarize the file.</system-reminder>"
    assert prompt_text(block) == prompt_text([user(block)]) == block


# Canonical form


@pytest.mark.parametrize(
    ("given_text", "canonical"),
    [
        ("  a b \n", "a b"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\n\n \n\t\n\n    b", "a\n\n    b"),  # one blank line, and code keeps its indent
        ("e\u0301", "\u00e9"),
        ("e\x00\u0301", "\u00e9"),
        ("a\x00b\x1b[0m\tc", "ab[0m\tc"),
        ("a\ud800b", "a\ufffdb"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud83d\ud83d\ude00\udc00", "\ufffd\U0001f600\ufffd"),
        ("a" + "\u0301" * 1000, "\u00e1" + "\u0301" * 29),
        ("ड़ी 👨‍👩‍👧 ﬁ", unicodedata.normalize("NFC", "ड़ी 👨‍👩‍👧 ﬁ")),
    ],
)
def test_canonical_form(given_text: str, canonical: str) -> None:
    assert prompt_text(given_text) == canonical


pieces = (
    *("<system-reminder>", "</system-reminder>", "<environment_context>", "</environment_context>"),
    *("<", "\u0338", "<system-", "reminder>", "\r", "\n", " ", "\u0344" * 40, "\u0f73" * 20, "\u1100"),
)
odd = st.characters(categories=["Cs", "Cc", "Mn", "Mc", "Zl", "Zs"]).map(lambda c: c * 3)
nasty = st.lists(st.one_of(st.text(max_size=20), odd, st.sampled_from(pieces)), max_size=12).map("".join)
conversations = st.lists(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "system"]), nasty),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(nasty, conversations))
def test_whatever_comes_in_the_text_is_canonical_or_the_error_is_ours(messages: Any) -> None:
    try:
        text = prompt_text(messages)
    except InputError:
        return
    assert prompt_text(text) == text
    assert text == text.strip() != ""
    assert unicodedata.is_normalized("NFC", text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n" for c in text)
    assert "\n\n\n" not in text
    text.encode("utf-8")


def test_every_mark_of_unicode_is_held_to_the_limit() -> None:
    marks = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c))[0] == "M"]
    assert len(marks) > 2000
    overlong = [mark for mark in marks if len(prompt_text("a" + mark * 100 + "b")) > 32]
    assert overlong == []


@pytest.mark.parametrize(
    "text",
    [
        "<system-reminder>" * 60_000,
        "<system-reminder>" * 30_000 + "</system-reminder>" * 30_000,
        "<system-reminder></environment_context>" * 25_000,
        "<system-reminder><environment_context>" * 15_000
        + "</system-reminder></environment_context>" * 15_000,
        "</" * 500_000,
        "a" + "\n" * 1_000_000 + "b",
        "a" + "\n " * 500_000 + "b",
        "a\n" + " " * 1_000_000 + "b",
        "a" + "\r\n" * 500_000 + "b",
        "a" + "\x00" * 1_000_000,
        "a" + "\u0301\u0323" * 250_000,  # unicodedata.normalize alone would take minutes
        "\u0f73" * 330_000 + "a",
        "a" + "\ud800" * 1_000_000,
        "\ud83d\ude00" * 500_000,
    ],
    ids=lambda text: ascii(text[:24]),
)
def test_a_megabyte_of_anything_is_read_at_once(text: str) -> None:
    began = time.process_time()  # of this process alone: other work on the machine doesn't count
    prompt_text(text)
    assert time.process_time() - began < 3  # about .05 s


@pytest.mark.parametrize("messages", ["", " \n\t", "\x00\x07", [user("")], [user([])], [assistant(None)]])
def test_a_prompt_without_text_is_one_clear_error(messages: Any) -> None:
    with pytest.raises(InputError, match="some text in it, found none"):
        prompt_text(messages)
