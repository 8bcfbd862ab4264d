"""What the tests of ``collect`` share: twenty sums, three members that answer them at a local provider."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ensemble.learning.collect import Collected, collect
from ensemble.learning.scoring import last_number
from ensemble.pool import Pool
from local_provider import LocalProvider, Say

N_PROMPTS = 20
PRICES = {"small": (1.0, 2.0), "large": (10.0, 20.0), "wrong": (0.1, 0.2)}
PAIRS = [(f"q{number}", name) for number in range(N_PROMPTS) for name in PRICES]


def number_in(request: Mapping[str, Any]) -> int:
    """Which prompt a request puts: 7 of "What is 7 + 7?"."""
    return int(request["messages"][0]["content"].split()[2])


def pair_of(request: Mapping[str, Any]) -> tuple[str, str]:
    return f"q{number_in(request)}", request["model"]


def write_prompts(folder: Path, **more: Any) -> Path:
    """The sums as a file; ``more`` goes into every line."""
    lines = [
        {"id": f"q{n}", "task": "sums", "prompt": f"What is {n} + {n} ?", "answer": 2 * n, **more}
        for n in range(N_PROMPTS)
    ]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def teach(provider: LocalProvider, *, delay_s: float = 0.0) -> Pool:
    """Three members: two answer rightly, ``wrong`` doesn't."""

    def right(request: dict[str, Any]) -> Say:
        return Say(f"It comes to {2 * number_in(request)}.", delay_s=delay_s)

    provider.behave("small", right)
    provider.behave("large", right)
    provider.behave("wrong", Say("-1", delay_s=delay_s))
    return pool_of(provider)


def pool_of(provider: LocalProvider, *names: str, **more: Any) -> Pool:
    return Pool([provider.member(name, *PRICES[name], **more) for name in names or PRICES])


class Case:
    """One table being collected, over as many runs as a test likes."""

    def __init__(self, folder: Path, provider: LocalProvider) -> None:
        self.prompts, self.out, self.provider = write_prompts(folder), folder / "out.parquet", provider

    @property
    def journal(self) -> Path:
        return Path(f"{self.out}.journal.jsonl")

    def run(self, pool: Pool, scorer: Callable[..., Any] = last_number, **keywords: Any) -> Collected:
        return collect(self.prompts, pool, scorer, self.out, **{"budget_usd": 1.0, **keywords})

    def rows(self) -> list[dict[str, Any]]:
        return list(pq.read_table(self.out).to_pylist())

    def answered(self) -> set[tuple[str, str]]:
        """Pairs with an answer in the journal."""
        lines = self.journal.read_bytes().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return {(e["prompt_id"], e["member"]) for e in entries if e["event"] == "answered"}

    def bill_usd(self) -> float:
        return self.provider.bill_usd(PRICES)
