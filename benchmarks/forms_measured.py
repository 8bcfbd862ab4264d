"""How large and how fast is a form of the encoder, does a batch change its features, how near is it to fp32?

Quality of routing is another question: forms_quality.py.
"""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.latency_texts import Texts
from benchmarks.stopwatch import Turn, alone, race
from ensemble import policy
from ensemble.encoder import GRAPH, TOKENIZER, Encoder
from ensemble.inference import open_session
from ensemble.parts import Parts
from ensemble.records import FloatArray, Wishes

LENGTHS = (16, 64, 256)  # tokens
ROUNDS, CALLS = 12, 8  # turns of each form at each length, and timed calls in a turn
CONTRACT = 1e-5  # how far a text's features alone and in a batch may be apart
TOGETHER = 8  # texts of all lengths in a batch, when that is checked


def sizes(folder: Path) -> dict[str, float | None]:
    """``size_mb`` of the graph, and ``resident_mb``: by how much a process grows when it opens the folder,
    ``None`` where the system doesn't tell."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # a new process for each: memory is kept
        grown = pool.apply(_grown, (folder,))
    return {"size_mb": (folder / GRAPH).stat().st_size / 1e6, "resident_mb": grown}


def _grown(folder: Path) -> float | None:
    import tokenizers  # noqa: F401  libraries are loaded beforehand: they are not the encoder's

    open_session(_nothing(), "cpu")
    before = _resident_mb()
    encoder = Encoder.load(folder, "cpu")
    after = _resident_mb()
    assert encoder.n_features  # kept until here
    return None if before is None or after is None else after - before


def _nothing() -> bytes:
    """The smallest graph."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "nothing", [x], [y])
    opset = helper.make_opsetid("", 17)
    return bytes(helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString())


def _resident_mb() -> float | None:
    about = Path("/proc/self/status")
    return int(about.read_text("utf-8").split("VmRSS:")[1].split()[0]) / 1e3 if about.is_file() else None


def milliseconds(folders: Mapping[str, Path], seed: int) -> dict[str, dict[str, float]]:
    """By form: the median milliseconds of ``encode`` for one text of each of LENGTHS, timed in turns."""
    import tokenizers

    rng = random.Random(seed)
    encoders = {name: Encoder.load(folder, "cpu") for name, folder in folders.items()}
    tokenizer = tokenizers.Tokenizer.from_file(str(next(iter(folders.values())) / TOKENIZER))
    texts = Texts(tokenizer, rng)
    found: dict[str, dict[str, float]] = {name: {} for name in folders}
    for length in LENGTHS:
        turns = {name: _turn(encoder) for name, encoder in encoders.items()}
        times = race(turns, lambda n, length=length: texts.draw(n, length), ROUNDS, rng)  # type: ignore[misc]
        for name, timed in times.items():
            found[name][f"ms_{length}_tokens"] = timed.ms(50)
    return found


def _turn(encoder: Encoder) -> Turn:
    return alone(lambda text: encoder.encode([text]), CALLS)


def alone_vs_batch(encoder: Encoder, texts: Sequence[str], features: FloatArray, seed: int) -> float:
    """The largest difference of any feature between a text alone and in a batch: with texts of its own
    length (``features``, (n_texts, n_features), are those of all texts encoded at once), and of any."""
    each = np.concatenate([encoder.encode([text]) for text in texts])
    order = np.random.default_rng(seed).permutation(len(texts))
    mixed = np.empty_like(features)
    for start in range(0, len(order), TOGETHER):
        rows = order[start : start + TOGETHER]
        mixed[rows] = encoder.encode_tokens(encoder.tokens([texts[row] for row in rows]))
    return float(max(np.abs(each - features).max(), np.abs(each - mixed).max()))


def cosine(a: FloatArray, b: FloatArray) -> dict[str, float]:
    """``cosine_least`` and ``cosine_mean`` between rows of the same place."""
    found = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return {"cosine_least": float(found.min()), "cosine_mean": float(found.mean())}


def best_members(
    parts: Parts, features: FloatArray, texts: Sequence[str], dial: float
) -> npt.NDArray[np.intp]:
    """The index of the member that the router of ``parts`` would choose at the ``dial`` (USD), (n_texts,)."""
    terms = parts.terms
    characters = np.array([len(text) for text in texts], float)
    prediction = terms.prior.fill(parts.router.head.predict(features))
    expected = policy.expect(prediction, terms.pool, characters, terms.characters_per_token)
    value = policy.utility(prediction.reward, expected, Wishes(willingness_to_pay_usd=dial))
    best: npt.NDArray[np.intp] = value.argmax(axis=1)
    return best


def measure(
    folders: Mapping[str, Path], texts: Sequence[str], parts: Parts, against: str, seed: int
) -> dict[str, dict[str, Any]]:
    """All of the above by form, beside the form ``against``; ``share_differing`` is of the decisions at the
    pool's own dial, under the router of ``parts``, whose head was fitted to the shipped form."""
    dial = parts.pool.defaults.willingness_to_pay_usd
    times = milliseconds(folders, seed)
    exact = Encoder.load(folders[against], "cpu").encode(texts)
    chosen = best_members(parts, exact, texts, dial)
    found: dict[str, dict[str, Any]] = {}
    for name, folder in folders.items():
        encoder = Encoder.load(folder, "cpu")
        features = encoder.encode(texts)
        apart = alone_vs_batch(encoder, texts, features, seed)
        differing = best_members(parts, features, texts, dial) != chosen
        found[name] = {
            **sizes(folder),
            **times[name],
            "alone_vs_batch": apart,
            "keeps_contract": apart <= CONTRACT,
            **cosine(exact, features),
            "share_differing": float(differing.mean()),
        }
    return found
