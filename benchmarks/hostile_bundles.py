"""What if a router's folder was made to harm whoever opens it? Every case starts from one that opens."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.hostile_case import Case
from benchmarks.hostile_victim import (
    VALUES,
    WORDS,
    encoder,
    endless_head,
    greedy_head,
    head,
    moody_head,
    opened,
    tokenizer,
    victim,
)
from ensemble.bundle import LARGEST_ENCODER_FILE, LARGEST_FILE
from ensemble.errors import BundleError
from ensemble.manifest import FILES

NAN, INF = float("nan"), float("inf")
SMALL = "../encoders/small/"  # the encoder's folder, from the router's


def made(graph: Callable[[], Any] = head, **parts: Any) -> Callable[[Path], None]:
    """A folder of these parts, with the right hashes, is opened."""
    return lambda folder: opened(victim(folder, graph(), **parts))


def harmed(harm: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something is done to a sound folder, then it is opened."""

    def act(folder: Path) -> None:
        place = victim(folder)
        harm(place)
        opened(place)

    return act


def replaced(name: str, by: Callable[[Path], object]) -> Callable[[Path], None]:
    """One of its files is taken away, and something else put there."""

    def harm(place: Path) -> None:
        (place / name).rename(place.parent.parent / "taken away")
        by(place / name)

    return harmed(harm)


def said(text: str | bytes) -> Callable[[Path], None]:
    """Its manifest is replaced by this."""
    content = text.encode() if isinstance(text, str) else text
    return harmed(lambda place: (place / "manifest.json").write_bytes(content))


def twice(place: Path) -> None:
    path = place / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 0, "seed": 1'))


def more(place: Path) -> None:
    path = place / "manifest.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {"files": plain["files"] | {"../../etc/passwd": "0" * 64}}))


def link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "../taken away")


def vast(size: int) -> Callable[[Path], None]:
    """A file with a hole in it, which takes no room."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return write


def cut(name: str) -> Callable[[Path], None]:
    return harmed(lambda place: os.truncate(place / name, (place / name).stat().st_size // 2))


def outside(where: str) -> Callable[[Path], None]:
    """The head keeps its weights in another file."""

    def act(folder: Path) -> None:
        graph = head()
        weight = graph.graph.initializer[1]
        (folder / "weights").write_bytes(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = 1
        entry = weight.external_data.add()
        entry.key, entry.value = "location", where.format(folder=folder)
        opened(victim(folder, graph))

    return act


def long_spelling() -> bytes:
    """A Loop whose name's length takes three bytes: to protobuf the same."""
    content: bytes = endless_head().SerializeToString()
    return _grown(content, b"\x22\x04Loop", b"\x22\x84\x80\x00Loop")


def own_format(folder: Path) -> None:
    """onnxruntime's own format, in which references to other files are written differently."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "head.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(head().SerializeToString(), options, providers=["CPUExecutionProvider"])
    opened(victim(folder, (folder / "head.ort").read_bytes()))


def _grown(content: bytes, old: bytes, new: bytes) -> bytes:
    """The model with ``old`` spelled as ``new``, and what holds it as much longer."""
    import onnx

    parsed = onnx.load_model_from_string(content)
    graph = parsed.graph.SerializeToString()
    parsed.ClearField("graph")
    node = endless_head().graph.node[0].SerializeToString()
    longer = node.replace(old, new)
    graph = graph.replace(b"\x0a" + _varint(len(node)) + node, b"\x0a" + _varint(len(longer)) + longer)
    rest = parsed.SerializeToString()
    return bytes(rest + b"\x3a" + _varint(len(graph)) + graph)


def _varint(number: int) -> bytes:
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def _panics() -> bytes:
    return tokenizer({"type": "BPE", "vocab": {"a": 0}, "merges": ["a a"]})


def _hopeless() -> bytes:
    """Reads any short text; on a long one its regular expression gives up."""
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    return tokenizer(WORDS, pre_tokenizer=pattern)


CHANGED, MISSING, MANIFEST = "was changed|were changed", "missing or not a plain file", "manifest"
CASES = (
    Case("a router's folder with nothing wrong", made(), None),
    Case("an encoder named ../../etc", made(encoder_id="../../etc"), BundleError, "not a plain name"),
    Case("an encoder named /etc", made(encoder_id="/etc"), BundleError, "not a plain name"),
    Case(
        "an encoder's name of 10,000 letters", made(encoder_id="a" * 10_000), BundleError, "not a plain name"
    ),
    Case("a file more, named ../../etc/passwd", harmed(more), None),  # never looked for
    *(
        Case(f"{name.removeprefix(SMALL)}: {what}", replaced(name, by), BundleError, f"{MISSING}|{CHANGED}")
        for name in ("manifest.json", *FILES, SMALL + "encoder.onnx", SMALL + "tokenizer.json")
        for what, by in (("a link out of the folder", link), ("a pipe", os.mkfifo), ("a folder", os.mkdir))
    ),
    Case(
        "a manifest of more than 64 MB",
        replaced("manifest.json", vast(LARGEST_FILE + 1)),
        BundleError,
        "at most",
    ),
    Case("a head of 1 TB", replaced("head.onnx", vast(2**40)), BundleError, "at most"),
    Case(
        "an encoder of 1 TB",
        replaced(SMALL + "encoder.onnx", vast(LARGEST_ENCODER_FILE + 2**40)),
        BundleError,
        CHANGED,
    ),
    Case("a head cut in two", cut("head.onnx"), BundleError, CHANGED),
    Case("an encoder cut in two", cut(SMALL + "encoder.onnx"), BundleError, CHANGED),
    Case(
        "a head cut in two, its hash right",
        made(lambda: head().SerializeToString()[:200]),
        BundleError,
        "cannot open",
    ),
    Case("a manifest of 100,000 brackets", said("[" * 100_000), BundleError, MANIFEST),
    Case("a manifest of 20 MB of small tables", said("[" + "{}," * 6_600_000 + "{}]"), BundleError, MANIFEST),
    Case("a manifest that is not UTF-8", said(b"\xff\xfe\x00"), BundleError, MANIFEST),
    Case("a manifest with NaN", made(figures={"aiq": NAN}), BundleError, "NaN is no number"),
    Case("a manifest with 1e999", said('{"format": 1, "seed": 1e999}'), BundleError, "1e999 is no number"),
    Case(
        "a manifest with a number of 5,000 digits",
        said('{"format": 1' + "0" * 5_000 + "}"),
        BundleError,
        "4300",
    ),
    Case("a manifest that says a thing twice", harmed(twice), BundleError, "stands twice"),
    Case("a manifest of wrong types", made(members={"a": 1}), BundleError, "members should be of type list"),
    Case(
        "members that stand twice",
        made(members=[{"name": "a", "n_prompts": 1, "mean_reward": 1}] * 2),
        BundleError,
    ),
    Case(
        "a price of 400 digits",
        made(members=[{"name": "a", "n_prompts": 1, "mean_reward": 1, "usd_per_million_input": 10**400}]),
        BundleError,
        "not what is known of a member",
    ),
    Case(
        "a member's name that moves the cursor",
        made(members=[{"name": "\x1b[2J", "n_prompts": 1, "mean_reward": 1}]),
        BundleError,
        "not what is known of a member",
    ),
    Case("weights in /etc/hostname", outside("/etc/hostname"), BundleError, "self-contained"),
    Case("weights in a file outside", outside("../../weights"), BundleError, "self-contained"),
    Case("weights in a file beside the head", outside("weights"), BundleError, "self-contained"),
    Case("a head in onnxruntime's own format", own_format, BundleError, "cannot open"),
    Case(
        "a head with an operator of its own",
        made(lambda: head(then="Evil", domain="evil")),
        BundleError,
        "not a registered",
    ),
    Case("a head that loops 2^62 times", made(endless_head), BundleError, "Loop or a Scan"),
    Case("the same, spelled otherwise", made(long_spelling), BundleError, "Loop or a Scan"),
    Case("a head that asks for 40 TB", made(greedy_head), BundleError, "Failed to allocate"),
    Case(
        "a head of other shapes",
        made(lambda: head(then="Transpose")),
        BundleError,
        r"reward .* float32 \(2, 3\)",
    ),
    Case("a head that gives texts", made(lambda: head(then="Cast", to=8)), BundleError, "."),
    Case("a reward of NaN", made(lambda: head((NAN, *VALUES[1:]))), BundleError, "reward from 0 to 1"),
    Case("a reward of 2", made(lambda: head((2, *VALUES[1:]))), BundleError, "reward from 0 to 1"),
    Case(
        "an uncertainty without end", made(lambda: head((0.5, INF, 1, 1))), BundleError, "reward_std from 0"
    ),
    Case(
        "fewer tokens than none", made(lambda: head((0.5, 0.1, -1, 1))), BundleError, "output_tokens from 0"
    ),
    Case("NaN for a text, not when tried", made(moody_head), BundleError, "reward from 0 to 1"),
    Case(
        "an encoder that gives no features",
        made(encoder_graph=encoder("other")),
        BundleError,
        "can't be used",
    ),
    Case(
        "an encoder of no format",
        made(encoder_graph=encoder(ensemble_encoder_format="x")),
        BundleError,
        "format",
    ),
    Case(
        "an encoder that reads 10^9 tokens",
        made(encoder_graph=encoder(max_tokens="9" * 10)),
        BundleError,
        "8 to",
    ),
    Case(
        "an encoder that reads -5 tokens", made(encoder_graph=encoder(max_tokens="-5")), BundleError, "8 to"
    ),
    Case(
        "an encoder that reads 'many' tokens",
        made(encoder_graph=encoder(max_tokens="many")),
        BundleError,
        "used",
    ),
    Case("a tokenizer that is no JSON", made(tokens=b"[" * 10_000), BundleError, "readable by tokenizers"),
    Case("a tokenizer that makes its reader panic", made(tokens=_panics()), BundleError, "PanicException"),
    Case("a tokenizer that panics at some texts", made(tokens=_hopeless()), BundleError, "PanicException"),
)
