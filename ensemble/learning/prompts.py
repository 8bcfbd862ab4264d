"""Prompts to ask, from a file: one JSON object a line.

    {"id": "q1", "task": "sums", "prompt": "What is 2 + 2?", "answer": "4"}
    {"messages": [{"role": "user", "content": "..."}]}

``prompt`` or ``messages`` is required. ``id`` is a hash of them where it is missing, ``task`` may be
missing too, and whatever else stands there is for the scorer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemble.errors import InputError
from ensemble.text import as_messages, prompt_text

SHOWN = 10  # bad lines named in one error


@dataclass(frozen=True)
class Prompt:
    """``text`` is the canonical one that is learned from, ``messages`` what is sent (``sha256`` is theirs),
    ``record`` the whole line with its ``id`` filled in."""

    id: str
    task: str | None
    text: str
    messages: list[dict[str, Any]]
    sha256: str
    record: Mapping[str, Any]


def read_prompts(path: str | os.PathLike[str]) -> tuple[Prompt, ...]:
    """The prompts of a JSONL file in its order; blank lines are passed over.

    Raises InputError: the file cannot be read, has no prompts, or has lines that cannot be used, which are
    all counted and the first ten named.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise InputError(
            f"{path}: expected a file of prompts, found: {error.strerror}. Check the path."
        ) from error
    prompts: list[Prompt] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = _read_line(line)
        except InputError as problem:
            problems.append(f"line {number}: {problem}")
            continue
        if (earlier := first_line.setdefault(prompt.id, number)) != number:
            problems.append(f"line {number}: {_twice(prompt, earlier)}")
        prompts.append(prompt)
    if problems:
        raise InputError(f"{path}: {_listing(problems, 'line(s) cannot be used')}")
    if not prompts:
        raise InputError(
            f'{path}: expected a line such as {{"prompt": "..."}}, found none. Write one a prompt.'
        )
    return tuple(prompts)


def _read_line(line: bytes) -> Prompt:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a JSON object in UTF-8, found: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"expected a JSON object, found {_kind(record)}")
    if ("prompt" in record) == ("messages" in record):
        found = "both" if "prompt" in record else f"the keys {', '.join(record) or '(none)'}"
        raise InputError(f"expected prompt or messages, found {found}")
    asked = record.get("prompt", record.get("messages"))
    if not isinstance(asked, str if "prompt" in record else list):
        raise InputError(f"expected a string as prompt, or a list of messages, found {_kind(asked)}")
    messages = as_messages(asked)
    sha256 = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    name, task = _name(record, "id") or sha256[:16], _name(record, "task")
    return Prompt(name, task, prompt_text(messages), messages, sha256, {**record, "id": name})


def _name(record: Mapping[str, Any], key: str) -> str | None:
    """A short piece of text, or a whole number as text."""
    value = record.get(key)
    if value is None:
        return None
    text = str(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int)
        or not text.strip()
        or not text.isprintable()
    ):
        raise InputError(f"{key}: expected text in one line or a whole number, found {value!r:.80}")
    return text


def _twice(prompt: Prompt, earlier: int) -> str:
    if prompt.id == prompt.sha256[:16]:
        return f"the prompt stands in line {earlier} already: remove one, or give them ids"
    return f"the id {prompt.id!r:.80} is taken by line {earlier}: give each prompt its own"


def _kind(value: object) -> str:
    return "null" if value is None else f"a value of type {type(value).__name__}"


def _listing(problems: Iterable[str], what: str) -> str:
    lines = list(problems)
    rest = [f"... and {len(lines) - SHOWN:,} more"] if len(lines) > SHOWN else []
    return "\n  ".join([f"{len(lines):,} {what}:", *lines[:SHOWN], *rest])
