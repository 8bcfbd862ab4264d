"""What the log keeps of people, and what it forgets."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from ensemble.errors import InputError, LogError
from ensemble.outcomes import OutcomeLog
from log_cases import ANSWER, PROMPT, attempt, bytes_on_disk, decision, ids, outcome, record

# ---- forgetting and keeping


def test_forget_by_id_takes_all_that_followed(log: OutcomeLog) -> None:
    gone, stays = record(log, metadata={"user": "a"}), record(log)
    for of in (gone, stays):
        log.record_attempt(attempt(of))
        log.record_outcome(outcome(of))
        log.record_reward(of, 1.0)
    assert log.forget(gone) == 1
    assert log.forget(gone) == 0
    assert log.decision(gone) is None and ids(log) == [stays]
    assert log.spend_usd(0.0) == 0.001
    assert log.forget(metadata={"user": "a"}) == 0
    with pytest.raises(LogError, match="not in the log"):
        log.record_outcome(outcome(gone))


def test_forget_by_metadata_needs_every_pair_with_its_type(log: OutcomeLog) -> None:
    labels: list[dict[str, Any] | None] = [
        {"user": "u", "org": 1},
        {"user": "u", "org": 1, "more": {"b": [1], "a": None}},
        {"user": "u", "org": "1"},
        {"user": "u", "org": True},
        {"org": "u", "user": 1},
        None,
    ]
    made = [record(log, decision(created_at=float(n)), metadata=each) for n, each in enumerate(labels)]
    assert log.forget(metadata={"more": {"a": None, "b": [1]}}) == 1
    assert log.forget(metadata={"user": "u", "org": 1}) == 1
    assert ids(log) == made[2:]
    assert log.forget(metadata={"user": "u"}) == 2
    assert ids(log) == made[4:]
    assert log.forget(metadata={"user": "nobody"}) == 0


def test_metadata_of_any_size_can_be_forgotten(log: OutcomeLog) -> None:
    record(log, metadata={"page": "x" * 100_000})
    assert log.forget(metadata={"page": "x" * 100_000}) == 1


@pytest.mark.parametrize("what", [{}, {"metadata": {}}, {"decision_id": "a", "metadata": {"user": "u"}}])
def test_forget_never_means_everything(long_lived: OutcomeLog, what: dict[str, Any]) -> None:
    of = record(long_lived)
    with pytest.raises(InputError, match="either"):
        long_lived.forget(**what)
    assert long_lived.decision(of) is not None


def test_forgotten_bytes_are_gone_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with OutcomeLog.open(path, keep="text+answers") as log:
        long = PROMPT + " and so on" * 2_000
        of = record(log, text=long, metadata={"user": "Ottilie"})
        log.record_outcome(outcome(of), ANSWER)
        assert PROMPT.encode() in bytes_on_disk(path) and ANSWER.encode() in bytes_on_disk(path)
        log.forget(metadata={"user": "Ottilie"})
        for secret in (PROMPT, ANSWER, "Ottilie", " and so on", of):
            assert secret.encode() not in bytes_on_disk(path)


@pytest.mark.parametrize(
    ("keep", "text", "answer"),
    [(None, None, None), ("text", PROMPT, None), ("text+answers", PROMPT, ANSWER)],
)
def test_only_what_was_asked_for_is_kept(
    tmp_path: Path, keep: Any, text: str | None, answer: str | None
) -> None:
    path = tmp_path / "log.db"
    with OutcomeLog.open(path, keep=keep) as log:
        of = record(log)
        log.record_outcome(outcome(of), ANSWER)
        row = log.decision(of)
        assert row is not None and (row["text"], row["answer"]) == (text, answer)
        on_disk = bytes_on_disk(path)
    assert (PROMPT.encode() in on_disk) == (text is not None)
    assert (ANSWER.encode() in on_disk) == (answer is not None)


def test_prompts_are_known_by_a_hash_that_differs_from_log_to_log(tmp_path: Path) -> None:
    with OutcomeLog.open(tmp_path / "a.db") as one, OutcomeLog.open(tmp_path / "b.db") as other:
        assert one.prompt_key(PROMPT) != one.prompt_key(PROMPT + "?")
        assert one.prompt_key(PROMPT) != other.prompt_key(PROMPT)
        before = one.prompt_key(PROMPT)
    with OutcomeLog.open(tmp_path / "a.db") as again:
        assert again.prompt_key(PROMPT) == before


@pytest.mark.parametrize(
    ("error", "secret"),
    [
        (
            "AuthenticationError: Incorrect API key provided: sk-pr0j-abcdefghijkl. Find yours at",
            "pr0j-abcdef",
        ),
        ("401 {'Authorization': 'Bearer abc.def-ghi123'}", "abc.def-ghi123"),
        ("GET https://host/v1?key=Zq81MMzz09xx&alt=sse failed", "Zq81MMzz09xx"),
        ("sent x-api-key: 0123456789abcdef, refused", "0123456789abcdef"),
        ("key AIzaSyA0123456789abcdefghijklmnopqrstu is disabled", "AIzaSyA0123"),
        ("the key ASIAIOSFODNN7EXAMPLE has expired", "ASIAIOSFODNN7EXAMPLE"),
        ("GET /m?X-Amz-Signature=abcdef0123456789 failed", "abcdef0123456789"),
        ("X-Amz-Security-Token: FwoGZXIvYXdz123 refused", "FwoGZXIvYXdz123"),
        ('sent {"model": "m", "token": "abcd1234efgh"}', "abcd1234efgh"),
        ('sent "{\\"api_key\\": \\"0123456789abcdef\\"}"', "0123456789abcdef"),
        ("Ocp-Apim-Subscription-Key: 0123456789abcdef refused", "0123456789abcdef"),
        ("login passwd=hunter222 refused", "hunter222"),
        ("token xoxb-123456789-abcdefgh is revoked", "123456789-abc"),
        ("cannot reach postgresql://me:hunter22@db/log", "hunter22"),
    ],
)
def test_keys_in_errors_never_reach_the_file(tmp_path: Path, error: str, secret: str) -> None:
    with OutcomeLog.open(tmp_path / "log.db") as log:
        of = record(log)
        log.record_attempt(attempt(of, error=error))
        log.record_outcome(outcome(of, error=error))
        assert secret.encode() not in bytes_on_disk(tmp_path / "log.db")
        row = log.decision(of)
    assert row is not None
    assert row["error"] == row["attempts"][0]["error"]
    assert row["error"].startswith(error[:3]) and "[removed]" in row["error"]


@pytest.mark.parametrize(
    "error",
    [
        "RateLimitError: 131072 max_tokens: too many requests",
        "APIError: risk-free skating at sk-lake",
        "x" * 1_000,
    ],
)
def test_an_error_without_keys_is_kept_as_it_is(long_lived: OutcomeLog, error: str) -> None:
    of = record(long_lived)
    long_lived.record_attempt(attempt(of, error=error))
    row = long_lived.decision(of)
    assert row is not None and row["attempts"][0]["error"] == error


def test_a_long_error_is_cut(long_lived: OutcomeLog) -> None:
    of = record(long_lived)
    long_lived.record_attempt(attempt(of, error="x" * 1_000_000))
    row = long_lived.decision(of)
    assert row is not None and len(row["attempts"][0]["error"]) == 1_000


def test_an_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "log.db"
    with OutcomeLog.open(path) as log:
        record(log)
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {0o600}
