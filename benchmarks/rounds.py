"""What did each method forecast, fold by fold? Fits them, and keeps what was fitted.

A full run takes long: every (method, fold) is stored at once, and an interrupted run goes on where it
stopped. A stored result is named by a hash of all that decides its content: the problem's rows, features and
folds, the method's settings and source code, and the numerical libraries. What changed is fitted anew; the
files of before stay, and may be deleted at any time.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.protocol import Candidate, Fold, Forecast, Index, Learner, Problem
from ensemble.errors import InputError
from ensemble.learning import metrics

OWN_CODE = ("benchmarks.", "ensemble.")
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
ARRAYS = ("reward", "cost", "reward_std", "output_tokens")


@dataclass(frozen=True, eq=False)
class Round:
    """One method in one fold: its forecasts for the ``validation`` part, from ``train``, and for the ``test``
    part, from all that may be learned from. ``setting`` is the one chosen, ``seconds`` what its last fit
    and forecast took."""

    validation: Forecast
    test: Forecast
    setting: str
    seconds: float


@dataclass(frozen=True, eq=False)
class Run:
    """One method in all folds, in their order. ``kind`` is the candidate's, or "mark"."""

    name: str
    kind: str
    rounds: tuple[Round, ...]

    def pooled(self, problem: Problem) -> Forecast:
        """The test forecasts of all folds in the order of the table's rows."""
        order = np.argsort(np.concatenate([fold.test for fold in problem.folds]))
        tests = [round_.test for round_ in self.rounds]

        def join(name: str) -> Any:
            parts = [getattr(test, name) for test in tests]
            return None if parts[0] is None else np.concatenate(parts)[order]

        joined: dict[str, Any] = {name: join(name) for name in ARRAYS}
        return Forecast(**joined, is_probability=tests[0].is_probability)


def run(
    candidate: Candidate, problem: Problem, store: Path, on_fold: Callable[[str], None] = lambda _: None
) -> Run:
    """Every fold of ``problem``, out of the folder ``store`` where it is there already; ``on_fold`` is told
    the candidate's name as each begins."""
    name = key(candidate, problem)
    rounds = []
    for k, fold in enumerate(problem.folds):
        on_fold(candidate.name)
        path = store / f"{_stem(candidate, problem, k)}.{name}.npz"
        if not path.is_file():
            _save(path, play(candidate, problem, fold))
        rounds.append(_load(path))
    return Run(candidate.name, candidate.kind, tuple(rounds))


def play(candidate: Candidate, problem: Problem, fold: Fold) -> Round:
    """Choose by AIQ over linear spend on validation, the first of equals; refit on all that may be learned.

    :raises InputError: a forecast of another shape than asked for, or not finite.
    """
    tried = [_forecast(setting, problem, fold.train, fold.validation) for setting in candidate.grid]
    reward, cost = problem.reward[fold.validation], problem.cost[fold.validation]
    spend = metrics.spend_range(reward, cost)

    def aiq(forecast: Forecast) -> float:
        return metrics.aiq(metrics.cost_quality_curve(forecast.reward, forecast.cost, reward, cost), spend)

    best = int(np.argmax([aiq(forecast) for forecast in tried])) if len(tried) > 1 else 0
    started = time.perf_counter()
    test = _forecast(candidate.grid[best], problem, fold.learned, fold.test)
    seconds = time.perf_counter() - started
    return Round(tried[best], test, test.note or repr(candidate.grid[best]), seconds)


def _forecast(setting: Learner, problem: Problem, known: Index, wanted: Index) -> Forecast:
    forecast = setting.forecast(problem.learned(known), problem.asked(wanted), seed=problem.seed)
    expected = (len(wanted), problem.table.n_members)
    for name in ARRAYS:
        array = getattr(forecast, name)
        if array is not None and (np.shape(array) != expected or not np.isfinite(array).all()):
            raise InputError(
                f"{setting!r}: expected finite {name} of shape {expected} (prompts, members), found "
                f"{np.shape(array)} with {np.isfinite(array).sum()} values finite: mend the method"
            )
    return forecast


def _stem(candidate: Candidate, problem: Problem, fold: int) -> str:
    """What a person looks for in the folder; the hash behind it is what counts."""
    parts = (problem.name, problem.split, problem.control or "as it is", candidate.name, f"fold {fold + 1}")
    return ".".join(re.sub(r"[^\w-]+", "_", part) for part in parts)


def key(candidate: Candidate, problem: Problem) -> str:
    """A hash of all that decides a candidate's fits: rows, settings, code and libraries."""
    hashed = hashlib.sha256(f"{problem.digest} {candidate.grid!r}".encode())
    modules = _modules(candidate)
    found = code(modules)
    for name, text in sorted(found.items()):
        hashed.update(f"{name}\0{text}\0".encode())
    if not modules <= found.keys():
        hashed.update(os.urandom(16))  # typed into a notebook: who can tell whether it is what it was?
    for library in LIBRARIES:
        hashed.update(f"{library} {_version(library)}".encode())
    return hashed.hexdigest()[:20]


def _modules(candidate: Candidate) -> set[str]:
    """Where the code stands: this file's, the settings', and that of the methods they may wrap."""
    inner = [getattr(setting, "method", setting) for setting in candidate.grid]
    return {__name__} | {type(thing).__module__ for thing in (*candidate.grid, *inner)}


def code(modules: Iterable[str]) -> dict[str, str]:
    """The code of ``modules`` and of every module of ours that they import, at whatever depth. It is written
    out from its syntax tree, so that docstrings, comments and white space don't count."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        spec = None if name in found else _spec(name)
        if spec is not None and spec.origin is not None:
            found[name], imported = _read(spec.origin, spec.parent)
            waiting += imported
    return found


@functools.cache  # what runs is what was there when it was imported
def _read(path: str, package: str | None) -> tuple[str, frozenset[str]]:
    """A file's code, and what it imports of ours."""
    tree = ast.parse(Path(path).read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree), frozenset(
        name for name in _imported(tree, package) if name.startswith(OWN_CODE)
    )


def _spec(name: str) -> ModuleSpec | None:
    """``None`` where this is no module, but a name in one."""
    if name in sys.modules:
        return sys.modules[name].__spec__
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.util.find_spec(name)
    return None


def _imported(tree: ast.Module, package: str | None) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return names


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _save(path: Path, played: Round) -> None:
    """All of it or nothing: a file half written when the power went must not look like a result."""
    content: dict[str, object] = {"setting": played.setting, "seconds": played.seconds}
    for part in ("validation", "test"):
        forecast = getattr(played, part)
        content[f"{part}_is_probability"] = forecast.is_probability
        for name in ARRAYS:
            if getattr(forecast, name) is not None:
                content[f"{part}_{name}"] = np.asarray(getattr(forecast, name), np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    with unfinished.open("wb") as file:
        np.savez(file, **content)  # type: ignore[arg-type]
    unfinished.replace(path)


def _load(path: Path) -> Round:
    with np.load(path) as stored:

        def forecast(part: str) -> Forecast:
            arrays: dict[str, Any] = {
                name: stored[f"{part}_{name}"].astype(np.float64)
                for name in ARRAYS
                if f"{part}_{name}" in stored
            }
            return Forecast(**arrays, is_probability=bool(stored[f"{part}_is_probability"]))

        return Round(
            forecast("validation"), forecast("test"), str(stored["setting"]), float(stored["seconds"])
        )
