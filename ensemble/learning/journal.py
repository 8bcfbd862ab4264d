"""What was asked, what came back and what it cost: on disk at once, so that no answer is paid for twice.

A JSON object a line:

    {"event": "journal", "format": 1}
    {"event": "sent", "prompt_id": ..., "member": ..., "most_usd": ...}       before each call
    {"event": "answered", "prompt_id": ..., "member": ..., "answer": ..., ...}  the fields of Answer
    {"event": "failed", "prompt_id": ..., "member": ..., "error": ..., "usd": ...}

The journal holds the answers, in full: scoring them anew needs no call. It is the ledger as well: a call
counts at the most it can cost until its end is written, and stays so where the process was killed in
between, as the provider may have billed it. Lines survive a killed process and a power loss.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ensemble.errors import ConfigError, TableError

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not kept apart there
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
Key = tuple[str, str]  # prompt id, member


@dataclass(frozen=True)
class Answer:
    """What a member said to a prompt. Tokens and ``cost_usd`` are None where the provider told no usage; it
    counts at ``most_usd`` then. ``models`` are litellm's model strings of the member's deployments at the
    time, ``served`` is the provider's own name for what answered."""

    prompt_id: str
    member: str
    models: tuple[str, ...]
    prompt_sha256: str
    answer: str
    served: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    most_usd: float

    @property
    def counted_usd(self) -> float:
        """What it takes from a budget."""
        return self.most_usd if self.cost_usd is None else self.cost_usd


class Journal:
    """An open journal, for one process at a time; a context manager. Not thread-safe.

    ``answers`` maps (prompt id, member) to Answer. ``assumed_usd`` is the part of ``spent_usd`` that no
    provider has confirmed: calls that were cut off, failed late or came without usage, each at its most.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the file, or begins it; a last line cut short by a crash is removed.

        Raises ConfigError while another process has it open, TableError for a line it cannot read.
        """
        self.path = Path(path)
        self.answers: dict[Key, Answer] = {}
        self._open_usd: dict[Key, float] = {}  # sent, not ended
        self._ended_usd = self._assumed_usd = 0.0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._size = 0  # bytes, up to the end of the last whole line
        self._file = self.path.open("ab", buffering=0)
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    @property
    def spent_usd(self) -> float:
        """All that has been spent, or may have been; what is in flight at its most."""
        return self._ended_usd + sum(self._open_usd.values())

    @property
    def assumed_usd(self) -> float:
        return self._assumed_usd + sum(self._open_usd.values())

    def sent(self, pair: Key, most_usd: float) -> None:
        """To be written before the call: it may cost ``most_usd``."""
        self._append({"event": "sent", "prompt_id": pair[0], "member": pair[1], "most_usd": most_usd})

    def answered(self, answer: Answer) -> None:
        self._append({"event": "answered", **dataclasses.asdict(answer)})

    def failed(self, pair: Key, error: str, *, billed: bool) -> None:
        """``billed``: it may have been, and what was set aside for it stays spent."""
        usd = self._open_usd[pair] if billed else 0.0
        self._append({"event": "failed", "prompt_id": pair[0], "member": pair[1], "error": error, "usd": usd})

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "only a part of the line could be written", str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._size)  # no half line may stand before the next one
            raise
        self._size += len(line)
        self._enter(entry)

    def _enter(self, entry: dict[str, Any]) -> None:
        """Take one line into account. KeyError, TypeError and ValueError say that it is not one of ours."""
        event = entry.pop("event")
        if event == "answered":
            answer = Answer(**{**entry, "models": tuple(entry["models"])})
            pair = answer.prompt_id, answer.member
            self.answers[pair] = answer
            self._end(pair, answer.counted_usd, assumed=answer.cost_usd is None)
        elif event == "failed":
            self._end((entry["prompt_id"], entry["member"]), float(entry["usd"]), assumed=True)
        elif event == "sent":
            pair = entry["prompt_id"], entry["member"]
            if pair in self._open_usd:  # a killed process left it; whatever it cost, it stays spent
                self._end(pair, self._open_usd[pair], assumed=True)
            self._open_usd[pair] = float(entry["most_usd"])
        elif event != "journal" or entry["format"] != FORMAT:
            raise ValueError(f"event {event!r}, format {entry.get('format')!r}")

    def _end(self, pair: Key, usd: float, *, assumed: bool) -> None:
        self._open_usd.pop(pair, None)
        self._ended_usd += usd
        self._assumed_usd += usd if assumed else 0.0

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{self.path}: expected to be alone, found it in use by another run: together they would "
                "spend the budget twice. Wait for that one, or collect into another file."
            ) from None

    def _read(self) -> None:
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n"):  # the last one may be cut short
                    self._read_line(number, line)
                    self._size += len(line)
        self._file.truncate(self._size)
        if not self._size:
            self._append({"event": "journal", "format": FORMAT})

    def _read_line(self, number: int, line: bytes) -> None:
        try:
            self._enter(json.loads(line))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TableError(
                f"{self.path}: line {number}: expected a line of a journal in format {FORMAT}, found one "
                f"that cannot be read ({type(error).__name__}: {error}). Restore the file, or remove the "
                "line: what it says is then forgotten, and its prompt is asked again."
            ) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
