"""What is timed? Our decision, the encoder alone below it, and what else stands where ours would.

bare encoder       the shipped tokenizer and graph, opened with the library's own settings, and nothing else
route()            ours with the log in both modes and without, over the default router and pool
sentence-transformers + scikit-learn
                   the same MiniLM with a logistic regression over the pool's members: what one would
                   write instead; reads the first 256 tokens of a long prompt, not both ends
litellm's complexity router
                   the rules that come with litellm: its decision alone, no call; they are a coroutine,
                   here run in a loop of the caller's own, which takes 0.04 ms of it
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.stopwatch import ACall, Call
from ensemble import bundle
from ensemble.encoder import GRAPH, TOKENIZER
from ensemble.engine import Ensemble
from ensemble.inference import open_session
from ensemble.router import Router, default_folder

BARE, OURS, AWAITED = "bare encoder", "route()", "aroute()"
AFTER, UNLOGGED = 'route(), log "after"', "route(), no log"
LEARNED, RULES = "sentence-transformers + scikit-learn", "litellm's complexity router"

CHARACTERS = 8  # for each token that is read, kept at either end of a long text: the library's own reading
SENTENCE_FEATURES, EXAMPLES = 384, 500  # of the classifier


class Bare:
    """Text to features with nothing around it. Long texts are read head and tail, as the library does."""

    def __init__(self, encoder_folder: Path) -> None:
        import tokenizers

        self._session = open_session(encoder_folder / GRAPH)
        self.provider, self.threads = self._session.provider, self._session.threads
        self.max_tokens = int(self._session.metadata["max_tokens"])
        self.tokenizer: Any = tokenizers.Tokenizer.from_file(str(encoder_folder / TOKENIZER))
        self._pad_id, self._half = int(self._session.metadata["pad_id"]), self.max_tokens // 2

    def __call__(self, text: str) -> npt.NDArray[np.float32]:
        """(1, n_features) of one text."""
        ids = np.array([self._both_ends(self.tokenizer.encode(self._cut(text)).ids)])
        return self._run(ids, np.ones_like(ids))

    def batched(self, texts: Sequence[str], tokens: int) -> None:
        """All ``texts``, the shortest first, in batches of at most so many ``tokens`` with their padding."""
        encoded = self.tokenizer.encode_batch_fast([self._cut(text) for text in texts])
        lines = sorted((self._both_ends(line.ids) for line in encoded), key=len)
        batch: list[list[int]] = []
        for line in lines:
            if batch and (len(batch) + 1) * len(line) > tokens:
                self._padded(batch)
                batch = []
            batch.append(line)
        self._padded(batch)

    def _padded(self, lines: list[list[int]]) -> npt.NDArray[np.float32]:
        longest = len(lines[-1])
        ids = np.array([line + [self._pad_id] * (longest - len(line)) for line in lines])
        mask = np.arange(longest) < np.array([[len(line)] for line in lines])
        return self._run(ids, mask.astype(np.int64))

    def _run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return self._session.run(["features"], {"input_ids": ids, "attention_mask": mask})[0]

    def _cut(self, text: str) -> str:
        edge = CHARACTERS * self.max_tokens
        return text if len(text) <= 2 * edge else f"{text[:edge]}\n{text[-edge:]}"

    def _both_ends(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.max_tokens else ids[: self._half] + ids[-self._half :]


@dataclass(frozen=True, eq=False)
class Field:
    """All that run: ``calls`` by name decide on one text, ``awaited`` is ours for asyncio, ``ours`` is what
    stands behind route()."""

    bare: Bare
    ours: Ensemble
    calls: Mapping[str, Call]
    awaited: ACall


@contextlib.contextmanager
def opened(folder: Path, *, learned: bool = True) -> Iterator[Field]:
    """Opens them all, their logs in ``folder``; without ``learned``, which needs torch, all but that one."""
    with contextlib.ExitStack() as stack:
        router = Router.load()
        before = stack.enter_context(Ensemble(router=router, log=folder / "before.db"))
        after = stack.enter_context(Ensemble(router=router, log=folder / "after.db", log_mode="after"))
        unlogged = Ensemble(router=router, log=False)
        bare = Bare(encoder_folder())
        calls: dict[str, Call] = {
            BARE: bare,
            OURS: before.route,
            AFTER: after.route,
            UNLOGGED: unlogged.route,
        }
        if learned:
            calls[LEARNED] = classifier(len(before.pool), bare.threads, bare.provider)
        calls[RULES] = stack.enter_context(complexity_router())
        yield Field(bare, before, calls, before.aroute)


def encoder_folder() -> Path:
    """Of the default router."""
    return bundle.load(default_folder()).encoder_folder


def classifier(n_members: int, threads: int, provider: str) -> Call:
    """MiniLM in sentence-transformers, then a logistic regression that has learned random labels: how long it
    takes doesn't depend on what it says."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    from ensemble.learning.encoders import pinned_model

    torch.set_num_threads(threads)
    cuda = provider.startswith("CUDA") and torch.cuda.is_available()
    model = SentenceTransformer(str(pinned_model()), device="cuda" if cuda else "cpu")
    rng = np.random.default_rng(0)
    features = rng.normal(size=(EXAMPLES, SENTENCE_FEATURES)) / np.sqrt(SENTENCE_FEATURES)
    regression = LogisticRegression(max_iter=1000).fit(features, np.arange(EXAMPLES) % n_members)
    return lambda text: regression.predict_proba(model.encode([text], show_progress_bar=False))


@contextlib.contextmanager
def complexity_router() -> Iterator[Call]:
    """litellm's rules over four tiers, each with a model that is never called."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    tiers = {tier: f"for-{tier.lower()}" for tier in ("SIMPLE", "MEDIUM", "COMPLEX", "REASONING")}
    rules = {"model": "auto_router/complexity_router", "complexity_router_config": {"tiers": tiers}}
    never = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_key": "none"}}
        for name in tiers.values()
    ]
    router = litellm.Router(model_list=[{"model_name": "rules", "litellm_params": rules}, *never])
    own, runners = threading.local(), list[asyncio.Runner]()

    def decide(text: str) -> str:
        if not hasattr(own, "runner"):  # a loop belongs to one thread
            own.runner = asyncio.Runner()
            runners.append(own.runner)
        asked = [{"role": "user", "content": text}]
        chosen = own.runner.run(router.async_pre_routing_hook("rules", {}, messages=asked))
        return str(chosen.model)

    try:
        yield decide
    finally:
        for runner in runners:
            runner.close()
        router.discard()
