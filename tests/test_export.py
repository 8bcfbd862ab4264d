"""The graph computes what was fitted; members come and go without touching one another."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from ensemble.errors import BundleError
from ensemble.head import OUTPUTS, Head
from ensemble.learning.calibrate import Curve
from ensemble.learning.export import HeadWeights, build_graph
from worlds import random_head, unit

PER_MEMBER = ("reward", "tokens", "evidence", "reward_bias", "token_bias", "token_spread", "prior_std")
OF_CURVE = ("offset", "rise", "fall")
BALLAST = st.sampled_from([0.0, 0.003, 0.3, 30.0])  # none, little, some, more than most have company


def predicted(w: HeadWeights, features: np.ndarray) -> list[np.ndarray]:
    found = Head(build_graph(w), [f"m{i}" for i in range(len(w.prior_std))]).predict(features)
    return [getattr(found, name) for name in OUTPUTS]


@settings(max_examples=40, deadline=None)
@given(
    n_members=st.integers(1, 9),
    n_landmarks=st.integers(1, 60),
    n_features=st.integers(2, 40),
    n_tasks=st.sampled_from([0, 2, 7]),
    n_prompts=st.integers(1, 20),
    seed=st.integers(0, 99),
    ballast=BALLAST,
)
def test_the_graph_agrees_with_the_formula(
    n_members: int, n_landmarks: int, n_features: int, n_tasks: int, n_prompts: int, seed: int, ballast: float
) -> None:
    w = random_head(n_members, n_landmarks, n_features, n_tasks, seed, ballast)
    features = unit(np.random.default_rng(seed), n_prompts, n_features)
    for got, want, relative in zip(predicted(w, features), w.predict(features), (0, 0, 1, 1), strict=True):
        assert got.shape == (n_prompts, n_members) and got.dtype == np.float32
        np.testing.assert_allclose(got, want, atol=0 if relative else 1e-5, rtol=1e-5 if relative else 0)


def with_rows(graph: bytes, rows: list[int]) -> bytes:
    """The same graph with these rows of the member matrix; nothing else is touched but the stated widths."""
    model = onnx.load_from_string(graph)
    (matrix,) = (tensor for tensor in model.graph.initializer if tensor.name == "member_matrix")
    matrix.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(matrix)[rows], "member_matrix"))
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = len(rows)
    return bytes(model.SerializeToString())


@settings(max_examples=20, deadline=None)
@given(
    data=st.data(), n_tasks=st.sampled_from([0, 5]), n_prompts=st.sampled_from([1, 2, 7, 64]), ballast=BALLAST
)
def test_members_come_and_go_without_touching_the_others_by_a_bit(
    data: st.DataObject, n_tasks: int, n_prompts: int, ballast: float
) -> None:
    w = random_head(12, 300, 64, n_tasks, ballast=ballast)
    graph, features = build_graph(w), unit(np.random.default_rng(1), n_prompts, 64)
    rows = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=30))  # deleted, doubled, moved
    every = Head(graph, [f"m{i}" for i in range(12)]).predict(features)
    some = Head(with_rows(graph, rows), [f"row {i}" for i in range(len(rows))]).predict(features)
    for name in OUTPUTS:
        assert np.array_equal(getattr(some, name), getattr(every, name)[:, rows]), name


@pytest.mark.parametrize("ballast", [0.0, 0.3])
def test_nothing_of_a_member_lies_outside_its_row(ballast: float) -> None:
    w = random_head(5, 40, 16, 3, ballast=ballast)
    assert w.member_matrix.shape == (5, 3 * 40 + 7)
    curve = Curve(*(getattr(w.curve, name)[::-1] * 1.5 for name in OF_CURVE))
    other = dataclasses.replace(w, curve=curve, **{name: getattr(w, name)[::-1] * 1.5 for name in PER_MEMBER})

    def rest(graph: bytes) -> bytes:
        model = onnx.load_from_string(graph)
        for tensor in model.graph.initializer:
            if tensor.name == "member_matrix":
                tensor.ClearField("raw_data")
        return bytes(model.SerializeToString())

    assert build_graph(w) != build_graph(other) and rest(build_graph(w)) == rest(build_graph(other))


@pytest.mark.parametrize("name", [*PER_MEMBER, *OF_CURVE])
def test_all_that_is_a_members_reaches_the_graph(name: str) -> None:
    w = random_head(5, 40, 16, 3)
    if name in OF_CURVE:
        part = {"curve": dataclasses.replace(w.curve, **{name: getattr(w.curve, name) + 0.5})}
    else:
        part = {name: getattr(w, name) + 0.5}
    features = unit(np.random.default_rng(4), 9, 16)
    before, after = predicted(w, features), predicted(dataclasses.replace(w, **part), features)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("ballast", [0.0, 0.3])
def test_a_prompt_gets_the_same_alone_and_in_a_batch(ballast: float) -> None:
    w = random_head(7, 200, 32, 4, ballast=ballast)
    head = Head(build_graph(w), [f"m{i}" for i in range(7)])
    features = unit(np.random.default_rng(2), 50, 32)
    together = head.predict(features)
    for i in range(50):
        alone = head.predict(features[i : i + 1])
        for name in OUTPUTS:
            np.testing.assert_allclose(
                getattr(alone, name)[0], getattr(together, name)[i], rtol=1e-5, atol=1e-6
            )


def test_outputs_stay_in_their_ranges_and_the_largest_graph_is_small() -> None:
    w = random_head(40, 1024, 384, 100)
    wild = dataclasses.replace(w, tokens=w.tokens * 1e4, reward=w.reward * 1e3)
    features = unit(np.random.default_rng(3), 30, 384)
    reward, std, tokens, p95 = predicted(wild, features)
    assert reward.min() >= 0 and reward.max() <= 1
    assert (std > 0).all() and (std <= wild.prior_std.astype(np.float32) + 1e-7).all()
    assert np.isfinite(tokens).all() and np.isfinite(p95).all() and (p95 >= tokens).all()
    assert len(build_graph(w)) < 10e6


def test_a_graph_that_is_no_head_or_another_one_is_refused() -> None:
    w = random_head(3, 10, 8, 0)
    graph = build_graph(w)
    with pytest.raises(BundleError, match="holds 3 members, the manifest names 2"):
        Head(graph, ["a", "b"])
    with pytest.raises(BundleError, match="cannot open"):
        Head(b"no graph", ["a"])
    model = onnx.load_from_string(graph)
    del model.graph.output[0]
    with pytest.raises(BundleError, match="should have the input features and the outputs reward, "):
        Head(bytes(model.SerializeToString()), ["a", "b", "c"])
