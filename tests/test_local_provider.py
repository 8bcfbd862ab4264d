"""The provider that other tests call: it must fail and bill as real ones do, or those tests prove nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from local_provider import Fail, LocalProvider, Raw, Reset, Say

KEY = {"authorization": "Bearer test"}


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    with LocalProvider() as running:
        yield running


def ask(provider: LocalProvider, model: str = "small", timeout: float = 5, **params: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "12345678"}], **params}
    return httpx.post(f"{provider.url}/chat/completions", json=body, headers=KEY, timeout=timeout)


def events(reply: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_answer_and_its_bill(provider: LocalProvider) -> None:
    provider.behave("small", Say("four word answer, really", cached_tokens=4))
    reply = ask(provider).json()
    assert reply["choices"][0]["message"]["content"] == "four word answer, really"
    assert (reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]) == (10, 6)
    assert provider.bill_usd({"small": (1, 2)}) == pytest.approx((10 * 1 + 6 * 2) / 1e6)
    assert provider.bill_usd({"small": (1, 2, 0.5)}) == pytest.approx((6 * 1 + 4 * 0.5 + 6 * 2) / 1e6)
    (request,) = provider.requests
    assert (request["status"], request["params"], request["messages"][0]["role"]) == (200, {}, "user")


def test_max_tokens_cuts_the_answer(provider: LocalProvider) -> None:
    provider.behave("small", "abcd" * 10)
    reply = ask(provider, max_tokens=3).json()
    assert reply["choices"][0] | {"index": 0} == {
        "index": 0,
        "message": {"role": "assistant", "content": "abcd" * 3},
        "finish_reason": "length",
    }
    assert reply["usage"]["completion_tokens"] == 3


def test_steps_come_in_turn_and_the_last_stays(provider: LocalProvider) -> None:
    provider.behave("small", [Fail(429, "later", headers={"retry-after": "3"}), Raw(), "a", "b"])
    replies = [ask(provider) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [429, 200, 200, 200, 200]
    assert replies[0].headers["retry-after"] == "3" and replies[0].json()["error"]["message"] == "later"
    with pytest.raises(json.JSONDecodeError):
        replies[1].json()
    assert [reply.json()["choices"][0]["message"]["content"] for reply in replies[2:]] == ["a", "b", "b"]
    assert sum(request["billed"] for request in provider.requests) == 3


def test_unknown_models_and_wrong_keys_are_refused(provider: LocalProvider) -> None:
    assert ask(provider, "other").status_code == 404
    body = {"model": "small", "messages": []}
    assert httpx.post(f"{provider.url}/chat/completions", json=body).status_code == 401
    assert httpx.post(f"{provider.url}/chat/completions", content=b"{", headers=KEY).status_code == 400


def test_a_stream(provider: LocalProvider) -> None:
    provider.behave("small", "one two three")
    chunks = events(ask(provider, stream=True, stream_options={"include_usage": True}))
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "one two three"
    assert [c["choices"][0]["finish_reason"] for c in chunks[-3:-1]] == [None, "stop"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] == 4
    assert all("usage" not in chunk for chunk in events(ask(provider, stream=True)))


def test_a_stream_that_breaks_off(provider: LocalProvider) -> None:
    provider.behave("small", Say(chunks=["one ", "two ", "three"], break_after=2))
    read = []
    body = {"model": "small", "messages": [], "stream": True}
    url = f"{provider.url}/chat/completions"
    with httpx.stream("POST", url, json=body, headers=KEY) as reply, pytest.raises(httpx.TransportError):
        read.extend(reply.iter_lines())
    assert not any("three" in line or "[DONE]" in line for line in read)
    assert provider.requests[0]["billed"]


def test_resets_and_delays(provider: LocalProvider) -> None:
    provider.behave("small", [Reset(), Say(delay_s=0.5)])
    with pytest.raises(httpx.TransportError):
        ask(provider)
    with pytest.raises(httpx.ReadTimeout):
        ask(provider, timeout=0.1)
    assert [request["billed"] for request in provider.requests] == [False, True]  # it answers all the same


def test_many_at_once(provider: LocalProvider) -> None:
    provider.behave("small", lambda request: Say(delay_s=0.1))
    threads = [threading.Thread(target=ask, args=(provider,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert provider.asked("small") == 8
    assert 2 <= provider.most_at_once <= 8


def test_connections_are_kept_only_on_request() -> None:
    for keep_alive, connections in ((True, 1), (False, 3)):
        with LocalProvider(keep_alive=keep_alive) as provider, httpx.Client(headers=KEY) as client:
            provider.behave("small", "ok")
            for _ in range(3):
                client.post(f"{provider.url}/chat/completions", json={"model": "small", "messages": []})
            assert provider.connections == connections


def test_stopping_does_not_wait_for_a_delay() -> None:
    provider = LocalProvider().start()
    provider.behave("small", Say(delay_s=20))
    failures: list[Exception] = []

    def wait() -> None:
        try:
            ask(provider, timeout=15)
        except httpx.TransportError as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not provider.requests:
        threading.Event().wait(0.005)
    provider.stop()
    thread.join(timeout=5)
    assert len(failures) == 1
