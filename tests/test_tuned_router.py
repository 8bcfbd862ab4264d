"""A router with an encoder of its own: who was kept from its tuning, and what is refused."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ensemble import bundle, cli
from ensemble.encoder import Encoder
from ensemble.errors import ConfigError, TableError
from ensemble.learning import figures
from ensemble.learning import train as module
from ensemble.learning.longform import write_table
from ensemble.learning.recipe import fit_head
from ensemble.learning.split import near_duplicates
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.train import train
from ensemble.router import Router
from worlds import table_of, unit, worded

SHIPPED = bundle.shipped_folder() / "encoders" / "all-minilm-l6-v2-depths-int8"


def test_prompts_whose_features_flatter_do_not_judge() -> None:
    """Half the prompts' features tell their outcomes, as after tuning on them; new prompts' tell nothing."""
    rng = np.random.default_rng(0)
    n = 600
    reward = (rng.random((n, 2)) < 0.5).astype(float)
    leak = np.hstack([3 * reward - 1.5, np.zeros((n, 6))]) * (np.arange(n) < n // 2)[:, None]
    features = (rng.normal(size=(n, 8)) + leak).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    fresh, table, groups = unit(rng, 400, 8), table_of(reward), np.arange(n)

    def spread(judged: np.ndarray | None) -> float:
        """Of what is expected of new prompts, all of which are worth a half."""
        weights, _ = fit_head(features, table, groups, judged=judged)
        return float(np.abs(weights.predict(fresh)[0] - 0.5).mean())

    assert spread(np.arange(n // 2, n)) < 0.6 * spread(None)


def test_a_router_is_trained_with_an_encoder_of_its_own(tmp_path: pathlib.Path) -> None:
    table, _ = worded(400, 0)
    said: list[str] = []
    trained = train(
        table, Encoder.load(SHIPPED), SHIPPED, tmp_path / "mine", tune_encoder=True, on_step=said.append
    )
    router = Router.load(trained.folder)
    assert router.manifest.encoder_id.startswith("tuned-")
    assert (tmp_path / "encoders" / router.manifest.encoder_id / "encoder.onnx").is_file()
    n_tuned = router.manifest.recipe["encoder_tuned_on"]
    assert 0.75 * 320 < n_tuned < 0.85 * 320  # a fifth of all is held out, a fifth of the rest kept back
    assert any(line.startswith(f"tuning the encoder on {n_tuned} prompts") for line in said)
    card = (trained.folder / "CARD.md").read_text()
    assert f"| encoder tuned on | {n_tuned} |" in card and "Tasks it never saw" in card

    again: list[str] = []
    folder = tmp_path / "encoders" / router.manifest.encoder_id
    train(table, router.encoder, folder, tmp_path / "next", on_step=again.append)
    assert any("not as it was published" in line for line in again)
    assert f"{n_tuned} prompts" in (tmp_path / "next" / "CARD.md").read_text()


class SeenEnough(Exception):  # noqa: N818
    """What was to be seen was seen."""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What ``train`` hands to the tuning, to the head and to the figures; nothing is really tuned."""
    told: dict[str, Any] = {}

    def tuned(place: pathlib.Path, table: OutcomeTable, groups: np.ndarray, **options: Any) -> pathlib.Path:
        told.update(tuned_on=set(table.prompts), groups=groups, options=options)
        return SHIPPED

    def fitted(features: Any, table: OutcomeTable, groups: Any, **options: Any) -> Any:
        told.update(learned=list(table.prompts), judged=options["judged"])
        return fit_head(features, table, groups, **options)

    def measured(*_: Any, held_out: np.ndarray, judged: np.ndarray | None, **__: Any) -> Any:
        told.update(held_out=held_out, judged_rows=judged)
        raise SeenEnough

    for name, double in (("tuned_encoder", tuned), ("fit_head", fitted), ("measure", measured)):
        monkeypatch.setattr(module, name, double)
    return told


def test_what_is_measured_and_what_judges_was_kept_from_the_encoder(
    parts: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    table, _ = worded(400, 0)
    prompts = list(table.prompts)
    prompts[1::8] = [text + " Please." for text in prompts[0::8]]  # twins, which have to stay together
    table = table_of(table.reward, prompts=prompts, output_tokens=table.output_tokens)
    with pytest.raises(SeenEnough):
        train(table, Encoder.load(SHIPPED), SHIPPED, tmp_path / "mine", tune_encoder=True, tune_from="base")
    judged = {parts["learned"][row] for row in parts["judged"]}
    held_out = {table.prompts[row] for row in parts["held_out"]}
    assert judged == {table.prompts[row] for row in parts["judged_rows"]}
    assert parts["options"]["model"] == "base" and len(set(parts["groups"])) < len(parts["groups"])
    group = dict(zip(table.prompts, near_duplicates(table.prompts).tolist(), strict=True))
    sides = [{group[text] for text in side} for side in (parts["tuned_on"], judged, held_out)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert sum(map(len, (parts["tuned_on"], judged, held_out))) == len(set(table.prompts))


def test_baselines_choose_their_settings_where_the_head_does(tmp_path: pathlib.Path) -> None:
    chosen: list[int] = []
    rng = np.random.default_rng(0)
    table, learned, held_out = table_of(rng.random((300, 2))), np.arange(200), np.arange(200, 300)

    def fit_all(fitted: Any, judging: Any, seed: int) -> Any:
        chosen.extend([len(fitted.reward), len(judging.reward)])
        raise SeenEnough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "fit_all", fit_all)
        with pytest.raises(SeenEnough):
            figures._baselines(unit(rng, 300, 4), table, learned, learned, np.arange(150, 200), held_out, 0)
    assert chosen == [150, 50]


@pytest.mark.parametrize(
    ("n", "options", "error", "words"),
    [
        (60, {"features": np.zeros((60, 4), np.float32)}, ConfigError, "prompts to tune"),
        (200, {}, TableError, "at least 300 prompts to learn from to tune"),
        (60, {"tune_encoder": False, "tune_from": "base"}, ConfigError, "with tune_encoder=True"),
    ],
)
def test_what_cannot_be_tuned_on_is_said_before_anything_is_done(
    tmp_path: pathlib.Path, n: int, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    table, _ = worded(n, 0)
    with pytest.raises(error, match=words):
        train(table, Encoder.load(SHIPPED), SHIPPED, tmp_path / "mine", **{"tune_encoder": True} | options)
    assert not (tmp_path / "mine").exists()


def test_the_flag_reaches_the_training_and_goes_with_a_table_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "table.parquet"
    cells = ({"prompt_id": str(i), "prompt": f"prompt {i}"} for i in range(60))
    write_table(data, [cell | {"member": m, "reward": 1.0, "cost_usd": 0.1} for cell in cells for m in "ab"])
    asked: list[Any] = []
    monkeypatch.setattr(module, "train", lambda *_, **options: asked.append(options["tune_encoder"]))
    told = ["train", "--data", str(data), "--out", str(tmp_path / "out"), "--tune-encoder"]
    CliRunner().invoke(cli.main, told)
    assert asked == [True]
    for line, found in (
        ([*told, "--encoder", str(tmp_path)], "--encoder"),
        (["train", "--log", "x", *told[3:]], "--log"),
    ):
        refused = CliRunner().invoke(cli.main, line)
        assert refused.exit_code != 0 and f"found {found}" in refused.output
