"""Messages are checked, counted and sent on as they are; what is no conversation is one clear error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ensemble.bounds import most_input_tokens
from ensemble.errors import InputError
from ensemble.records import ABILITIES
from ensemble.text import OTHER_PART_CHARACTERS, as_messages, count_characters, needs, prompt_text

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000}}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any = "Here it is.", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def test_messages_are_sent_as_given_in_new_dicts() -> None:
    given_messages = [
        {"role": "system", "content": "  Be brief.\x00 ", "cache_control": {"type": "ephemeral"}},
        user([{"type": "text", "text": "<system-reminder>x</system-reminder> hi"}, IMAGE]),
        assistant(None, tool_calls=[{"id": "1"}]),
    ]
    sent = as_messages(given_messages)
    assert sent == given_messages
    sent[0]["content"] = "changed"
    sent[1]["content"].clear()
    assert given_messages[0]["content"] == "  Be brief.\x00 "
    assert len(given_messages[1]["content"]) == 2
    assert as_messages("hi") == [user("hi")]


def test_what_no_provider_could_be_sent_is_made_sendable() -> None:
    sent = as_messages(
        [user([{"type": "text", "text": "a\ud800"}]), assistant("\ud83d\ude00", name="\udc00")]
    )
    assert sent == [user([{"type": "text", "text": "a\ufffd"}]), assistant("\U0001f600", name="\ufffd")]
    assert as_messages("\udfff")[0]["content"] == "\ufffd"


def test_message_objects_become_dicts() -> None:
    class Message:
        def model_dump(self, exclude_none: bool) -> dict[str, Any]:
            return {"role": "assistant", "tool_calls": [{"id": "1"}]}

    assert as_messages([user("hi"), Message()])[1] == {"role": "assistant", "tool_calls": [{"id": "1"}]}


@pytest.mark.parametrize("reading", [prompt_text, as_messages, count_characters, needs])
@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (b"hello", "found a value of type bytes"),
        (None, "found nothing"),
        (7, "found a value of type int"),
        ({"role": "user", "content": "hi"}, "list of messages, found a value of type dict"),
        ([], "at least one message"),
        (["hi"], "message 1: expected a dict with a role, found a value of type str"),
        ([user("hi"), {"role": "robot", "content": "hi"}], "message 2: expected a role of .* found 'robot'"),
        ([{"content": "hi"}], "message 1: expected a role"),
        ([{"role": "user"}], r"message 1 \(user\): expected content, .* found nothing"),
        ([user(None)], "found nothing"),
        ([user(b"hi")], "found a value of type bytes. Decode"),
        ([user({"text": "hi"})], "found a value of type dict"),
        ([user(["hi"])], r"message 1 \(user\), part 1: expected a dict such as"),
        ([user([{"text": "hi"}])], "part 1: expected a dict such as"),
        ([user([IMAGE, {"type": "text", "text": b"hi"}])], "part 2: expected text in a string"),
    ],
)
def test_what_is_no_conversation_is_one_clear_error(reading: Any, messages: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        reading(messages)


def test_a_message_inside_itself_is_one_clear_error() -> None:
    message = user("hi")
    message["metadata"] = message
    with pytest.raises(InputError, match="inside itself"):
        prompt_text([message])


# What it costs and asks


def test_characters_count_all_that_is_billed() -> None:
    assert count_characters("12345") == 5
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    conversation = [
        {"role": "system", "content": "s" * 100},
        user("<system-reminder>" + "r" * 100),
        assistant(None, tool_calls=[call]),
        {"role": "tool", "tool_call_id": "1", "content": "t" * 1000},
    ]
    without_tools = count_characters(conversation)
    assert 100 + 117 + 1000 + 40 < without_tools < 100 + 117 + 1000 + 200
    assert count_characters(conversation, {"tools": [{"description": "d" * 500}]}) > without_tools + 500


def test_a_bound_on_the_input_counts_the_bytes_of_tools_as_well() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "description": "\u5929" * 500}}]
    spoken = len(json.dumps(tools, ensure_ascii=False).encode())
    assert most_input_tokens([user("hi")], {"tools": tools}) >= spoken > 3 * 500


def test_an_image_counts_by_what_it_costs_not_by_its_encoding() -> None:
    assert count_characters([user([{"type": "text", "text": "abc"}, IMAGE])]) == 3 + OTHER_PART_CHARACTERS


@pytest.mark.parametrize(
    ("messages", "params", "expected"),
    [
        ("hi", {}, set()),
        ("hi", {"temperature": 0, "tools": [], "reasoning_effort": None, "response_format": None}, set()),
        ("hi", {"response_format": {"type": "json_object"}}, set()),
        ("hi", {"reasoning_effort": "none", "thinking": {"type": "disabled"}}, set()),
        ("hi", {"tools": [{}]}, {"tools"}),
        ("hi", {"functions": [{}]}, {"tools"}),
        ([user("hi"), assistant(None, tool_calls=[{}]), {"role": "tool", "content": "1"}], {}, {"tools"}),
        ([user([IMAGE])], {}, {"vision"}),
        ("hi", {"response_format": {"type": "json_schema", "json_schema": {}}}, {"json_schema"}),
        ("hi", {"response_format": dict}, {"json_schema"}),
        ("hi", {"reasoning_effort": "high"}, {"reasoning"}),
        ("hi", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"reasoning"}),
        ([user([IMAGE])], {"tools": [{}], "reasoning_effort": "low"}, {"vision", "tools", "reasoning"}),
    ],
)
def test_needs(messages: Any, params: dict[str, Any], expected: set[str]) -> None:
    assert needs(messages, params) == expected <= set(ABILITIES)
