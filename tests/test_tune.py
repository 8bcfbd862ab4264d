"""An encoder trained on a table: what it learns, and that nobody is fooled by what it has seen."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from sentence_transformers.sentence_transformer import modules

from ensemble import bundle
from ensemble.encoder import Encoder
from ensemble.errors import ConfigError
from ensemble.learning import tune as tuning
from ensemble.learning.calibrate import pair_weight
from ensemble.learning.encoders import bare_tokenizer, build_encoder, load_reference
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.tune import tune, tuned_encoder
from ensemble.learning.tuning_loss import DIFFERENCE, SHARPNESS, TASK, Outcomes
from tiny_models import VOCABULARY, tiny_model
from worlds import table_of, unit, worded

CPU = torch.device("cpu")
SHIPPED = bundle.shipped_folder() / "encoders" / "all-minilm-l6-v2-depths-int8"
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


def kinship(encoder: Encoder) -> float:
    """How often a new prompt's nearest neighbour among others has its manner."""
    table, manner = mannered(200, 1)
    features = encoder.encode(table.prompts)
    likeness = features @ features.T - 2 * np.eye(200)
    return float((manner[likeness.argmax(axis=1)] == manner).mean())


def test_new_prompts_come_to_lie_beside_those_that_the_same_member_answers(tmp_path: pathlib.Path) -> None:
    table, _ = mannered(320, 0)
    said: list[str] = []
    folder = tuned_encoder(tmp_path, table, np.arange(320), on_step=said.append)
    tuned = Encoder.load(folder)
    assert kinship(tuned) > kinship(Encoder.load(SHIPPED)) + 0.1
    assert len(said) == 1 and said[0].startswith("tuning the encoder on 320 prompts: ")
    assert folder.name.startswith("tuned-") and folder.name.endswith("-w8")
    assert tuned.trained is not None and "320 prompts" in tuned.trained
    assert tuned.trained in (folder / "NOTICE").read_text()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    rest = (modules.Pooling(256), modules.Dense(256, 64), modules.Normalize())
    return tiny_model(tmp_path_factory.mktemp("models") / "mean", *rest)


def numbered(n: int) -> OutcomeTable:
    """Prompts of words that the tiny models know, of mixed lengths."""
    prompts = [" ".join(f"w{(i * j + j) % 700}" for j in range(2 + 7 * i % 40)) for i in range(n)]
    return table_of((np.arange(n)[:, None] % 2 == np.arange(2)).astype(float), prompts=prompts)


def test_only_the_upper_layers_move_and_the_same_way_each_time(tiny: pathlib.Path) -> None:
    before, one, other = (load_reference(tiny).state_dict() for _ in range(3))
    for state in (one, other):
        model = load_reference(tiny)
        tune(model, numbered(64), np.arange(64), seed=3)
        assert not model.training and not any(part.training for part in model.modules())
        state |= model.state_dict()
    for name, weights in one.items():
        assert torch.equal(weights, other[name])
        upper = any(f"layer.{k}." in name for k in (1, 2))  # of three layers, 0 stays
        assert torch.equal(weights, before[name]) != upper or not weights.is_floating_point()


def run_of(model: Any, table: OutcomeTable) -> tuning._Training:
    reader = tuning.Reader(bare_tokenizer(model).encode(), int(model.max_seq_length))
    ids = reader.read(list(table.prompts))
    outcomes = Outcomes.of(table, np.arange(table.n_prompts), CPU)
    return tuning._Training(model, tuning._upper_layers(model), ids, outcomes, 0)


@pytest.mark.parametrize("rounded", [False, True], ids=["float32", "bfloat16"])
def test_it_is_trained_on_the_features_that_its_export_gives(
    tiny: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, rounded: bool
) -> None:
    """Of texts of all lengths, the longest read head and tail; in batches, then all that were seen."""
    monkeypatch.setattr(
        tuning, "_autocast", lambda device: torch.autocast(device.type, torch.bfloat16, enabled=rounded)
    )
    model, table = load_reference(tiny), numbered(70)
    exported = Encoder.load(build_encoder(tmp_path / "fp32", "fp32", tiny)).encode(table.prompts)
    training = run_of(model, table)
    training._see_all(lambda: None)
    seen = training._seen.numpy()
    assert seen.dtype == np.float32
    assert np.linalg.norm(seen, axis=1) == pytest.approx(np.ones(70), abs=1e-6)
    assert (seen * exported).sum(axis=1).min() > (0.99 if rounded else 1 - 1e-6)
    training.foretold()  # with all that can have other types than it should


def test_what_was_learned_of_a_prompt_is_seen_by_the_next(tiny: pathlib.Path) -> None:
    training = run_of(load_reference(tiny), numbered(70))
    training._see_all(lambda: None)
    before = training._seen.clone()
    with torch.no_grad():
        for weights in training._upper.parameters():
            weights.mul_(1.1)
    training._find_gradient(np.array([3, 5]))
    assert (training._seen != before).any(dim=1).nonzero()[:, 0].tolist() == [3, 5]


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
    rng = np.random.default_rng(0)
    n, rows = 40, [0, 2, 4]  # 2 has kin, 4 has no task, 0 an unobserved pair
    reward = rng.uniform(0.1, 0.9, (n, 3))
    reward[0, 1] = reward[7, 2] = np.nan
    task = ["a" if i % 2 else "b" for i in range(n)]
    table = table_of(
        reward, tasks=[None if i == 4 else task[i] for i in range(n)], propensity=rng.uniform(0.2, 1, (n, 3))
    )
    groups = np.array([0, 1, 2, 2, *range(3, n - 1)])
    features = unit(rng, n, 3) + np.float32(2)
    features /= np.linalg.norm(features, axis=1, keepdims=True)  # near each other: nothing is rounded off
    weight, seen = pair_weight(table), np.nan_to_num(reward)
    loss, squares, tasks = 0.0, 0.0, []
    for i in rows:
        share = np.exp(SHARPNESS * features @ features[i]) * (groups != groups[i])
        guess = (share @ (weight * seen)) / (share @ weight)
        loss -= float(weight[i] @ (seen[i] * np.log(guess) + (1 - seen[i]) * np.log(1 - guess)))
        off = guess - seen[i]
        squares += float(weight[i] @ (off - weight[i] @ off / weight[i].sum()) ** 2)
        alike = [j for j in range(n) if j != 4 and task[j] == task[i]]
        tasks += [] if i == 4 else [share[alike].sum() / share.sum()]
    expected = (loss + DIFFERENCE * squares) / weight[rows].sum() - TASK * np.log(tasks).mean()
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


def test_a_task_of_its_own_for_every_prompt_is_no_task() -> None:
    table = table_of(np.ones((500, 2)), tasks=[f"t{i}" for i in range(500)])
    assert Outcomes.of(table, np.arange(500), CPU).task.shape == (500, 0)
