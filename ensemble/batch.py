"""How are many prompts decided? Chunk by chunk: one is encoded while the one before is decided and written.

Within a chunk the encoder takes texts of like length together. Nothing of a chunk is kept once its decisions
have been handed over, so memory stays the same however many prompts come.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ensemble import policy
from ensemble.asked import Asked
from ensemble.budget import Budgets
from ensemble.errors import InputError, NoEligibleMemberError
from ensemble.outcomes import OutcomeLog
from ensemble.parts import Terms
from ensemble.records import Decision, FloatArray, Prediction
from ensemble.request import Reading, decide, free_choice
from ensemble.router import Router, Seen
from ensemble.speeds import Speeds
from ensemble.text import Messages

CHUNK = 1_024  # prompts


@dataclass(frozen=True, eq=False)
class Batch:
    """What the decisions of one batch rest on; ``draw`` gives each prompt in turn a number in [0, 1)."""

    asked: Asked
    router: Router
    terms: Terms
    speeds: Speeds
    log: OutcomeLog | None
    clock: Callable[[], float]
    draw: Callable[[], float]
    budgets: Budgets

    def decisions(self, prompts: Iterable[Messages]) -> Iterator[Decision]:
        """One for each prompt, in their order, each written to the log before it is handed over.

        Raises InputError or NoEligibleMemberError for the first prompt that can't be decided, after the
        decisions on all before it; a note on the error gives its number.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="ensemble-batch") as encoder:
            ahead: tuple[_Chunk, Future[Seen]] | None = None
            for chunk in _chunks(prompts, self.asked):
                behind, ahead = ahead, (chunk, encoder.submit(self._look, chunk.readings))
                if behind is not None:
                    yield from self._decided(*behind)
            if ahead is not None:
                yield from self._decided(*ahead)

    def _look(self, readings: Sequence[Reading]) -> Seen:
        features, prediction = self.router.look_at_all([reading.encoded for reading in readings])
        return Seen(features, self.terms.prior.fill(prediction))

    def _decided(self, chunk: _Chunk, looking: Future[Seen]) -> Iterator[Decision]:
        features, prediction = looking.result()
        end = 0
        # What a prompt needs decides who may serve it: those alike are decided together, in their order.
        for _, alike in itertools.groupby(chunk.readings, key=lambda reading: reading.required):
            readings = list(alike)
            start, end = end, end + len(readings)
            made, error = self._decide(readings, prediction[start:end])
            self._record(made, readings, features[start:end])
            yield from made
            if error is not None:
                error.add_note(
                    f"That was prompt {chunk.first + start + len(made)}; all before it are decided."
                )
                raise error
        if chunk.error is not None:
            raise chunk.error

    def _decide(
        self, readings: Sequence[Reading], prediction: Prediction
    ) -> tuple[list[Decision], NoEligibleMemberError | None]:
        """The decisions up to the first prompt that nobody may serve."""
        made: list[Decision] = []
        wishes = self.asked.wishes(self.terms.pool.defaults, readings[0].required)
        wishes = self.budgets.under(wishes, self.asked.metadata)
        try:
            made.extend(
                decide(
                    readings,
                    prediction,
                    self.terms,
                    self.asked,
                    wishes,
                    [self.draw() for _ in readings],
                    [uuid.uuid4().hex for _ in readings],
                    self.clock(),
                    policy.Context(
                        router_id=self.router.id,
                        measured=self.terms.prior.measured,
                        reason=free_choice(wishes),
                        warnings=self.terms.pool.warnings,
                    ),
                    self.speeds,
                )
            )
        except NoEligibleMemberError as error:
            return made, error
        return made, None

    def _record(self, made: Sequence[Decision], readings: Sequence[Reading], features: FloatArray) -> None:
        if self.log is not None:
            self.log.record_decisions(
                made,
                members=self.terms.pool,
                features=features[: len(made)],
                encoder_sha256=self.router.encoder.sha256["encoder.onnx"],
                texts=[reading.encoded for reading in readings[: len(made)]],
                metadata=self.asked.metadata,
            )


@dataclass(eq=False)
class _Chunk:
    """Some prompts in a row; ``first`` is the first one's number, ``error`` what is wrong with the next."""

    first: int
    readings: list[Reading]
    error: InputError | None = None


def _chunks(prompts: Iterable[Messages], asked: Asked) -> Iterator[_Chunk]:
    rest = enumerate(prompts, start=1)
    while some := list(itertools.islice(rest, CHUNK)):
        chunk = _Chunk(some[0][0], [])
        for number, prompt in some:
            try:
                chunk.readings.append(Reading.of(prompt, asked.params))
            except InputError as error:
                error.add_note(f"That was prompt {number}; all before it are decided.")
                chunk.error = error
                break
        yield chunk
        if chunk.error is not None:
            return
