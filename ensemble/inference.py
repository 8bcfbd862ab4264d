"""How is an ONNX graph opened and run?

The only file that touches onnxruntime. It is imported on the first call, never before.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pathlib
import re
import sys
import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from io import BufferedReader
from typing import Any, Literal

import numpy.typing as npt

from ensemble.errors import BundleError, ConfigError, EnsembleWarning, MissingExtraError
from ensemble.plain_file import open_plain

Device = Literal["auto", "cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
MOST_THREADS = 8  # one prompt is too little work for more
SPIN_US = 2
LARGEST_READ = 2**30  # bytes at once

# Every reference to a file beside the graph has this key; a string of its own, it cannot be split.
EXTERNAL_DATA_KEY = b"location"
# The operators that repeat a part of a graph, as often as they say: the name after its length, which protobuf
# reads in longer spellings too.
ENDLESS_OPERATOR = re.compile(rb"(?:\x04|\x84\x80*[\x00-\x7f])(?:Loop|Scan)")


class Session:
    """An open graph. Thread-safe, and reopened on first use in a forked child.

    ``provider`` is the onnxruntime execution provider it got, ``threads`` how many it runs on,
    ``sha256`` the hex digest of the graph's bytes, ``metadata`` the strings stored in it;
    ``inputs`` and ``outputs`` map names to shapes, with a str or None for a free dimension. The file it came
    from stays open, so that a child finds the same graph whatever was put in the file's place since.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, device: Device, threads: int | None) -> None:
        self._device = device
        self._reopening = threading.Lock()
        self._source: bytes | BufferedReader
        if isinstance(source, bytes):
            self._source = graph = source
        else:
            self._source = _opened(pathlib.Path(source).resolve())
            weakref.finalize(self, self._source.close)
            graph = self._source.read()
        self.sha256 = hashlib.sha256(graph).hexdigest()
        self.threads = threads or usable_cores()
        session = _onnxruntime_session(graph, device, self.threads)
        self.provider: str = session.get_providers()[0]
        try:
            self.metadata: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
            self.inputs = {node.name: tuple(node.shape) for node in session.get_inputs()}
            self.outputs = {node.name: tuple(node.shape) for node in session.get_outputs()}
        except UnicodeDecodeError as error:
            raise BundleError(f"expected an ONNX graph with names in UTF-8, found: {error}") from error
        self._sessions = {self.threads: session}  # by the threads of a run; a forked child starts with none
        _open_sessions.add(self)

    def run(
        self,
        outputs: Sequence[str] | None,
        feeds: Mapping[str, npt.NDArray[Any]],
        threads: int | None = None,
    ) -> list[npt.NDArray[Any]]:
        """The arrays of the named outputs (all of them for ``None``), in that order. Raises BundleError.

        ``threads`` other than those it was opened with (``None``) open the graph once more, to stay.
        """
        threads = threads or self.threads
        session = self._sessions.get(threads) or self._opened_again(threads)
        try:
            return session.run(outputs, feeds)  # type: ignore[no-any-return]
        except Exception as error:  # onnxruntime's own errors share no base class
            raise BundleError(
                f"expected a graph that runs, found one that doesn't: {str(error)[:500]}. "
                "Fetch or make it again; on a GPU, see that its memory is free."
            ) from error

    def _opened_again(self, threads: int) -> Any:
        with self._reopening:
            if threads not in self._sessions:
                graph = _read_again(self._source)
                if hashlib.sha256(graph).hexdigest() != self.sha256:
                    raise BundleError(
                        f"expected the graph as it was when first opened (SHA-256 {self.sha256}), found that "
                        "its file was written over, on reading it again. Load the bundle again."
                    )
                self._sessions[threads] = _onnxruntime_session(graph, self._device, threads)
            return self._sessions[threads]

    def _after_fork_in_child(self) -> None:
        # A fork copies a session without its worker threads: to close it is to wait for them for ever.
        # So the copy is never closed; its pages are the parent's, and cost nothing while untouched.
        for session in self._sessions.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        self._sessions = {}
        self._reopening = threading.Lock()


_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _forget_sessions_of_the_parent() -> None:
    for session in _open_sessions:
        session._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_sessions_of_the_parent)


def open_session(
    path_or_bytes: str | os.PathLike[str] | bytes, device: Device = "auto", threads: int | None = None
) -> Session:
    """Open a self-contained ONNX graph.

    ``device="auto"`` takes CUDA where onnxruntime offers it. ``threads`` for one run: ``None`` for
    as many as the process has physical cores, at most 8. Warns with ``EnsembleWarning`` when the
    graph ends up elsewhere than asked. Raises ``BundleError`` for a graph that is missing, broken or
    refers to other files, ``ConfigError`` for another device, ``MissingExtraError`` without onnxruntime.
    """
    if device not in ("auto", *PROVIDERS):
        raise ConfigError(f'expected device "auto", "cpu" or "cuda", found {device!r}')
    if threads is not None and threads < 1:
        raise ConfigError(f"expected threads >= 1, or None for one per physical core, found {threads}")
    return Session(path_or_bytes, device, threads)


def usable_cores() -> int:
    """Physical cores that this process may use, by affinity and by a container's quota; 1 to 8."""
    if not hasattr(os, "sched_getaffinity"):
        return min(os.cpu_count() or 1, MOST_THREADS)
    cpus = os.sched_getaffinity(0)
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {_first_line(siblings.format(cpu), default=str(cpu)) for cpu in cpus}
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max", default="max 1").partition(" ")
    allowed = len(cores) if quota == "max" else min(len(cores), int(quota) // int(period))
    return max(1, min(allowed, MOST_THREADS))


def _first_line(path: str, default: str) -> str:
    try:
        return pathlib.Path(path).read_text().strip() or default
    except OSError:
        return default


def _opened(path: pathlib.Path) -> BufferedReader:
    try:
        return open_plain(path)
    except OSError as error:
        raise BundleError(
            f"expected an ONNX graph at {path}, found none that can be read: {error}"
        ) from error


def _read_again(source: BufferedReader | bytes) -> bytes:
    """All of it, without moving a file's place in it, which forked processes have in common."""
    if isinstance(source, bytes):
        return source
    parts, read = [], 0
    while part := os.pread(source.fileno(), LARGEST_READ, read):
        parts.append(part)
        read += len(part)
    return b"".join(parts)


def _onnxruntime_session(graph: bytes, device: Device, threads: int) -> Any:
    onnxruntime = _import_onnxruntime()
    if EXTERNAL_DATA_KEY in graph:
        raise BundleError(
            "expected a self-contained ONNX graph, found one that refers to data in other files. "
            "Save it again with its weights inside (onnx.save with save_as_external_data=False)."
        )
    if ENDLESS_OPERATOR.search(graph):
        raise BundleError(
            "expected an ONNX graph that runs from end to end, found a Loop or a Scan in it, which may go on "
            "for ever. Export it without."
        )
    offered = onnxruntime.get_available_providers()
    cuda = device != "cpu" and PROVIDERS["cuda"] in offered
    # Without TF32, which on CUDA rounds every product to 10 bits, all devices give the same features.
    providers = [(PROVIDERS["cuda"], {"use_tf32": "0"})] if cuda else []
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Not onnxruntime's own format, in which the checks above would see nothing.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    _set_spinning(options, onnxruntime.__version__)
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=[*providers, PROVIDERS["cpu"]])
    except Exception as error:  # onnxruntime's own errors share no base class
        raise BundleError(
            f"expected an ONNX graph, found what onnxruntime cannot open: {str(error)[:500]}"
        ) from error
    # onnxruntime keeps the graph's bytes to open it again elsewhere, which is never asked of it here.
    session._model_bytes = None
    _return_freed_memory()
    wanted, got = PROVIDERS["cuda" if cuda or device == "cuda" else "cpu"], session.get_providers()[0]
    if got != wanted:
        warnings.warn(
            f"asked onnxruntime for {wanted}, got {got} (this one offers {', '.join(offered)}). "
            'For CUDA install the extra "gpu" in place of "cpu", with a driver that fits it.',
            EnsembleWarning,
            stacklevel=4,
        )
    return session


def _set_spinning(options: Any, version: str) -> None:
    """How long a thread that waits for its next piece of a graph keeps its core busy.

    Spinning for ever doubles the time of a run on a busy machine; not at all costs a fifth of a short one
    on an idle machine. SPIN_US is as good as the better of the two on both; only new releases know it.
    """
    knows = tuple(int(part) for part in version.split(".")[:2]) >= (1, 31)
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if knows else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))


def _import_onnxruntime() -> Any:
    # Since 1.29 onnxruntime reports to its makers over the network unless told not to before its import;
    # the reporter's thread also keeps a forked child from exiting. A user's own setting stands.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        purpose = 'Running a router (on the CPU; for CUDA install the extra "gpu" instead)'
        raise MissingExtraError("onnxruntime", "cpu", purpose) from error
    return onnxruntime


def _return_freed_memory() -> None:
    """Hand back what opening a graph used for a moment: 100 MB of resident memory with the encoder."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
