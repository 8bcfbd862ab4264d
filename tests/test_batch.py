"""Many prompts at once: decided as one by one, in their order, each in the log, and none kept."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemble import batch
from ensemble.engine import Ensemble
from ensemble.errors import InputError, NoEligibleMemberError
from ensemble.pool import Pool
from ensemble.records import Attempt, Decision
from ensemble.speeds import FIRST
from policy_cases import member
from serving_cases import CHEAP, DEAR, MIDDLE, default_router

IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
PROMPTS = [f"What is {n} times {n + 1}?" + " Explain every step of it." * (n % 7) for n in range(30)]


def an_ensemble(log: Any = False, exploration: float = 0.3, **settings: Any) -> Ensemble:
    members = [
        member(CHEAP, 0.1, 0.2, context_window=1_000, abilities=frozenset()),
        member(MIDDLE, 1.0, 2.0, context_window=10_000, abilities=frozenset()),
        member(DEAR, 5.0, 10.0, context_window=100_000, abilities=frozenset({"vision"})),
    ]
    pool = Pool(members, exploration=exploration)
    return Ensemble(router=default_router(), pool=pool, log=log, seed=5, clock=lambda: 9.0, **settings)


def told(decision: Decision) -> tuple[Any, ...]:
    """All that a decision says but its id; the figures rounded as features may be, by batch."""
    lines = [
        (f.member, pytest.approx(f.reward, abs=1e-4), pytest.approx(f.cost_usd, rel=1e-3))
        for f in decision.forecasts
    ]
    return decision.member, decision.ranking, decision.created_at, decision.wishes, lines


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_batch_decides_as_one_by_one_whatever_its_chunks(chunk: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(batch, "CHUNK", chunk)
    alone = an_ensemble()
    expected = [told(alone.route(prompt, willingness_to_pay_usd=0.001)) for prompt in PROMPTS]
    made = list(an_ensemble().route_batch(iter(PROMPTS), willingness_to_pay_usd=0.001))
    assert [told(decision) for decision in made] == expected
    assert len({decision.id for decision in made}) == len(PROMPTS)
    assert len({decision.member for decision in made}) > 1


def test_a_batch_knows_how_fast_members_have_answered(tmp_path: Path) -> None:
    with an_ensemble(tmp_path / "log.db") as ensemble:
        [first] = ensemble.route_batch(PROMPTS[:1])
        assert first[CHEAP].seconds is None and ensemble.log is not None
        for number in range(FIRST):
            told = Attempt(first.id, number + 1, CHEAP, "routed", 9.0, 0.5, output_tokens=7)
            ensemble.log.record_attempt(told)
    with an_ensemble(tmp_path / "log.db") as ensemble:
        [later] = ensemble.route_batch(PROMPTS[:1])
    assert later[CHEAP].seconds is not None and later[DEAR].seconds is None


def test_what_a_prompt_needs_counts_for_it_alone() -> None:
    asked = ["A word that rhymes with moon?", [IMAGE], "And one with sun?"]
    made = list(an_ensemble(exploration=0.0).route_batch(asked, willingness_to_pay_usd=0))
    assert [decision.member for decision in made] == [CHEAP, DEAR, CHEAP]
    assert made[1][CHEAP].ineligible_because == "lacks vision, which the request needs"


def test_every_decision_is_in_the_log_before_it_is_handed_over(tmp_path: Path) -> None:
    with an_ensemble(tmp_path / "log.db", keep="text") as ensemble:
        log = ensemble.log
        assert log is not None
        for prompt, decision in zip(PROMPTS, ensemble.route_batch(PROMPTS, metadata={"run": 7}), strict=True):
            row = log.decision(decision.id)
            assert row is not None and row["text"] == prompt and row["metadata"] == {"run": 7}
            assert row["probability"] == [line.probability for line in decision]
        assert len(list(log.rows())) == len(PROMPTS)
        features = [row["features"] for row in log.rows()]
        assert features[0].shape == (default_router().encoder.n_features,)


@pytest.mark.parametrize(
    ("wrong", "error"), [("", InputError), ("long words " * 50_000, NoEligibleMemberError)]
)
def test_a_prompt_that_cannot_be_decided_stops_the_batch_after_all_before_it(
    wrong: str, error: type[Exception], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(batch, "CHUNK", 4)
    with an_ensemble(tmp_path / "log.db") as ensemble:
        made: list[Decision] = []
        with pytest.raises(error) as caught:
            made.extend(ensemble.route_batch([*PROMPTS[:6], wrong, *PROMPTS[6:]]))
        assert caught.value.__notes__ == ["That was prompt 7; all before it are decided."]
        assert ensemble.log is not None and len(list(ensemble.log.rows())) == 6


def test_prompts_are_drawn_as_they_are_decided_and_never_all_at_once(monkeypatch: Any) -> None:
    monkeypatch.setattr(batch, "CHUNK", 5)
    drawn = itertools.count()

    def endless() -> Iterator[str]:
        while True:
            yield f"How tall is tower number {next(drawn)}?"

    decisions = an_ensemble().route_batch(endless())
    assert len(list(itertools.islice(decisions, 12))) == 12
    assert next(drawn) <= 12 + 3 * 5
    decisions.close()  # type: ignore[attr-defined]


def test_an_empty_batch_is_empty() -> None:
    assert list(an_ensemble().route_batch([])) == []


@pytest.mark.parametrize(
    "wrong", [{"session": "s"}, {"willingness_to_pay_usd": -1}, {"members": "all"}, {"model": "m"}]
)
def test_what_cannot_be_meant_is_refused_before_any_prompt_is_read(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        an_ensemble().route_batch(iter(PROMPTS), **wrong)


@pytest.mark.parametrize("one", [PROMPTS[0], {"role": "user", "content": PROMPTS[0]}])
def test_one_prompt_is_not_taken_for_many(one: Any) -> None:
    with pytest.raises(InputError, match=r"prompts: expected many, found .* Pass \[prompt\] for one"):
        an_ensemble().route_batch(one)


def test_a_bar_is_shown_on_standard_error_if_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich this makes a terminal of it
    made = list(an_ensemble().route_batch(PROMPTS[:3], progress=True))
    shown = capsys.readouterr()
    assert len(made) == 3 and shown.out == "" and "deciding" in shown.err
    assert len(list(an_ensemble().route_batch(PROMPTS[:3]))) == 3 and capsys.readouterr().err == ""
