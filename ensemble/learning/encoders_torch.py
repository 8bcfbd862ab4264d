"""How do a million prompts become features on a GPU? By torch, in batches of few shapes.

    texts -> windows of them -> tokens, one window ahead -> buckets of like length -> batches -> features
                                                                                  in the texts' order

The features are those of the exported fp32 graph (depths.py): in fp32 to 1e-4, in bf16 not. So a TorchEncoder
has an id and hashes of its own, and neither a cache nor a log takes its features for the graph's. To learn a
router that the graph will serve, on a GPU too, open the graph itself (``Encoder.load(folder, "cuda")``, with
the extra ``gpu``): its features are the same on every device, but that ``int8`` may round some to the next
step (eight_bit_products.py).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ensemble.encoder import TOKENIZER, Reader
from ensemble.errors import ConfigError, EnsembleWarning, InputError
from ensemble.inference import Device
from ensemble.learning.depths import blocks, side_by_side
from ensemble.learning.encoders import WHEEL_ORIGIN, bare_tokenizer, load_reference, pinned_model
from ensemble.records import FloatArray

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Precision = Literal["fp32", "bf16"]
BUCKETS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)  # tokens that a text is padded up to
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 131_072}  # padded
WINDOW = 8192  # texts that are sorted by length and held at a time


class TorchEncoder:
    """Text to features through torch, as ``Encoder`` gives them through onnxruntime.

    ``id`` is the model's name with the precision, ``n_features`` the width, ``max_tokens`` how many tokens of
    a text are read; ``device`` ("cpu" or "cuda") and ``provider`` tell where it runs, ``threads`` on how many
    of the CPU's, ``precision`` how it multiplies, ``tokens_per_batch`` how much at once. ``sha256`` are the
    hex digests of its weights, to which the precision belongs, and of its tokenizer.
    """

    def __init__(
        self, model: SentenceTransformer, name: str, device: Literal["cpu", "cuda"], precision: Precision
    ) -> None:
        """``model`` as ``load_reference`` gives it; it is moved to the ``device``."""
        import torch

        tokenizer = bare_tokenizer(model).encode()
        self.id = f"{name}-torch-{precision}"
        self.sha256: Mapping[str, str] = {
            f"weights.{precision}": _digest(model),
            TOKENIZER: hashlib.sha256(tokenizer).hexdigest(),
        }
        self.device, self.precision = device, precision
        self.provider = f"torch, {torch.cuda.get_device_name()}" if device == "cuda" else "torch, CPU"
        self.threads = int(torch.get_num_threads())
        self.max_tokens = int(model.max_seq_length)
        self.tokens_per_batch = TOKENS_PER_BATCH[device]
        self._buckets = [*(size for size in BUCKETS if size < self.max_tokens), self.max_tokens]
        self._pad_id = int(model.tokenizer.pad_token_id or 0)
        self._reader = Reader(tokenizer, self.max_tokens)
        self._model = model.to(device).eval()
        self.n_features = self._run(self._reader.read(["a"])).shape[1]

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None = None,
        device: Device = "auto",
        precision: Precision | None = None,
    ) -> TorchEncoder:
        """Open a sentence-transformers model: hub id or folder, ``None`` for the pinned wheel.

        ``device="auto"`` takes CUDA where torch offers it. ``precision`` ``None`` is bf16 on CUDA, fp32 on a
        CPU. Warns with ``EnsembleWarning`` when it ends up elsewhere than asked. Raises ``ConfigError`` for
        another device or precision, and as ``load_reference`` and ``pinned_model`` do.
        """
        if precision not in (None, *get_args(Precision)):
            raise ConfigError(f'expected precision "fp32", "bf16" or None, found {precision!r}')
        name = pathlib.PurePath(WHEEL_ORIGIN if model is None else model).name.lower()
        source = load_reference(pinned_model() if model is None else model, attention="sdpa")
        got = found_device(device)
        return cls(source, name, got, precision or ("bf16" if got == "cuda" else "fp32"))

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """The features of each text, float32 (n_prompts, n_features), in the order of ``texts``.

        Raises ``InputError`` for anything but a sequence of strings that are valid Unicode.
        """
        if isinstance(texts, str):
            raise InputError("expected a sequence of texts, found one string. Pass [text] instead.")
        return np.concatenate([np.empty((0, self.n_features), np.float32), *self.stream(texts)])

    def stream(self, texts: Iterable[str]) -> Iterator[FloatArray]:
        """The same for any number of texts: float32 (at most WINDOW, n_features) at a time, in their order.

        Takes in two windows of texts at most before it gives out the first; memory does not grow with more.
        Raises as ``encode`` does when it comes to such a text, whose position it counts within its window.
        """
        rest = iter(texts)
        with ThreadPoolExecutor(1) as ahead:  # the tokenizer reads on while the GPU computes
            reading: list[Future[list[list[int]]]] = []
            while window := list(itertools.islice(rest, WINDOW)):
                reading.append(ahead.submit(self._reader.read, window))
                if len(reading) == 2:
                    yield self._in_order(reading.pop(0).result())
            for last in reading:
                yield self._in_order(last.result())

    def _in_order(self, ids: Sequence[list[int]]) -> FloatArray:
        features = np.empty((len(ids), self.n_features), np.float32)
        for rows in self._batches([len(line) for line in ids]):
            features[rows] = self._run([ids[row] for row in rows])
        return features

    def _batches(self, lengths: Sequence[int]) -> Iterator[npt.NDArray[np.intp]]:
        """Row numbers by bucket: of each bucket batches of one shape, and one smaller one of what is left."""
        bucket = np.searchsorted(self._buckets, lengths)
        for place in np.unique(bucket):
            rows = np.flatnonzero(bucket == place)
            size = max(1, self.tokens_per_batch // self._buckets[place])
            yield from np.split(rows, range(size, len(rows), size))

    def _run(self, ids: Sequence[Sequence[int]]) -> FloatArray:
        """(len(ids), n_features) of texts of one bucket, given by their tokens."""
        import torch

        lengths = np.array([[len(line)] for line in ids])
        width = self._buckets[int(np.searchsorted(self._buckets, lengths.max()))]
        batch = np.full((len(ids), width), self._pad_id, np.int64)
        for row, line in zip(batch, ids, strict=True):
            row[: len(line)] = line
        mask = (np.arange(width) < lengths).astype(np.int64)
        with torch.inference_mode():
            told, where = (torch.from_numpy(array).to(self.device) for array in (batch, mask))
            made = blocks(self._model, told, where, self._rounding())
            features = side_by_side(*made.values()).float().cpu()
        return np.asarray(features.numpy(), np.float32)

    def _rounding(self) -> Any:
        """In which the Transformer runs: norms and sums stay in fp32 in bf16 too."""
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bf16")


def found_device(asked: Device) -> Literal["cpu", "cuda"]:
    """Where torch will run; warns with ``EnsembleWarning`` where that is elsewhere than asked."""
    import torch

    if asked not in get_args(Device):
        raise ConfigError(f'expected device "auto", "cpu" or "cuda", found {asked!r}')
    has = bool(torch.cuda.is_available())
    if asked == "cuda" and not has:
        warnings.warn(
            f"asked torch for CUDA, got the CPU (torch {torch.__version__} finds no GPU that it can use). "
            "Install a CUDA build of torch, with a driver that fits it.",
            EnsembleWarning,
            stacklevel=3,
        )
    return "cuda" if has and asked != "cpu" else "cpu"


def _digest(model: torch.nn.Module) -> str:
    """Of the names and values of all weights."""
    hashed = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        hashed.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        hashed.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()
