"""``import ensemble`` does nothing: proved in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ensemble

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    *("litellm", "onnx", "onnxruntime", "openai", "pandas", "pyarrow", "scipy", "sentence_transformers"),
    *("sklearn", "sqlalchemy", "tokenizers", "torch", "transformers"),
}

# Watches what an import reads and opens, and tells of it in JSON.
WATCH = """
import json, logging, os, sys, threading, warnings

class Watched(dict):
    def __getitem__(self, name): seen.append(str(name)); return super().__getitem__(name)
    def get(self, name, default=None): seen.append(str(name)); return super().get(name, default)
    def __contains__(self, name): seen.append(str(name)); return super().__contains__(name)

seen, events = [], []
filters = list(warnings.filters)
environment, os.environ = os.environ, Watched(os.environ)
sys.addaudithook(lambda event, _: events.append(event))
import ensemble
os.environ = environment
touched = [e for e in events if e.startswith(("socket.", "subprocess.", "os.system", "os.mkdir"))]
named = [logger for logger in logging.Logger.manager.loggerDict.values() if getattr(logger, "handlers", [])]
print(json.dumps({
    "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    "environment": seen,
    "touched": touched,
    "handlers": len(logging.root.handlers) + len(named),
    "threads": threading.active_count(),
    "same_filters": filters == list(warnings.filters),
}))
"""


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In an empty folder that is the home too, in a process that writes no bytecode."""
    environment = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, "-B", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def after_import(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("empty")
    done = run(WATCH, folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(folder.iterdir()) == []
    found: dict[str, Any] = json.loads(done.stdout)  # so it printed nothing of its own
    return found


def test_it_loads_no_library(after_import: dict[str, Any]) -> None:
    loaded = {*after_import["modules"]} - {"ensemble", *sys.stdlib_module_names}
    assert not loaded & {*HEAVY, "numpy", "click", "rich"}


def test_it_touches_nothing(after_import: dict[str, Any]) -> None:
    del after_import["modules"]
    expected = {"environment": [], "touched": [], "handlers": 0, "threads": 1, "same_filters": True}
    assert after_import == expected


def test_no_module_loads_a_heavy_library_before_it_is_used(tmp_path: Path) -> None:
    script = (
        "import importlib, pkgutil, sys, ensemble\n"
        "names = [module.name for module in pkgutil.walk_packages(ensemble.__path__, 'ensemble.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "assert len(names) > 20\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = run(script, tmp_path)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_what_is_exported_is_sorted_and_there() -> None:
    assert list(ensemble.__all__) == sorted(set(ensemble.__all__))
    for name in ensemble.__all__:
        assert getattr(ensemble, name) is not None
    assert set(ensemble.__all__) <= set(dir(ensemble))
    own = {name for name, value in vars(ensemble).items() if getattr(value, "__module__", "") == "ensemble"}
    assert {name for name in own if not name.startswith("_")} <= set(ensemble.__all__)


def test_what_is_not_exported_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = ensemble.no_such_name


def test_every_public_error_derives_from_one_base() -> None:
    errors = [getattr(ensemble, name) for name in ensemble.__all__ if name.endswith("Error")]
    assert len(errors) > 5
    assert all(issubclass(error, ensemble.EnsembleError) for error in errors)
