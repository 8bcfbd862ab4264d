"""How is an encoder trained on a table? End to end, through what a head makes of its features.

The upper half of the model's layers moves to lower the loss of tuning_loss.py: each prompt is guessed from
the others like it, as a head does. The lower half stays as it is. What the others' features were when
they were last seen stands in for what they are.

No prompt sees its own outcomes. Even so the prompts tuned on come to lie better than new ones will: whoever
fits a head on these features has to choose and calibrate on prompts that the encoder was not tuned on.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ensemble.encoder import GRAPH, Reader
from ensemble.errors import ConfigError
from ensemble.learning.depths import blocks, side_by_side
from ensemble.learning.encoders import (
    WHEEL_LICENSE,
    WHEEL_ORIGIN,
    bare_tokenizer,
    build_encoder,
    load_reference,
    pinned_model,
)
from ensemble.learning.progress import Step, bar
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.tuning_loss import Outcomes
from ensemble.text import prompt_text

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

EPOCHS, BATCH = 3, 32
LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 1e-4, 0.01, 0.1
ALIKE_IN_LENGTH = 16  # batches are cut from so many batches' prompts, sorted by length
TRIALS = 3  # batches timed to foretell the rest
FORWARD_SHARE = 0.5  # of the time a step takes, as the lower layers are not trained


def tuned_encoder(
    place: Path,
    table: OutcomeTable,
    groups: npt.NDArray[np.int64],
    *,
    model: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = False,
    on_step: Step = lambda _: None,
) -> Path:
    """Train ``model`` (hub id or folder; ``None`` for the pinned wheel) on all prompts of ``table``.

    Exports it to a new folder in ``place`` and returns that. A hash is part of its name: no two tunings
    have one name.

    Raises as ``encoders.load_reference`` and ``tune`` do.
    """
    source = load_reference(pinned_model() if model is None else model)
    tune(source, table, groups, seed=seed, progress=progress, on_step=on_step)
    folder = build_encoder(
        place / "tuned",
        "w8",
        source,
        origin=WHEEL_ORIGIN if model is None else str(model),
        license=WHEEL_LICENSE if model is None else None,
        trained=f"its upper layers were trained on {table.n_prompts:,} prompts and their outcomes",
    )
    digest = hashlib.sha256((folder / GRAPH).read_bytes()).hexdigest()
    return folder.rename(place / f"tuned-{digest[:12]}-w8")


def tune(
    model: SentenceTransformer,
    table: OutcomeTable,
    groups: npt.NDArray[np.int64],
    *,
    seed: int = 0,
    progress: bool = False,
    on_step: Step = lambda _: None,
) -> None:
    """Train ``model``, as ``encoders.load_reference`` gives it, in place.

    ``groups`` (n_prompts,) of near-duplicates. ``on_step`` is told beforehand how long it will take. It runs
    on the GPU where there is one, in bfloat16 where that is faster; the model is left on the CPU.

    Raises ``ConfigError`` for a model whose layers are not found.
    """
    import torch

    upper = _upper_layers(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval().requires_grad_(False)
    for layer in upper:
        layer.requires_grad_(True).train()
    reader = Reader(bare_tokenizer(model).encode(), int(model.max_seq_length))
    ids = reader.read([prompt_text(prompt) for prompt in table.prompts])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        training = _Training(model, list(upper.parameters()), ids, Outcomes.of(table, groups, device), seed)
        takes = _spoken(training.foretold())
        on_step(f"tuning the encoder on {len(ids):,} prompts: {takes} on this {device.type.upper()}")
        with bar(progress, (EPOCHS + 1) * training.n_batches, "tuning the encoder") as advance:
            training.run(advance)
    model.to("cpu").eval()


def _upper_layers(model: SentenceTransformer) -> torch.nn.ModuleList:
    """The upper half of the Transformer's layers, the larger half where they are odd."""
    from torch.nn import ModuleList

    n_layers = model[0].auto_model.config.num_hidden_layers
    stacks = [m for m in model[0].modules() if isinstance(m, ModuleList) and len(m) == n_layers]
    if not stacks:
        raise ConfigError(
            f"expected a model with a list of its {n_layers} layers, found none in "
            f"{type(model[0].auto_model).__name__}. Tune another model, or train without tuning."
        )
    return stacks[0][n_layers // 2 :]


class _Training:
    """One run over the prompts: the model, and the features that they had when last seen (``_seen``)."""

    def __init__(
        self,
        model: SentenceTransformer,
        parameters: Sequence[torch.nn.Parameter],
        ids: Sequence[Sequence[int]],
        outcomes: Outcomes,
        seed: int,
    ) -> None:
        self._model, self._parameters, self._ids, self._outcomes = model, parameters, ids, outcomes
        self._length = np.array([len(line) for line in ids])
        self._random = np.random.default_rng(seed)
        self._seen: torch.Tensor
        self.n_batches = -(-len(ids) // BATCH)

    def foretold(self) -> float:
        """Seconds that ``run`` will take, from those of a few batches of middling length."""
        middle = np.argsort(self._length)[len(self._ids) // 2 :][:BATCH]
        started = time.perf_counter()
        for _ in range(TRIALS):
            self._features(middle).sum().backward()
        step = (time.perf_counter() - started) / TRIALS
        return step * self.n_batches * (EPOCHS + FORWARD_SHARE)

    def run(self, on_batch: Callable[[], None]) -> None:
        """Move the parameters; ``on_batch`` is called (EPOCHS + 1) * n_batches times."""
        import torch

        steps = EPOCHS * self.n_batches
        optimizer = torch.optim.AdamW(self._parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        pace = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (WARM_UP * steps), 1 - step / steps)
        )
        self._see_all(on_batch)
        for _ in range(EPOCHS):
            for rows in self._batches():
                optimizer.zero_grad()
                self._loss(rows).backward()
                torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
                optimizer.step()
                pace.step()
                on_batch()

    def _see_all(self, on_batch: Callable[[], None]) -> None:
        import torch

        order, parts = np.argsort(self._length), []
        with torch.no_grad():
            for rows in _cut(order, BATCH):
                parts.append(self._features(rows))
                on_batch()
        self._seen = torch.cat(parts)[torch.as_tensor(np.argsort(order), device=parts[0].device)]

    def _batches(self) -> list[npt.NDArray[np.int64]]:
        """All prompts in random batches; those of one batch are alike in length, which spares padding."""
        batches = []
        for part in _cut(self._random.permutation(len(self._ids)), BATCH * ALIKE_IN_LENGTH):
            batches += _cut(part[np.argsort(self._length[part])], BATCH)
        return [batches[k] for k in self._random.permutation(len(batches))]

    def _features(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """What an exported encoder would make of these prompts, (n_rows, n_features)."""
        import torch

        lengths = self._length[rows][:, None]
        ids = np.full((len(rows), lengths.max()), self._model.tokenizer.pad_token_id or 0)
        for line, row in zip(ids, rows, strict=True):
            line[: self._length[row]] = self._ids[row]
        mask = np.arange(ids.shape[1]) < lengths
        device = self._outcomes.reward.device
        tokens = (torch.as_tensor(array, device=device) for array in (ids, mask.astype(np.int64)))
        with torch.autocast(device.type, torch.bfloat16, enabled=_has_bfloat16(device)):
            return side_by_side(*blocks(self._model, *tokens).values())

    def _loss(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Of the guesses for these prompts; and their features are as of now."""
        import torch

        at = torch.as_tensor(rows, device=self._outcomes.reward.device)
        features = self._features(rows)
        self._seen[at] = features.detach()
        return self._outcomes.loss(at, features @ self._seen.T)


def _cut(rows: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster there; if not, they are in float32."""
    import torch

    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def _spoken(seconds: float) -> str:
    return "under a minute" if seconds < 60 else f"about {seconds / 60:.0f} min"
