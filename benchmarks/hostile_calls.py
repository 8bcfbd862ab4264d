"""What if a caller passes on what somebody else made up: messages, tools, labels, names, ids, rewards?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.hostile_case import Case
from benchmarks.hostile_victim import MEMBERS, victim
from ensemble.engine import Ensemble
from ensemble.errors import InputError, NoEligibleMemberError
from ensemble.pool import Pool
from ensemble.records import Decision
from ensemble.router import Router

HUGE = 10**5_000  # more digits than Python prints
LONG = "x" * 10_000_000
SQL = "'; DROP TABLE decisions; --"
TEXT = {"type": "text", "text": "a"}


def opened(folder: Path) -> Ensemble:
    """With a log, over three members whose windows hold 100,000 tokens."""
    facts = {"usd_per_million_input": 1, "usd_per_million_output": 1, "context_window": 100_000}
    pool = Pool([{"name": name, "model": f"openai/{name}", **facts} for name in MEMBERS])
    return Ensemble(router=Router.load(victim(folder), device="cpu"), pool=pool, log=folder / "log.db")


def asked(prompt: Any, **keywords: Any) -> Callable[[Path], Decision]:
    """It is decided who should answer this, and written down."""

    def act(folder: Path) -> Decision:
        with opened(folder) as ensemble:
            decision = ensemble.route(prompt, **keywords)
            assert ensemble.log is not None
            _whole(ensemble, [decision])
            return decision

    return act


def told(use: Callable[[Ensemble, Decision], object]) -> Callable[[Path], None]:
    """After one decision ``use`` speaks of it, or of another; no more of the log may go than it says."""

    def act(folder: Path) -> None:
        with opened(folder) as ensemble:
            decisions = [ensemble.route(text) for text in ("a", "b")]
            ensemble.feedback(decisions[1], 0.5)
            try:
                use(ensemble, decisions[0])
            finally:
                _whole(ensemble, decisions)
                assert ensemble.log is not None
                row = ensemble.log.decision(decisions[1].id)
                assert row is not None and row["rewards"] == {"caller": 0.5}

    return act


def rewarded(reward: Any, **keywords: Any) -> Callable[[Path], None]:
    return told(lambda ensemble, decision: ensemble.feedback(decision, reward, **keywords))


def _whole(ensemble: Ensemble, decisions: list[Decision]) -> None:
    assert ensemble.log is not None
    found = [row["decision_id"] for row in ensemble.log.rows()]
    if found != [decision.id for decision in decisions]:
        raise AssertionError(f"the log holds {len(found)} decisions, not {len(decisions)}")


def elsewhere(folder: Path) -> None:
    """A decision of another log is given a reward."""
    (folder / "theirs").mkdir()
    with opened(folder / "theirs") as theirs:
        decision = theirs.route("a")
    told(lambda ensemble, _: ensemble.feedback(decision, 1.0))(folder)


def user(content: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content, **more}]


def deep(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


def round_list() -> list[Any]:
    inside: list[Any] = []
    inside.append(inside)
    return inside


def round_table() -> dict[str, Any]:
    inside: dict[str, Any] = {}
    inside["a"] = inside
    return inside


def _part(value: Any) -> Any:
    return user([TEXT, {"type": "z", "z": value}])


def _calls(value: Any) -> Any:
    return [*user("a"), {"role": "assistant", "content": None, "tool_calls": value}]


JSON, PLAIN = "what JSON can hold", "plain values"
SHORT = r"(?s)^.{0,400}$"  # an error repeats no megabytes
PROMPTS = (
    Case("a lone surrogate in a prompt", asked("a \ud800"), None),
    Case("a NUL in a prompt", asked("a \0"), None),
    Case("a lone surrogate in a message's key", asked(user("a", **{"\ud800": "\udfff"})), None),
    Case("a prompt of 10 MB", asked(LONG), NoEligibleMemberError, "window"),
    Case(
        "5,000,000 letters with an accent apart",
        asked("e\u0301" * 5_000_000),
        NoEligibleMemberError,
        "window",
    ),
    Case("a message inside itself", asked(round_list()), InputError, "expected a dict"),
    Case("content inside itself", asked(user(round_list())), InputError, "part 1"),
    Case("a part inside itself", asked(_part(round_list())), InputError, PLAIN),
    Case("tools inside themselves", asked("a", tools=[round_table()]), InputError, JSON),
    Case("a response format inside itself", asked("a", response_format=round_table()), InputError, JSON),
    *(
        Case(f"{what} in {n:,} brackets", asked(*prompt, **keywords), InputError, f"{PLAIN}|{JSON}")
        for n in (1_000, 100_000)
        for what, prompt, keywords in (
            ("a part", [_part(deep(n))], {}),
            ("a call", [_calls(deep(n))], {}),
            ("a tool", ["a"], {"tools": deep(n)}),
        )
    ),
    Case("a part with a number of 5,000 digits", asked(_part(HUGE)), InputError, JSON),
    Case("a tool with one", asked("a", tools=[HUGE]), InputError, JSON),
    Case("a role of 5,000 digits", asked([{"role": HUGE, "content": "a"}]), InputError, "expected a role"),
    Case("a role of 10 MB", asked([{"role": LONG, "content": "a"}]), InputError, SHORT),
    Case("content of 5,000 digits", asked(user(HUGE)), InputError, "type int"),
    Case("a key that is no text", asked(_part({(1, 2): 3})), InputError, JSON),
)
KEYWORDS = (
    *(
        Case(
            f"{name} of 5,000 digits{sign}", asked("a", **{name: value}), InputError, f"^{name}: .*very large"
        )
        for name in ("n", "max_tokens", "willingness_to_pay_usd", "max_latency_s")
        for sign, value in ((", negative", -HUGE), ("", HUGE))
        if name in ("n", "max_tokens") or value < 0
    ),
    Case("max_tokens of 400 digits", asked("a", max_tokens=10**400), InputError, "^max_tokens"),
    Case("max_tokens of 2^63 - 1, and n", asked("a", max_tokens=2**63 - 1, n=2**63 - 1), None),
    Case("a dial of 1e308", asked("a", willingness_to_pay_usd=1e308, exploration=0.5), None),
    Case("metadata of 10 MB", asked("a", metadata={"a": LONG}), None),
    Case("metadata that is a text of 10 MB", asked("a", metadata=LONG), InputError, SHORT),
    Case("metadata inside itself", asked("a", metadata=round_table()), InputError, JSON),
    Case("metadata in 100,000 brackets", asked("a", metadata={"a": deep(100_000)}), InputError, JSON),
    Case("metadata with NaN", asked("a", metadata={"a": float("nan")}), InputError, JSON),
    Case("metadata with a number of 5,000 digits", asked("a", metadata={"a": HUGE}), InputError, JSON),
    Case("metadata with a NUL and a lone surrogate", asked("a", metadata={"\0": "\ud800"}), None),
    Case("a session named in SQL", asked("a", session=SQL), None),
    Case("a session named NUL", asked("a", session="\0\ud800"), None),
    Case("a session's name of 10 MB", asked("a", session=LONG), InputError, SHORT),
    Case("an ability that moves the cursor", asked("a", requires=["\x1b[2J"]), InputError, r"'\\x1b\[2J'"),
    Case("members inside themselves", asked("a", members=round_list()), InputError, "list of names"),
)
NAMES = (
    Case("a decision's id in SQL", told(lambda e, _: e.feedback(SQL, 1.0)), InputError, "no decision"),
    Case("an id of a NUL", told(lambda e, _: e.feedback("\0", 1.0)), InputError, "no decision"),
    Case("an id of a percent sign", told(lambda e, _: e.feedback("%", 1.0)), InputError, "no decision"),
    Case("a decision of another log", elsewhere, InputError, "no decision"),
    Case("an id that is a table", told(lambda e, _: e.feedback({"id": "a"}, 1.0)), InputError, "found dict"),
    Case("to forget in SQL", told(lambda e, _: e.forget(SQL)), None),
    Case("to forget a percent sign", told(lambda e, _: e.forget("%")), None),
    Case("to forget labels in SQL", told(lambda e, _: e.forget(metadata={SQL: SQL})), None),
    Case("a source named in SQL", rewarded(1.0, source=SQL), None),
    *(
        Case(f"a reward of {reward!r}", rewarded(reward), InputError, r"\[0, 1\]")
        for reward in (float("nan"), float("inf"), 1 + 1e-9, -1e-9, "good", None, [0.5], 1j)
    ),
    Case("a reward of True", rewarded(True), None),
    Case("a reward of 400 digits", rewarded(10**400), InputError, "a reward must"),
    Case("a reward of 5,000 digits", rewarded(HUGE), InputError, "a reward must"),
    Case("a reward of '0.5'", rewarded("0.5"), InputError, "a reward must"),
    Case("an id of 10 MB", told(lambda e, _: e.feedback(LONG, 1.0)), InputError, SHORT),
    Case(
        "an id with a lone surrogate", told(lambda e, _: e.feedback("\ud800", 1.0)), InputError, "no decision"
    ),
    Case("to forget a lone surrogate", told(lambda e, _: e.forget("\ud800")), None),
    Case("a source of a lone surrogate", rewarded(1.0, source="\ud800"), None),
    Case("a source of 10 MB", rewarded(1.0, source=LONG), InputError, SHORT),
    Case("a source that is a number", rewarded(1.0, source=5), InputError, "source"),
    Case("a member's name of 10 MB", asked("a", members=[LONG]), InputError, SHORT),
)
CASES = (*PROMPTS, *KEYWORDS, *NAMES)
