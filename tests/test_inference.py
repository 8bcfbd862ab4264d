"""How an ONNX graph is opened: with real sessions, on whatever this machine has."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest

from ensemble import inference
from ensemble.errors import BundleError, ConfigError, EnsembleWarning
from ensemble.inference import open_session, usable_cores


def small_graph(**metadata: str):
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    return model


def test_a_graph_that_reads_other_files_is_refused(tmp_path, monkeypatch):
    import onnx

    path = tmp_path / "graph.onnx"
    onnx.save(small_graph(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)  # where onnxruntime would look for them
    for source in (path, path.read_bytes()):
        with pytest.raises(BundleError, match="self-contained"):
            open_session(source)


def test_a_session_says_what_it_holds():
    session = open_session(small_graph(a="b").SerializeToString(), threads=1)
    assert session.metadata == {"a": "b"} and session.threads == 1
    assert session.inputs == {"x": (None, 4)} and list(session.outputs) == ["y"]
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], x)


def test_the_cpu_is_what_one_gets_when_one_asks_for_it():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_session(small_graph().SerializeToString(), "cpu").provider == "CPUExecutionProvider"


def test_it_says_so_when_cuda_is_not_what_it_got():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        provider = open_session(small_graph().SerializeToString(), "cuda").provider
    said = [str(w.message) for w in caught if issubclass(w.category, EnsembleWarning)]
    if provider == "CUDAExecutionProvider":
        assert not said
    else:
        assert len(said) == 1 and "asked onnxruntime for CUDAExecutionProvider, got CPU" in said[0]
        assert caught[-1].filename == __file__


@pytest.mark.parametrize(("device", "threads"), [("gpu", None), ("cpu", 0), ("cpu", -1)])
def test_another_device_or_no_thread_is_refused(device, threads):
    with pytest.raises(ConfigError, match="expected"):
        open_session(b"", device, threads)


@pytest.mark.parametrize("source", [b"", b"not a graph", "no/such/file.onnx"])
def test_what_is_not_a_graph_is_a_bundle_error(source):
    with pytest.raises(BundleError, match="expected an ONNX graph"):
        open_session(source)


def test_threads_follow_the_machine_and_a_containers_quota(monkeypatch):
    cores = usable_cores()
    assert 1 <= cores <= min(os.cpu_count() or 1, 8)
    real = inference._first_line
    for quota, expected in (("50000 100000", 1), ("max 100000", cores), ("900000 100000", cores)):
        monkeypatch.setattr(
            inference, "_first_line",
            lambda path, default, quota=quota: quota if "cgroup" in path else real(path, default),
        )  # fmt: skip
        assert usable_cores() == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(("how", "finds"), [("replaced", True), ("deleted", True), ("written over", False)])
def test_a_forked_child_has_the_graph_of_its_parent_or_says_that_it_is_gone(tmp_path, how, finds):
    path, other = tmp_path / "graph.onnx", tmp_path / "other.onnx"
    path.write_bytes(small_graph().SerializeToString())
    other.write_bytes(small_graph(another="one").SerializeToString())
    session = open_session(path, "cpu", threads=1)
    if how == "replaced":
        other.replace(path)
    elif how == "deleted":
        path.unlink()
    else:
        path.write_bytes(other.read_bytes())
    for _ in range(2):  # the second child reads what the first has read
        if (child := os.fork()) == 0:
            try:
                found = session.run(["y"], {"x": np.ones((1, 4), np.float32)})[0].sum() == 4
            except BundleError as error:
                found = "written over" not in str(error)
            os._exit(0 if bool(found) == finds else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
