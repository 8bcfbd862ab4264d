"""What litellm's map knows is read from it, offline and in silence; what it doesn't know is None."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ensemble.catalog import look_up

DESCRIBED = """
[[members]]
name = "m"
model = "x/m"
usd_per_million_input = 1
usd_per_million_output = 1
context_window = 1
"""


def test_the_map_knows_prices_limits_and_abilities() -> None:
    entry = look_up("openai/gpt-4o-mini")
    assert entry is not None
    assert 0 < (entry.usd_per_million_cached_input or 0) < (entry.usd_per_million_input or 0)
    assert (entry.usd_per_million_input or 0) < (entry.usd_per_million_output or 0) < 10
    assert entry.context_window == 128_000
    assert {"tools", "vision", "json_schema"} <= (entry.abilities or set())
    reasoner = look_up("openai/o3")
    assert reasoner is not None and "reasoning" in (reasoner.abilities or set())


def test_the_map_knows_when_models_go_away() -> None:
    import litellm

    model, line = next(
        (model, line)
        for model, line in litellm.model_cost.items()
        if line.get("mode") == "chat" and len(line.get("deprecation_date", "")) == 10
    )
    entry = look_up(model)
    assert entry is not None and str(entry.retires) == line["deprecation_date"]


@pytest.mark.filterwarnings("ignore::UserWarning:pydantic")
def test_every_text_model_of_the_map_can_be_looked_up() -> None:
    import litellm

    models = [model for model, line in litellm.model_cost.items() if line.get("mode") == "chat"]
    entries = [look_up(model) for model in models[::25]]
    assert len(entries) > 100
    assert sum(entry is not None for entry in entries) > 0.9 * len(entries)
    for entry in filter(None, entries):
        price = entry.usd_per_million_input
        assert price is None or 0 <= price < 1000


@pytest.mark.parametrize(
    "model",
    [
        *("", "nobody", "nobody/nothing", "openai/no-such-model", "ollama/no-such-model"),
        *("huggingface/no/such", "text-embedding-3-small", "dall-e-3"),
    ],
)
def test_what_the_map_does_not_know_is_none_and_silent(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert look_up(model) is None
    assert capfd.readouterr() == ("", "")


def test_a_price_that_the_map_lacks_is_not_taken_for_free() -> None:
    import litellm

    priceless = next(
        model
        for model, line in litellm.model_cost.items()
        if line.get("mode") == "chat" and "input_cost_per_token" not in line and look_up(model)
    )
    entry = look_up(priceless)
    assert entry is not None and entry.usd_per_million_input is None


def test_a_described_pool_imports_no_litellm_and_touches_no_network(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(DESCRIBED)
    script = (
        "import sys, socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from ensemble.pool import Pool\n"
        "from ensemble.catalog import look_up\n"
        f"pool = Pool.load({str(path)!r}, look_up)\n"
        "assert 'litellm' not in sys.modules\n"
        "assert look_up('openai/gpt-4o').usd_per_million_input > 0\n"
        "assert look_up('ollama/no-such-model') is None\n"
        "assert 'litellm' in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "LITELLM_LOCAL_MODEL_COST_MAP"}
    root = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
