"""What is shipped: the wheel holds the package and its routers, and routes where nothing else is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENCODER, ROUTER = "ensemble/_routers/encoders/all-minilm-l6-v2-depths-int8/", "ensemble/_routers/default/"
SHIPPED = {
    *("ensemble/py.typed", "ensemble/_routers/pool.toml"),
    *(ENCODER + name for name in ("encoder.json", "encoder.onnx", "tokenizer.json", "NOTICE")),
    *(ROUTER + name for name in ("manifest.json", "head.onnx", "CARD.md")),
}
ROUTE = """
import importlib.util, json, ensemble
decision = ensemble.route("Prove that the square root of 2 is irrational.")
absent = [name for name in ("torch", "sklearn", "pyarrow", "training", "benchmarks", "tests")
          if importlib.util.find_spec(name) is None]
print(json.dumps([ensemble.__file__, decision.member, decision.propensity, absent]))
"""


def build(target: str, source: Path, out: Path) -> Path:
    """Without isolation: hatchling comes with the extra ``dev``, so nothing is fetched."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_package_alone_and_all_of_it(wheel: Path) -> None:
    names = contents(wheel)
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"ensemble", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    assert not SHIPPED - names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ensemble").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}
    assert [name for name in names if name.endswith("dist-info/licenses/LICENSE")]


def test_a_wheel_made_from_the_source_archive_is_the_same(wheel: Path, tmp_path: Path) -> None:
    archive = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as opened:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and later
            opened.extraction_filter = tarfile.data_filter
        opened.extractall(tmp_path)
    again = build("wheel", tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "again")
    assert contents(again) == contents(wheel)


def test_it_routes_in_an_empty_environment(
    wheel: Path, tmp_path: Path, callers_environment: dict[str, str]
) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    python, ensemble = (tmp_path / "empty" / "bin" / name for name in ("python", "ensemble"))
    # In the caller's own environment: pip needs its settings, its cache and its registry.
    pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), f"{wheel}[cpu]"]
    installed = subprocess.run(pip, env=callers_environment, capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr

    def run(*command: object) -> str:
        elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=elsewhere, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    found, member, propensity, absent = json.loads(run(python, "-c", ROUTE))
    assert Path(found).is_relative_to(tmp_path) and member and 0 < propensity <= 1
    assert absent == ["torch", "sklearn", "pyarrow", "training", "benchmarks", "tests"]
    assert "route" in run(ensemble, "--help")
