"""An encoder trained on a table: what it learns, and that nobody is fooled by what it has seen."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from click.testing import CliRunner
from sentence_transformers.sentence_transformer import modules

from ensemble import cli
from ensemble.encoder import Encoder
from ensemble.errors import ConfigError
from ensemble.learning.calibrate import pair_weight
from ensemble.learning.encoders import load_reference
from ensemble.learning.recipe import fit_head
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.train import train
from ensemble.learning.tune import tune, tuned_encoder
from ensemble.learning.tuning_loss import DIFFERENCE, SHARPNESS, TASK, Outcomes
from ensemble.router import Router
from tiny_models import VOCABULARY, tiny_model
from worlds import table_of, unit, worded

CPU = torch.device("cpu")
TOPICS = ("whales", "trains", "bridges", "cheese", "comets", "guitars", "glaciers", "chess")


def mannered(n: int, seed: int) -> tuple[OutcomeTable, np.ndarray]:
    """Prompts whose manner says which of two members is right, while what they are about says nothing."""
    rng = np.random.default_rng(seed)
    manner, topic = rng.integers(0, 2, n), rng.integers(0, len(TOPICS), (n, 2))
    prompts = [
        f"{('Tell me', 'Kindly tell me')[m]} about {TOPICS[a]} and {TOPICS[b]}, number {i}"
        for i, (m, (a, b)) in enumerate(zip(manner, topic, strict=True))
    ]
    return table_of((np.arange(2) == manner[:, None]).astype(float), prompts=prompts), manner


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, list[str]]:
    table, _ = mannered(320, 0)
    said: list[str] = []
    place = tmp_path_factory.mktemp("tuned")
    return tuned_encoder(place, table, np.arange(320), on_step=said.append), said


def kinship(encoder: Encoder) -> float:
    """How often a new prompt's nearest neighbour among others has its manner."""
    table, manner = mannered(200, 1)
    features = encoder.encode(table.prompts)
    likeness = features @ features.T - 2 * np.eye(200)
    return float((manner[likeness.argmax(axis=1)] == manner).mean())


def test_new_prompts_come_to_lie_beside_those_that_the_same_member_answers(
    tuned: tuple[pathlib.Path, list[str]],
) -> None:
    folder, _ = tuned
    shipped = pathlib.Path(__file__).parents[1] / "router_models/encoders/all-minilm-l6-v2-depths-w8"
    assert kinship(Encoder.load(folder)) > kinship(Encoder.load(shipped)) + 0.1


def test_it_is_said_beforehand_how_long_it_takes_and_afterwards_what_was_changed(
    tuned: tuple[pathlib.Path, list[str]],
) -> None:
    folder, said = tuned
    assert len(said) == 1 and said[0].startswith("tuning the encoder on 320 prompts: ")
    assert folder.name.startswith("tuned-") and folder.name.endswith("-w8")
    assert "upper layers were trained on 320 prompts" in (folder / "NOTICE").read_text()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "mean", modules.Pooling(256), modules.Normalize())


def test_only_the_upper_layers_move_and_the_same_way_each_time(tiny: pathlib.Path) -> None:
    prompts = [f"w{i} w{7 * i % 64} w{i % 5}" for i in range(64)]
    table = table_of((np.arange(64)[:, None] % 2 == np.arange(2)).astype(float), prompts=prompts)
    before, one, other = (load_reference(tiny).state_dict() for _ in range(3))
    for state in (one, other):
        model = load_reference(tiny)
        tune(model, table, np.arange(64), seed=3)
        state |= model.state_dict()
    for name, weights in one.items():
        assert torch.equal(weights, other[name])
        upper = any(f"layer.{k}." in name for k in (1, 2))  # of three layers, 0 stays
        assert torch.equal(weights, before[name]) != upper or not weights.is_floating_point()


def test_a_model_that_uses_one_layer_over_and_over_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    config = transformers.AlbertConfig(
        vocab_size=len(VOCABULARY), embedding_size=16, hidden_size=64, num_hidden_layers=3,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=40,
    )  # fmt: skip
    transformers.AlbertModel(config).save_pretrained(tmp_path)
    transformers.BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    parts = [modules.Transformer(str(tmp_path), max_seq_length=32), modules.Pooling(64)]
    sentence_transformers.SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "st"))
    with pytest.raises(ConfigError, match="list of its 3 layers"):
        tune(load_reference(tmp_path / "st"), worded(40, 0)[0], np.arange(40))


def test_the_loss_is_that_of_guesses_from_all_but_the_prompt_and_its_kin() -> None:
    reward = np.array([[0.9, 0.2], [0.1, np.nan], [0.8, 0.7], [0.3, 1], [0.5, 0]])
    table = table_of(reward, tasks=["a", "b", "a", "a", None])
    groups, rows = np.array([0, 1, 2, 2, 3]), [0, 2]
    features = unit(np.random.default_rng(0), 5, 3) + np.float32(2)
    features /= np.linalg.norm(features, axis=1, keepdims=True)  # near each other: nothing is rounded off
    weight, seen = pair_weight(table), np.nan_to_num(reward)
    loss, squares, tasks, members = 0.0, 0.0, [], 0
    for i in rows:
        share = np.exp(SHARPNESS * features @ features[i]) * (groups != groups[i])
        guess = (share @ (weight * seen)) / (share @ weight)
        tasks.append(share[[0, 2, 3]].sum() / share.sum())  # both are of task a
        loss -= float(np.sum(seen[i] * np.log(guess) + (1 - seen[i]) * np.log(1 - guess)))
        lead = guess - seen[i] - (guess - seen[i]).mean()
        squares, members = squares + float((lead**2).sum()), members + 2
    expected = (loss + DIFFERENCE * squares) / members - TASK * np.log(tasks).mean()
    x = torch.as_tensor(features)
    found = Outcomes.of(table, groups, CPU).loss(torch.tensor(rows), x[rows] @ x.T)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_what_nobody_else_answered_is_not_guessed() -> None:
    reward = np.array([[1, 1], [0, np.nan], [1, np.nan]])
    x = torch.as_tensor(unit(np.random.default_rng(0), 3, 3))
    first = torch.tensor([0])
    whole = Outcomes.of(table_of(reward), np.arange(3), CPU).loss(first, x[:1] @ x.T)
    alone = Outcomes.of(table_of(reward[:, :1]), np.arange(3), CPU).loss(first, x[:1] @ x.T)
    assert float(whole) == pytest.approx(float(alone))


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
    table, _ = worded(300, 0)
    shipped = pathlib.Path(__file__).parents[1] / "router_models/encoders/all-minilm-l6-v2-depths-w8"
    said: list[str] = []
    trained = train(
        table, Encoder.load(shipped), shipped, tmp_path / "mine", tune_encoder=True, on_step=said.append
    )
    router = Router.load(trained.folder)
    assert router.manifest.encoder_id.startswith("tuned-")
    assert (tmp_path / "encoders" / router.manifest.encoder_id / "encoder.onnx").is_file()
    n_tuned = router.manifest.recipe["encoder_tuned_on"]
    assert 0.75 * 240 < n_tuned < 0.85 * 240  # a fifth of all is held out, a fifth of the rest kept back
    assert any(line.startswith(f"tuning the encoder on {n_tuned} prompts") for line in said)
    assert f"| encoder tuned on | {n_tuned} |" in (trained.folder / "CARD.md").read_text()


def test_there_is_nothing_to_tune_where_features_are_given(tmp_path: pathlib.Path) -> None:
    table, _ = worded(60, 0)
    shipped = pathlib.Path(__file__).parents[1] / "router_models/encoders/all-minilm-l6-v2-depths-w8"
    with pytest.raises(ConfigError, match="prompts to tune"):
        train(
            table, Encoder.load(shipped), shipped, tmp_path / "mine",
            features=unit(np.random.default_rng(0), 60, 1536), tune_encoder=True,
        )  # fmt: skip


def test_an_encoder_to_use_as_it_is_and_one_to_tune_are_not_asked_for_at_once(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "table.parquet"
    data.write_bytes(b"")
    told = ["train", "--data", str(data), "--out", str(tmp_path / "out"), "--tune-encoder"]
    found = CliRunner().invoke(cli.main, [*told, "--encoder", str(tmp_path)])
    assert found.exit_code != 0 and "found both" in found.output
