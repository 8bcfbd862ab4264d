"""Every prompt put to every member, answers scored, an outcome table out: what every user needs first.

    prompts.jsonl -> plan (what it costs) -> calls within the budget -> journal -> scorer -> table.parquet

The journal, ``<out>.journal.jsonl``, holds every answer from the moment it is there. A run that was
stopped, by Ctrl-C, a crash or the budget, goes on where it was when it is started again, and asks
nothing twice. The table is scored from the journal each time it is written: with another scorer, run
again; with a budget of 0 nobody is asked who costs anything.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ensemble.dispatch import Dispatcher
from ensemble.errors import ConfigError, InputError, TableError
from ensemble.learning.asking import SLACK_USD, Asking, Failures
from ensemble.learning.journal import Answer, Journal
from ensemble.learning.longform import arrow_table, write_table
from ensemble.learning.plan import Pair, Plan, pairs_left, plan_of
from ensemble.learning.progress import bar
from ensemble.learning.prompts import Prompt, read_prompts
from ensemble.learning.scoring import Scorer
from ensemble.pool import Pool
from ensemble.records import Member

MOST_AT_ONCE = 256
# Each would make one call cost more than is set aside for it, or belongs to another argument.
OURS = ("model", "messages", "stream", "n", "max_tokens", "max_completion_tokens", "num_retries",
        "max_retries", "fallbacks")  # fmt: skip


@dataclass(frozen=True)
class Collected:
    """How a run ended.

    ``stopped``: "finished" (nobody is left to ask), "budget" (the next call could have exceeded it) or
    "declined" (by ``on_plan``). ``rows`` in the table, which is not written while there are none.
    ``answered`` in this run; ``left`` are the pairs without an answer, for another run. ``spent_usd`` in all
    runs together, ``spent_now_usd`` in this one; ``assumed_usd`` is the part of ``spent_usd`` that no
    provider has confirmed (cut off, failed late, no usage told), counted at the most it can be.
    ``failures`` by member; ``given_up``: members that were not asked to the end, and why.
    """

    out: Path
    journal: Path
    stopped: Literal["finished", "budget", "interrupted", "declined"]
    rows: int
    answered: int
    left: int
    spent_usd: float
    spent_now_usd: float
    assumed_usd: float
    failures: Mapping[str, Failures]
    given_up: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types, complete."""
        return {**dataclasses.asdict(self), "out": str(self.out), "journal": str(self.journal)}


def collect(
    prompts: str | os.PathLike[str],
    pool: Pool,
    scorer: Scorer,
    out: str | os.PathLike[str],
    *,
    budget_usd: float,
    max_tokens: int = 1024,
    concurrency: int = 8,
    members: Collection[str] | None = None,
    params: Mapping[str, Any] | None = None,
    dispatcher: Dispatcher | None = None,
    progress: bool = False,
    on_plan: Callable[[Plan], bool | None] = lambda plan: None,
) -> Collected:
    """Ask every member every prompt of a JSONL file (see ``prompts``) and write the outcome table.

    ``budget_usd`` binds all runs into this ``out`` together, and is never exceeded (``asking`` says how; a
    provider that ignores ``max_tokens`` can break it once). ``members``: only these, None for all.
    ``params`` go to litellm with each call. ``on_plan`` hears the plan before anything is spent, and
    returns False to ask nobody. ``scorer(record, answer)`` gives the reward, in [0, 1].

    A pair that failed is asked again in the next run. A member that refuses (key, credit, unknown model), or
    fails 5 times in a row, is asked no further in this one. After Ctrl-C the table is written, and
    KeyboardInterrupt raised with a note of how far it came.

    Raises InputError for prompts or rewards that cannot be used, ConfigError for settings, missing keys,
    or an ``out`` that is in use or not ours, TableError for a journal of other prompts or models, and
    MissingExtraError without the extra ``train``. Only a wrong reward is found after money was spent, and
    the answers are in the journal then.
    """
    params = dict(params or {})
    _check_settings(budget_usd, max_tokens, concurrency, params)
    chosen = [pool[name] for name in pool.names if members is None or name in _known(members, pool)]
    arrow_table(())  # if pyarrow is missing, say so before any money is spent
    asked, out = read_prompts(prompts), Path(out)
    with _open_journal(out) as journal:
        _check_unchanged(asked, chosen, journal)
        pairs = pairs_left(asked, chosen, journal, max_tokens, params)
        sender = _sender(dispatcher, pairs, budget_usd - journal.spent_usd)
        plan = plan_of(asked, chosen, pairs, journal, budget_usd, params)
        declined = on_plan(plan) is False
        before, before_usd = len(journal.answers), journal.spent_usd
        with bar(progress, len(pairs), "asking") as advance:
            asking = Asking(() if declined else pairs, budget_usd, journal, sender, params, advance)
            try:
                asking.run(concurrency)
            except KeyboardInterrupt as stop:
                stop.add_note(_how_far(len(journal.answers) - before, len(pairs), journal))
                raise
            finally:
                rows = _write(out, asked, chosen, journal, scorer)
        answered = len(journal.answers) - before
        return Collected(
            out=out,
            journal=journal.path,
            stopped="declined" if declined else asking.stopped,
            rows=rows,
            answered=answered,
            left=len(pairs) - answered,
            spent_usd=journal.spent_usd,
            spent_now_usd=journal.spent_usd - before_usd,
            assumed_usd=journal.assumed_usd,
            failures=asking.failures,
            given_up=asking.given_up,
        )


def _check_settings(budget_usd: float, max_tokens: int, concurrency: int, params: Mapping[str, Any]) -> None:
    if not 0 <= budget_usd < math.inf:
        raise ConfigError(
            f"budget_usd: expected USD, finite and at least 0, found {budget_usd!r}. Correct it."
        )
    if max_tokens < 1:
        raise ConfigError(f"max_tokens: expected at least 1, found {max_tokens!r}. Correct it.")
    if not 1 <= concurrency <= MOST_AT_ONCE:
        raise ConfigError(
            f"concurrency: expected 1 to {MOST_AT_ONCE} calls at a time, found {concurrency!r}."
        )
    if taken := [name for name in OURS if name in params]:
        raise ConfigError(
            f"params: expected none of {', '.join(OURS)}, found {', '.join(taken)}: with them the budget "
            "could not be kept. Leave them out; max_tokens bounds the answers."
        )


def _known(members: Collection[str], pool: Pool) -> frozenset[str]:
    if not members:
        raise ConfigError("members: expected at least one name, or None for the whole pool; found none.")
    return frozenset(pool[name].name for name in members)  # a PoolError names one that it doesn't have


def _open_journal(out: Path) -> Journal:
    path = out.with_name(f"{out.name}.journal.jsonl")
    if out.exists() and not path.exists():
        raise ConfigError(
            f"{out}: expected a new file, or one with its journal {path.name} beside it; found a file alone, "
            "which would be overwritten. Choose another name, or move it away."
        )
    return Journal(path)


def _check_unchanged(asked: Sequence[Prompt], members: Sequence[Member], journal: Journal) -> None:
    """Whether the answers that are there belong to these prompts and members."""
    sha256 = {prompt.id: prompt.sha256 for prompt in asked}
    models = {member.name: {deployment.model for deployment in member.deployments} for member in members}
    changed: dict[str, None] = {}
    other: dict[str, str] = {}
    for answer in journal.answers.values():
        if sha256.get(answer.prompt_id, answer.prompt_sha256) != answer.prompt_sha256:
            changed[answer.prompt_id] = None
        if answer.member in models and models[answer.member].isdisjoint(answer.models):
            other[answer.member] = f"{answer.member} (was {', '.join(answer.models)})"
    if changed:
        raise TableError(
            f"{journal.path}: expected the prompts that were asked before, found {len(changed)} with another "
            f"text under the same id: {', '.join(list(changed)[:10])}. Give changed prompts new ids, or "
            "collect into another file to begin anew."
        )
    if other:
        raise TableError(
            f"{journal.path}: expected the models that were asked before, found another behind the same "
            f"name: {'; '.join(other.values())}. Another model is another member: give it a name of its own, "
            "or collect into another file."
        )


def _sender(dispatcher: Dispatcher | None, pairs: Sequence[Pair], left_usd: float) -> Dispatcher | None:
    """A dispatcher for the members whose turn can come, if they have keys; None if it is nobody's."""
    payable = {pair.member.name: pair.member for pair in pairs if pair.most_usd <= left_usd + SLACK_USD}
    if not payable:
        return None
    sender = dispatcher or Dispatcher(payable.values())
    missing = {name: what for name, what in sender.missing_keys().items() if name in payable}
    if missing:
        listing = "\n".join(f"  {name}: {what}" for name, what in missing.items())
        raise ConfigError(
            f"expected an API key for each member, found none for {len(missing)} of {len(payable)}:\n"
            f"{listing}\nNothing was asked. Set them, or name the members to ask (members=[...], --member)."
        )
    return sender


def _write(
    out: Path, asked: Sequence[Prompt], members: Sequence[Member], journal: Journal, scorer: Scorer
) -> int:
    """Score every answer to one of these prompts, also of members not asked now, and write the table."""
    answers = dict(journal.answers)  # an abandoned call may still come home meanwhile
    names = dict.fromkeys([*(member.name for member in members), *(name for _, name in answers)])
    pairs = ((prompt, answers.get((prompt.id, name))) for prompt in asked for name in names)
    rows, problems = [], []
    for prompt, answer in pairs:
        if answer is None:
            continue
        try:
            rows.append(_row(prompt, answer, _reward(scorer(dict(prompt.record), answer.answer))))
        except Exception as error:
            problems.append((f"prompt {prompt.id!r}, member {answer.member!r}", error))
    if problems:
        where, first = problems[0]
        raise InputError(
            f"the scorer failed on {len(problems)} of {len(rows) + len(problems)} answers, first on {where}: "
            f"{type(first).__name__}: {str(first).rstrip('.')}. Nothing is lost: {journal.path} holds the "
            "answers. Mend the scorer and run again; no answer is asked for twice."
        ) from first
    if rows:
        write_table(out, rows)
    return len(rows)


def _row(prompt: Prompt, answer: Answer, reward: float) -> dict[str, Any]:
    return {
        "prompt_id": prompt.id,
        "task": prompt.task,
        "prompt": prompt.text,
        "member": answer.member,
        "reward": reward,
        "cost_usd": answer.cost_usd,
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
    }


def _reward(value: object) -> float:
    try:
        reward = math.nan if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        reward = math.nan
    if not 0 <= reward <= 1:
        raise InputError(f"expected a reward in [0, 1], found {value!r:.80}")
    return reward


def _how_far(answered: int, pairs: int, journal: Journal) -> str:
    return (
        f"Stopped after {answered:,} of {pairs:,} pairs, ${journal.spent_usd:.4f} spent in all. The answers "
        f"are in {journal.path}; run the same again to go on."
    )
