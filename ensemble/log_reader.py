"""What does the log hold? Decisions with all that followed, and what is asked of them before the next one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from ensemble.log_database import Database
from ensemble.log_rows import Row, identifier, label_digests, read_row, session_name

PAGE_SIZE = 200  # decisions that are read, or deleted, at once


class LogReader:
    """The half of an open log that reads. Every read sees what was recorded before it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _drain(self) -> None:
        """Wait until what was recorded is written."""

    def decision(self, decision_id: str) -> Row | None:
        """Everything about one decision, as ``rows`` yields it; None when the log does not hold it."""
        self._drain()
        return next(self._complete(self._database.read("one", id=identifier(decision_id, "decision"))), None)

    def rows(
        self, since: float | None = None, until: float | None = None, with_reward_only: bool = False
    ) -> Iterator[Row]:
        """Decisions made in [since, until), oldest first, each a dict of plain values.

        Keys: the columns of ``decisions`` (``id`` as ``decision_id``; ``features`` a float32 array
        (n_features,), vectors over members as lists) and of ``outcomes`` (all None while there is
        none); ``attempts``, a list of dicts; ``rewards``, in force by source. Read page by page.
        """
        self._drain()
        statement = "rewarded page" if with_reward_only else "page"
        at, after = -math.inf if since is None else since, ""
        while page := self._database.read(
            statement, at=at, after=after, until=math.inf if until is None else until, limit=PAGE_SIZE
        ):
            yield from self._complete(page)
            at, after = page[-1]["created_at"], page[-1]["id"]

    def last_step(self, session: str) -> Row | None:
        """Who answered this session's latest answered decision, when, and what is to be known for the next
        (``sessions.Standing.after`` reads it); None when there is none."""
        self._drain()
        return next(iter(self._database.read("last step", session=session_name(session))), None)

    def latest_attempts(self, limit: int) -> list[Row]:
        """The last ``limit`` attempts, oldest first, each with the fields of ``records.Attempt``."""
        self._drain()
        return self._database.read("latest attempts", limit=limit)[::-1]

    def spend_usd(self, since: float, metadata: Mapping[str, Any] | None = None) -> float:
        """What the attempts that began at ``since`` or later have cost, in USD (upper bounds included); with
        one pair of ``metadata``, those of decisions that carry it."""
        self._drain()
        if metadata is None:
            return float(self._database.read("spend", since=since)[0]["usd"] or 0.0)
        [digest] = label_digests(self._database.key, metadata)
        return float(self._database.read("spend labelled", since=since, digest=digest)[0]["usd"] or 0.0)

    def _complete(self, decisions: list[Row]) -> Iterator[Row]:
        ids = [row["id"] for row in decisions]
        followed: dict[str, defaultdict[str, list[Row]]] = {}
        for table in ("attempts", "rewards"):
            followed[table] = defaultdict(list)
            for row in self._database.read(table, ids=ids):
                followed[table][row["decision_id"]].append(row)
        for row in decisions:
            yield read_row(row, followed["attempts"][row["id"]], followed["rewards"][row["id"]])
