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
import shutil
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
EVEN = 16  # lengths are padded to its multiples: memory is kept for each shape that was met
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
        trained=f"the upper layers were trained on {table.n_prompts:,} prompts and their outcomes",
    )
    digest = hashlib.sha256((folder / GRAPH).read_bytes()).hexdigest()
    named = place / f"tuned-{digest[:12]}-w8"
    if named.exists():  # the same tuning once more
        shutil.rmtree(named)
    return folder.rename(named)


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
    on the GPU where there is one, in bfloat16 where that is faster; the model is left on the CPU. On a CPU
    the same table, seed and number of threads give the same weights, bit for bit.

    Raises ``ConfigError`` for a model whose layers are not found, ``InputError`` for a prompt without text.
    """
    import torch

    upper = _upper_layers(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval().requires_grad_(False)
    upper.requires_grad_(True)
    reader = Reader(bare_tokenizer(model).encode(), int(model.max_seq_length))
    ids = reader.read([prompt_text(prompt) for prompt in table.prompts])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        training = _Training(model, upper, ids, Outcomes.of(table, groups, device), seed)
        takes = _spoken(training.foretold())
        on_step(f"tuning the encoder on {len(ids):,} prompts: {takes} on this {device.type.upper()}")
        with bar(progress, (EPOCHS + 1) * training.n_batches, "tuning the encoder") as advance:
            training.run(advance)
    model.to("cpu").eval()


def _upper_layers(model: SentenceTransformer) -> torch.nn.ModuleList:
    """The upper half of the Transformer's layers, the larger half where they are odd."""
    from torch.nn import ModuleList

    bare = model[0].auto_model
    n_layers = int(getattr(bare.config, "num_hidden_layers", 0))
    stacks = [m for m in bare.modules() if isinstance(m, ModuleList) and len(m) == n_layers > 1]
    if not stacks:
        raise ConfigError(
            f"expected a model with a list of its {n_layers} layers, found none in {type(bare).__name__}. "
            "Tune another model, or train without tuning."
        )
    return stacks[0][n_layers // 2 :]


class _Training:
    """One run over the prompts: the model, and the features that they had when last seen (``_seen``)."""

    def __init__(
        self,
        model: SentenceTransformer,
        upper: torch.nn.ModuleList,
        ids: Sequence[Sequence[int]],
        outcomes: Outcomes,
        seed: int,
    ) -> None:
        import torch

        self._model, self._upper, self._ids, self._outcomes = model, upper, ids, outcomes
        self._length = np.array([len(line) for line in ids])
        self._random = np.random.default_rng(seed)
        with torch.no_grad():
            self._seen = self._features(np.array([0])).repeat(len(ids), 1)
        self.n_batches = len(_cut(np.arange(len(ids)), BATCH))

    def foretold(self) -> float:
        """Seconds that ``run`` will take, from those of a few batches."""
        self._upper.train()
        batches = self._batches()
        self._find_gradient(batches[0])  # the first has to set things up
        started = time.perf_counter()
        for rows in batches[:TRIALS]:
            self._find_gradient(rows)
        each = (time.perf_counter() - started) / min(TRIALS, len(batches))
        return each * self.n_batches * (EPOCHS + FORWARD_SHARE)

    def run(self, on_batch: Callable[[], None]) -> None:
        """Move the upper layers; ``on_batch`` is called (EPOCHS + 1) * n_batches times."""
        import torch

        steps, parameters = EPOCHS * self.n_batches, list(self._upper.parameters())
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        pace = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / (WARM_UP * steps), 1 - step / steps)
        )
        self._see_all(on_batch)
        self._upper.train()
        for _ in range(EPOCHS):
            for rows in self._batches():
                self._find_gradient(rows)
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                pace.step()
                on_batch()

    def _batches(self) -> list[npt.NDArray[np.int64]]:
        """All prompts in random batches; those of one batch are alike in length, which spares padding."""
        batches = []
        for part in _cut(self._random.permutation(len(self._ids)), BATCH * ALIKE_IN_LENGTH):
            batches += _cut(part[np.argsort(self._length[part])], BATCH)
        return [batches[k] for k in self._random.permutation(len(batches))]

    def _see_all(self, on_batch: Callable[[], None]) -> None:
        import torch

        self._upper.eval()
        with torch.no_grad():
            for rows in _cut(np.argsort(self._length), BATCH):
                self._seen[self._at(rows)] = self._features(rows)
                on_batch()

    def _find_gradient(self, rows: npt.NDArray[np.int64]) -> None:
        """Of the loss of what the others say of these prompts, whose features are from now on these."""
        import torch

        self._upper.zero_grad()
        features = self._features(rows)
        self._seen[self._at(rows)] = features.detach()
        self._outcomes.loss(self._at(rows), features @ self._seen.T).backward()
        if features.is_cuda:
            torch.cuda.synchronize()  # or foretold would time how fast work is handed over

    def _features(self, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """(n_rows, n_features) of unit length, as the exported encoder will make them but for dropout."""
        lengths = self._length[rows][:, None]
        ids = np.full((len(rows), -(-lengths.max() // EVEN) * EVEN), self._model.tokenizer.pad_token_id or 0)
        for line, row in zip(ids, rows, strict=True):
            line[: self._length[row]] = self._ids[row]
        mask = (np.arange(ids.shape[1]) < lengths).astype(np.int64)
        fast = _autocast(self._outcomes.reward.device)
        return side_by_side(*blocks(self._model, self._at(ids), self._at(mask), fast).values())

    def _at(self, numbers: npt.NDArray[np.int64]) -> torch.Tensor:
        """As a tensor where the model is."""
        import torch

        return torch.as_tensor(numbers, device=self._outcomes.reward.device)


def _cut(rows: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _autocast(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the processor has them, in float32 elsewhere."""
    import torch

    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        tell = getattr(torch.cpu, "get_capabilities", None)  # older versions of torch can't
        has = tell is not None and bool(tell().get("avx512_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=has)


def _spoken(seconds: float) -> str:
    return "under a minute" if seconds < 60 else f"about {seconds / 60:.0f} min"
