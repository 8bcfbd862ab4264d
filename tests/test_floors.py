"""The floors of the house: a file imports only from the lines below its own, and foreign ones in one place.

A new file fails here until it has been given its place.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ensemble"

# Top to bottom. Files of one line never import each other.
FLOORS = """
    4   __main__ cli_collect cli_learning cli_log demo
    4   cli
    4   __init__
    3   engine
    3   batch exchange
    3   request stream
    3   hops parts
    3   bounds health
    3   asked router
    2   alarms bundle catalog config dispatch encoder head outcomes policy pool prior show speeds text
    1   log_reader sendable
    1   log_database log_queue
    1   log_outage
    1   log_engine
    1   budget connections cooling eligibility log_rows manifest members replies sends sessions
    1   inference log_file log_retention log_schema log_statements records threads together toml_file
    0   errors plain_file
"""
LINES = [line.split()[1:] for line in FLOORS.strip().splitlines()[::-1]]
HEIGHT = {name: height for height, line in enumerate(LINES) for name in line}
COMMANDS = ("cli_collect", "cli_learning", "cli_log")  # the only ones to reach into ensemble.learning
LEARNING_STANDS_ON = HEIGHT["engine"]  # floors 0 to 3

# Where each foreign library may be imported, under ensemble/.
HOMES = {
    "click": ["cli*.py", "demo.py"],
    "httpx": ["connections.py"],
    "litellm": ["catalog.py", "connections.py", "dispatch.py", "demo*.py"],
    "numpy": ["*"],
    "onnx": ["learning/*"],
    "onnxruntime": ["inference.py"],
    "pyarrow": ["learning/*"],
    "rich": ["cli*.py", "demo.py", "learning/*", "show.py"],
    "scipy": ["learning/*"],
    "sentence_transformers": ["learning/depths.py", "learning/encoders*", "learning/tun*.py"],
    "sklearn": ["learning/*"],
    "sqlalchemy": ["log_*.py", "outcomes.py"],
    "tokenizers": ["encoder.py"],
    "torch": ["learning/depths.py", "learning/encoders*", "learning/tun*.py"],
}
LONGEST_FILE = 300


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all that a file imports, at its top or later; of ours, the modules."""
    package = (path.parent.relative_to(ROOT) / "_").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level]] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            yield from (name if is_ours(name := f"{whole}.{a.name}") else whole for a in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            told = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
            yield from (name for name in map(str, told[:1]) if name[:1].isalpha())


def is_ours(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def inside(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


SERVING = [path for path in files("ensemble") if path.parent == PACKAGE]
LEARNING = files("ensemble/learning")


def test_every_serving_file_has_its_place_and_every_place_its_file() -> None:
    assert sorted(path.stem for path in SERVING) == sorted(HEIGHT)


@pytest.mark.parametrize("path", SERVING, ids=inside)
def test_serving_files_import_downwards(path: Path) -> None:
    for name in imported(path):
        top, _, module = name.partition(".")
        if top != "ensemble":
            continue
        if module.startswith("learning"):
            assert path.stem in COMMANDS, f"{path.name} serves, and imports {name}"
        else:
            below = HEIGHT[module or "__init__"] < HEIGHT[path.stem]
            assert below, f"{path.name} imports {name}, which is not below it"


@pytest.mark.parametrize("path", LEARNING, ids=inside)
def test_learning_stands_on_the_engine(path: Path) -> None:
    for name in imported(path):
        if name.startswith("ensemble") and not name.startswith("ensemble.learning"):
            height = HEIGHT[name.partition(".")[2] or "__init__"]
            assert height <= LEARNING_STANDS_ON, f"{inside(path)} imports {name}, from above"


def test_learning_has_no_circles() -> None:
    stands_on = {f"ensemble.learning.{path.stem}": set(imported(path)) for path in LEARNING}
    graphlib.TopologicalSorter(stands_on).prepare()


@pytest.mark.parametrize("path", files("ensemble"), ids=inside)
def test_foreign_libraries_are_imported_at_home(path: Path) -> None:
    foreign = {name.partition(".")[0] for name in imported(path)} - {"ensemble", *sys.stdlib_module_names}
    for name in foreign:
        homes = HOMES.get(name, [])
        assert any(fnmatch(inside(path), home) for home in homes), f"{name} in {inside(path)}, not in {homes}"


@pytest.mark.parametrize(("here", "there"), [("training", "benchmarks"), ("benchmarks", "training")])
def test_training_and_benchmarks_keep_apart(here: str, there: str) -> None:
    for path in files(here):
        assert there not in {name.partition(".")[0] for name in imported(path)}, path.name


@pytest.mark.parametrize("path", files("ensemble"), ids=inside)
def test_files_stay_short(path: Path) -> None:
    n_lines = len(path.read_text("utf-8").splitlines())
    assert n_lines <= LONGEST_FILE, f"{inside(path)}: {n_lines} lines. Does it answer two questions?"
