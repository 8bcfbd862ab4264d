"""The README tells the truth: its example prints what it says, its commands and files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ensemble.budget import Budget
from ensemble.cli import main
from ensemble.config import read_settings
from ensemble.pool import Pool

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n# runs in the tests\n(.*?)```\n```text\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^ensemble ([a-z]+)([^\n]*)", README, re.MULTILINE)


@pytest.mark.parametrize(("code", "printed"), EXAMPLES)
def test_an_example_prints_what_stands_below_it(code: str, printed: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stderr == ""
    assert run.stdout == printed


def test_there_is_an_example() -> None:
    assert EXAMPLES


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_a_command_exists_with_the_options_it_is_shown_with(name: str, arguments: str) -> None:
    context = click.Context(main)
    command = main.get_command(context, name)
    assert command is not None
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", arguments)) <= known


def test_the_map_names_files_that_exist() -> None:
    cells = re.findall(r"^\| (`[^|]*) \|", README, re.MULTILINE)
    files = [name for cell in cells for name in re.findall(r"`([a-z_]+\.py)`", cell)]
    assert len(files) > 8
    assert [name for name in files if not (ROOT / "ensemble" / name).is_file()] == []


def test_the_settings_and_the_pool_in_the_readme_are_such(tmp_path: Path) -> None:
    budgets, pool, settings = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "ensemble.toml").write_text(settings + budgets, encoding="utf-8")
    read = read_settings(tmp_path / "ensemble.toml")
    assert read.pop("budgets") == [Budget(20.0, per="team")]
    assert set(read) == {"router", "pool", "log", "log_mode"}
    (tmp_path / "pool.toml").write_text(pool, encoding="utf-8")
    from ensemble.catalog import look_up

    assert Pool.load(tmp_path / "pool.toml", look_up).names == ("big", "ours")
