"""An encoder trained on a table: what it learns, and that nobody is fooled by what it has seen."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from click.testing import CliRunner
from sentence_transformers.sentence_transformer import modules

from ensemble import bundle, cli
from ensemble.encoder import Encoder
from ensemble.errors import ConfigError, TableError
from ensemble.learning import train as module
from ensemble.learning import tune as tuning
from ensemble.learning.calibrate import pair_weight
from ensemble.learning.encoders import bare_tokenizer, build_encoder, load_reference
from ensemble.learning.longform import write_table
from ensemble.learning.recipe import fit_head
from ensemble.learning.split import near_duplicates
from ensemble.learning.tables import OutcomeTable
from ensemble.learning.train import train
from ensemble.learning.tune import tune, tuned_encoder
from ensemble.learning.tuning_loss import DIFFERENCE, SHARPNESS, TASK, Outcomes
from ensemble.router import Router
from tiny_models import VOCABULARY, tiny_model
from worlds import table_of, unit, worded

CPU = torch.device("cpu")
SHIPPED = bundle.shipped_folder() / "encoders" / "all-minilm-l6-v2-depths-w8"
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
    from ensemble.learning import figures

    chosen: list[int] = []
    rng = np.random.default_rng(0)
    table, learned, held_out = table_of(rng.random((300, 2))), np.arange(200), np.arange(200, 300)

    def fit_all(fitted: Any, judging: Any, seed: int) -> Any:
        chosen.extend([len(fitted.reward), len(judging.reward)])
        raise SeenEnough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "fit_all", fit_all)
        with pytest.raises(SeenEnough):
            figures._baselines(unit(rng, 300, 4), table, learned, np.arange(150, 200), held_out, 0)
    assert chosen == [150, 50]


@pytest.mark.parametrize(
    ("n", "options", "error", "words"),
    [
        (60, {"features": np.zeros((60, 4), np.float32)}, ConfigError, "prompts to tune"),
        (200, {}, TableError, "at least 300 prompts to learn from to tune"),
    ],
)
def test_what_cannot_be_tuned_on_is_said_before_anything_is_done(
    tmp_path: pathlib.Path, n: int, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    table, _ = worded(n, 0)
    with pytest.raises(error, match=words):
        train(table, Encoder.load(SHIPPED), SHIPPED, tmp_path / "mine", tune_encoder=True, **options)
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
