"""What could be sent to nobody is refused before anything is decided; what litellm takes reaches it."""

from __future__ import annotations

import datetime
import decimal
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h11
import httpx
import litellm
import numpy as np
import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litellm.types.utils import all_litellm_params

from ensemble.asked import Asked
from ensemble.errors import InputError
from local_provider import Say
from serving_cases import CHEAP, KEY, QUIET, Ask, Line, each_way, open_line, said, waited

pytestmark = QUIET
HUGE = 10**5_000  # more digits than Python prints
SECRET = "sekret-of-the-callers-own"


class City(pydantic.BaseModel):
    name: str


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with open_line(tmp_path) as opened:
        yield opened


UNSENDABLE = [
    ("stop", "\ud800"),
    ("stop", b"end"),
    ("stop", {"end"}),
    ("user", "\udfff"),
    ("user", object()),
    ("tools", [{"type": "function", "function": {"name": "a", "description": "\ud800"}}]),
    ("tools", "look_up"),
    ("tools", {"type": "function"}),
    ("response_format", {"type": "json_object", "\ud800": 1}),
    ("response_format", "json"),
    ("response_format", City(name="Oslo")),
    ("temperature", math.nan),
    ("top_p", math.inf),
    ("presence_penalty", decimal.Decimal(1)),
    ("frequency_penalty", np.float32(1)),
    ("seed", HUGE),
    ("seed", -HUGE),
    ("logit_bias", {(1, 2): 1}),
    ("extra_body", {"a": [{"b": math.nan}]}),
    ("extra_body", MappingProxyType({"a": math.nan})),
    ("extra_body", "a"),
    ("stream_options", {"a": object()}),
    ("stream", "yes"),
    ("reasoning_effort", print),
    ("prediction", {"type": "content", "content": bytearray(b"a")}),
    ("of_some_provider", datetime.date(2026, 1, 1)),
    ("timeout", math.nan),
    ("timeout", math.inf),
    ("timeout", -1),
    ("timeout", HUGE),
    ("stream_timeout", 1e12),
    ("extra_headers", {"x-trace": "a\r\nx-more: b"}),
    ("extra_headers", {"x-trace": "\u4e2d"}),
    ("extra_headers", {"x-trace": "caf\xe9"}),
    ("extra_headers", {"x-trace": 5}),
    ("extra_headers", {"x-trace": None}),
    ("extra_headers", {"x trace": "a"}),
    ("extra_headers", {"": "a"}),
    ("extra_headers", [("x-trace", "a")]),
    ("headers", {"x-trace": "a\0"}),
    ("api_key", f"{SECRET}\n"),
    ("api_key", f"{SECRET}\u2026"),
]


@pytest.mark.parametrize(
    ("name", "value"), UNSENDABLE, ids=[f"{name}-{n}" for n, (name, _) in enumerate(UNSENDABLE)]
)
def test_it_is_an_error_that_names_the_parameter(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"(?s)^{name}: expected .*found ") as caught:
        Asked.of({name: value})
    assert len(str(caught.value)) < 400
    str(caught.value).encode()  # it can be printed


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_cost", "max_cost_usd"),
        ("max_latency", "max_latency_s"),
        ("willingness_to_pay", "willingness_to_pay_usd"),
        ("willingess_to_pay_usd", "willingness_to_pay_usd"),
        ("owned", "owned_only"),
        ("member", "members"),
        ("excludes", "exclude"),
        ("meta_data", "metadata"),
    ],
)
def test_a_misspelt_keyword_of_ours_is_not_sent_to_a_provider(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"^{name}=.*Did you mean {meant}\\?"):
        Asked.of({name: 1})


def test_no_keyword_that_litellm_or_a_provider_knows_is_taken_for_a_misspelt_one() -> None:
    known = {*inspect.signature(litellm.completion).parameters, *litellm.OPENAI_CHAT_COMPLETION_PARAMS}
    known |= {*all_litellm_params, "session_id", "top_k", "min_p", "cached_content", "thinking"}
    refused = {"model", "messages", "fallbacks", "context_window_fallbacks", "content_policy_fallbacks"}
    assert {name for name in known - refused if not _taken(name, None)} == set()


@each_way
@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_decided_logged_or_sent(line: Line, stream: bool, ask: Ask) -> None:
    for name, value in UNSENDABLE:
        if name != "stream":
            with pytest.raises(InputError, match=f"^{name}: "):
                ask(line, stream, **{name: value})
    part = {"type": "text", "text": "b", "more": {"of it": [math.nan]}}
    for name, message in (("weight", {"content": "b", "weight": math.inf}), ("content", {"content": [part]})):
        prompt = [{"role": "user", "content": "a"}, {"role": "user", **message}]
        with pytest.raises(InputError, match=f"^message 2, {name}: expected what JSON can hold"):
            ask(line, stream, prompt=prompt)
    assert line.asked == [] and line.rows() == []


@pytest.mark.parametrize("name", ["api_key", "extra_headers", "headers"])
def test_what_may_be_a_key_is_not_shown(name: str) -> None:
    value = f"Bearer {SECRET}\n"
    with pytest.raises(InputError) as caught:
        Asked.of({name: value if name == "api_key" else {"authorization": value}})
    assert SECRET not in str(caught.value)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]))
    | st.builds(lambda: HUGE) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.floats(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(json_like)
def test_of_plain_values_just_those_pass_that_the_http_client_can_send(value: Any) -> None:
    try:
        httpx.Request("POST", "http://localhost", json=value)
        sendable = True
    except (TypeError, ValueError):
        sendable = False
    assert _taken("of_some_provider", value) == sendable


@given(
    st.text(st.characters(max_codepoint=300), max_size=4) | st.sampled_from(["x-a", "a\tb", " a", "a\x85"])
)
def test_of_headers_just_those_pass_that_the_http_client_can_send(text: str) -> None:
    assert _taken("extra_headers", {"x-trace": text}) == _carried("x-trace", text)
    assert _taken("extra_headers", {text: "a"}) == _carried(text, "a")


def _taken(name: str, value: Any) -> bool:
    try:
        Asked.of({name: value})
    except InputError:
        return False
    return True


def _carried(name: str, value: str) -> bool:
    try:
        raw = httpx.Headers({name: value}).raw
        h11.Request(method="GET", target="/", headers=[("host", "a"), *raw])
    except (ValueError, h11.LocalProtocolError):
        return False
    return True


OBJECTS = (
    "aws_bedrock_client azure_ad_token_provider callbacks client failure_callback litellm_logging_obj "
    "litellm_metadata logger_fn mock_response request_timeout shared_session ssl_verify stream_timeout "
    "success_callback timeout"
)


@pytest.mark.parametrize("name", OBJECTS.split())
def test_what_litellm_keeps_to_itself_may_be_any_object(name: str) -> None:
    thing = object()
    assert Asked.of({name: thing}).params == {name: thing}


def test_what_litellm_takes_besides_json_reaches_it(line: Line) -> None:
    line.provider.behave(CHEAP, Say('{"name": "Oslo"}'))
    heard: list[Any] = []
    with openai.OpenAI(api_key=KEY, base_url=line.provider.url, max_retries=0) as client:
        tool = pydantic.create_model("Tool", type=(str, "function"), function=(dict[str, Any], {"name": "a"}))
        for taken in (
            {"response_format": City},
            {"timeout": httpx.Timeout(20), "stream_timeout": "20"},
            {"client": client},
            {"logger_fn": heard.append},
            {"tools": [tool()]},
            {"extra_body": MappingProxyType({"top_k": 5})},
            {"extra_headers": {"x-trace": "a b\tc", "x-empty": "", "x-raw": b"d"}},
            {"logit_bias": {50: 1.5}, "stop": ("a", "b")},
        ):
            assert said(line.ask(members=[CHEAP], **taken)) == '{"name": "Oslo"}', taken
    sent = [request["params"] for request in line.provider.requests]
    assert sent[0]["response_format"]["json_schema"]["name"] == "City"
    assert sent[4]["tools"] == [{"type": "function", "function": {"name": "a"}}]
    assert sent[5]["top_k"] == 5 and sent[7]["logit_bias"] == {"50": 1.5}
    assert line.provider.requests[6]["headers"]["x-raw"] == "d" and heard


def test_an_earlier_reply_goes_on_as_a_message_with_its_calls(line: Line) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    line.provider.behave(CHEAP, Say("", message={"tool_calls": [call]}))
    ask = {"role": "user", "content": "Look it up."}
    message = line.ask([ask]).choices[0].message
    result = {"role": "tool", "tool_call_id": "c1", "content": "Oslo"}
    for earlier in (message, {"role": "assistant", "content": None, "tool_calls": message.tool_calls}):
        waited(line, prompt=[ask, earlier, result])
        [sent] = line.provider.requests[-1]["messages"][1]["tool_calls"]
        assert sent["id"] == "c1"
