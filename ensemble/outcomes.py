"""The log: what was decided, tried, answered and thought of it, kept in SQLite or PostgreSQL.

Append-only: decisions, attempts, outcomes and rewards are written once and never changed; only
``forget`` deletes. ``log_schema`` describes the tables. Features are personal data: an SQLite file
is made readable by its owner alone.

How long a record lasts: with ``log_mode="before"`` it is committed when its ``record_*`` returns (in
one transaction with what other threads record meanwhile), so a killed process loses nothing, and with
``fsync=True`` neither does a power loss (PostgreSQL has its own setting for that). With
``log_mode="after"`` decisions, attempts and outcomes are written by a background thread, and a killed
process, or a forked one that ends without ``close``, loses those not yet written: at most ``QUEUE_SIZE``.

When it cannot be written, in mode "before" the ``record_*`` raises, in mode "after" what is lost is counted,
logged once and told by ``flush`` and ``close``. A database that is away, or kept by another process, is
waited for during ``log_engine.BUSY_S`` from when it was first missed, then given up until it is back
(``log_outage``). A file that was deleted, moved or replaced is not written to any more (``log_file``).
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from ensemble.errors import ConfigError, InputError, LogError
from ensemble.log_database import Database
from ensemble.log_outage import AwayError
from ensemble.log_queue import QUEUE_SIZE, BackgroundWriter
from ensemble.log_reader import PAGE_SIZE, LogReader
from ensemble.log_retention import Retention
from ensemble.log_rows import (
    DAY_S,
    Rows,
    attempt_rows,
    checked_age,
    checked_reward,
    decision_rows,
    identifier,
    keyed_hash,
    label_digests,
    outcome_rows,
)
from ensemble.records import Attempt, Decision, FloatArray, Member, Outcome
from ensemble.together import Together

__all__ = ["QUEUE_SIZE", "Keep", "LogMode", "OutcomeLog"]

LogMode = Literal["before", "after"]
Keep = Literal["text", "text+answers"]
TRANSACTION_SIZE = 100  # records that are committed together at most


class OutcomeLog(LogReader):
    """An open log. Thread-safe, a context manager, usable after a fork. Raises LogError throughout.

    Every read sees what this object recorded before it, whatever the log mode.
    """

    def __init__(
        self,
        database: Database,
        *,
        log_mode: LogMode,
        keep: Keep | None,
        keep_days: float | None,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(database)
        self._keep = keep
        self._clock = clock
        self._retention: Retention | None = None
        if keep_days is not None:
            self._retention = Retention(lambda: self.forget(older_than_days=keep_days), clock)
        # Under load one transaction takes the records of all who wait for one.
        self._insert: Together[Rows, AwayError | None] = Together(self._insert_all, TRANSACTION_SIZE)
        self._writer: BackgroundWriter[Rows] | None = None
        self._at_exit: weakref.finalize[..., OutcomeLog] | None = None
        if log_mode == "after":
            self._writer = BackgroundWriter(database.insert)
            database.after_fork_in_child = self._writer.start_afresh
            # Not by atexit: streams still open then, begun later, are to be written down before.
            self._at_exit = weakref.finalize(self, self.close)

    @classmethod
    def open(
        cls,
        url_or_path: str | os.PathLike[str],
        *,
        log_mode: LogMode = "before",
        keep: Keep | None = None,
        keep_days: float | None = None,
        fsync: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> OutcomeLog:
        """Open the log, and create or upgrade it where needed.

        ``url_or_path``: a path means SQLite, its folders are created; otherwise an SQLAlchemy URL of
        SQLite or PostgreSQL. ``keep``: what is stored besides features and figures: nothing (None),
        the prompts' text, or text and answers. ``keep_days``: what is older is deleted, once an hour while
        decisions are recorded; ``None`` keeps all. ``fsync``: survive a power loss too (SQLite).
        Raises ConfigError, LogError, and MissingExtraError when PostgreSQL's driver is missing.
        """
        if log_mode not in get_args(LogMode):
            raise ConfigError(f"log_mode: expected 'before' or 'after', found {log_mode!r}.")
        if keep not in (None, *get_args(Keep)):
            raise ConfigError(f"keep: expected None, 'text' or 'text+answers', found {keep!r}.")
        if keep_days is not None:
            try:
                checked_age(keep_days)
            except InputError as error:
                raise ConfigError(f"keep_days: {error}") from None
        database = Database(url_or_path, fsync=fsync, clock=clock)
        return cls(database, log_mode=log_mode, keep=keep, keep_days=keep_days, clock=clock)

    def record_decision(
        self,
        decision: Decision,
        *,
        members: Iterable[Member],
        features: FloatArray,
        encoder_sha256: str,
        text: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        session: str | None = None,
    ) -> None:
        """Write a decision with all that is needed to learn from it.

        ``members``: the pool it was made over, for prices and kinds. ``features``: (n_features,),
        stored as float32, with the hash of the encoder that made them. ``text``: what was encoded;
        its keyed hash is stored, itself only if the log keeps text. ``metadata``: what JSON can hold;
        ``forget`` finds decisions by it. Raises InputError for what cannot be stored.
        """
        texts, vectors = None if text is None else [text], np.asarray(features)[None]
        rows = self._decision_rows([decision], members, vectors, encoder_sha256, texts, metadata, session)
        self._write(*rows)
        self._remind()

    def record_decisions(
        self,
        decisions: Sequence[Decision],
        *,
        members: Iterable[Member],
        features: FloatArray,
        encoder_sha256: str,
        texts: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """``record_decision`` for many, with ``features`` (n_decisions, n_features): in one transaction where
        they are committed on return."""
        batch = list(self._decision_rows(decisions, members, features, encoder_sha256, texts, metadata, None))
        if self._writer is None:
            self._database.insert(batch)
        else:
            for rows in batch:
                self._writer.put(rows)
        self._remind()

    def record_attempt(self, attempt: Attempt) -> None:
        """Write one call to one member: every call, as ``spend_usd`` adds them up.

        Its error is shortened and cleared of what looks like a key; should it quote the prompt, then
        that much of the prompt is stored whatever ``keep`` says.
        """
        self._write(attempt_rows(attempt))

    def record_outcome(
        self, outcome: Outcome, answer: str | None = None, *, last_attempt: Attempt | None = None
    ) -> None:
        """Write how a decision ended, once, with the attempt it ended with if that is not written yet.
        ``answer`` is stored only if the log keeps answers."""
        attempt = () if last_attempt is None else attempt_rows(last_attempt)
        self._write((*attempt, *outcome_rows(outcome, answer if self._keep == "text+answers" else None)))

    def record_reward(self, decision_id: str, reward: float, source: str = "caller") -> None:
        """Write how good the answer was, in [0, 1], as ``source`` sees it; committed on return in any mode.

        The same value again changes nothing; another value is a newer row, and the newest of a source
        is in force. Raises InputError when the log does not hold the decision.
        """
        value, source = checked_reward(reward), identifier(source, "source")
        decision_id = identifier(decision_id, "decision")
        self._drain()
        if not self._database.reward(decision_id, source, value, recorded_at=self._clock()):
            raise InputError(
                f"no decision {decision_id!r} in this log, so it cannot be given a reward. Pass the id of a "
                "reply's decision, and see that this is the log which that reply was recorded in."
            )

    def forget(
        self,
        decision_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        older_than_days: float | None = None,
    ) -> int:
        """Delete decisions and all that followed from them; how many decisions there were.

        Give one id; or metadata: every decision that carries all of these names and values (equal as
        JSON) goes; or an age, deleted in small steps. In SQLite the bytes are overwritten too.
        """
        if (decision_id is not None) + bool(metadata) + (older_than_days is not None) != 1:
            raise InputError("forget: expected either a decision id, a pair of metadata, or an age in days.")
        self._drain()
        if older_than_days is not None:
            before = self._clock() - DAY_S * checked_age(older_than_days)
            deleted = self._database.change_in_steps("forget older", before=before, limit=PAGE_SIZE)
        elif metadata:
            digests = label_digests(self._database.key, metadata)
            deleted = self._database.change("forget labelled", digests=digests, n_digests=len(digests))
        else:
            deleted = self._database.change("forget one", id=identifier(decision_id, "decision"))
        self._database.overwrite_deleted()
        return deleted

    def prompt_key(self, text: str) -> str:
        """The keyed hash under which this log stores a prompt's text."""
        return keyed_hash(self._database.key, text)

    def flush(self) -> None:
        """Wait until everything recorded is committed. Raises LogError if some of it could not be."""
        self._drain()
        lost, cause = self._writer.take_losses() if self._writer else (0, None)
        if lost:
            raise LogError(f"{lost} records are not in the log, the first because: {cause}") from cause

    def close(self) -> None:
        """Flush and close; closing again does nothing. Raises LogError as ``flush`` does."""
        if self._at_exit is not None:
            self._at_exit.detach()
        try:
            if self._retention:
                self._retention.wait()
            if self._writer:
                self._writer.stop()
            self.flush()
        finally:
            self._database.close()

    def __enter__(self) -> OutcomeLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decision_rows(
        self,
        decisions: Sequence[Decision],
        members: Iterable[Member],
        features: FloatArray,
        encoder_sha256: str,
        texts: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
        session: str | None,
    ) -> Iterator[Rows]:
        for place, decision in enumerate(decisions):
            yield decision_rows(
                decision,
                members=members,
                features=features[place],
                encoder_sha256=encoder_sha256,
                key=self._database.key,
                text=None if texts is None else texts[place],
                keep_text=self._keep is not None,
                metadata=metadata,
                session=session,
            )

    def _write(self, rows: Rows) -> None:
        if self._writer:
            self._writer.put(rows)
        elif away := self._insert(rows):
            raise AwayError(str(away)) from away

    def _insert_all(self, batch: list[Rows]) -> list[AwayError | None]:
        try:
            return [*self._database.insert(batch)]
        except AwayError as error:  # an answer for all: as an error it would have each tried alone
            return [error for _ in batch]

    def _remind(self) -> None:
        if self._retention:
            self._retention.remind()

    def _drain(self) -> None:
        if self._writer:
            self._writer.drain()
