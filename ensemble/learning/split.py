"""Parts of an outcome table that share no prompt, and no prompt under another coat.

A near-duplicate of a test prompt in the training part makes every method look better than it is, so
prompts are split by groups: same text, or most of the word triples of the shorter one in common.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ensemble.errors import MissingExtraError, TableError

IntArray = npt.NDArray[np.int64]

NO_SPACES = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"  # Thai to Chinese
WORDS = re.compile(rf"[{NO_SPACES}]|[^\W{NO_SPACES}]+")
SHINGLE_WORDS = 3
MIN_SHARED = 5  # shingles; fewer in common say nothing
BOILERPLATE_SHARE = 0.002  # a shingle in more prompts than this is a template's, not a prompt's ...
BOILERPLATE_PROMPTS = 10  # ... unless it is in this few
ROWS_AT_ONCE = 4096  # bounds the memory of the comparison


@dataclass(frozen=True, eq=False)
class Parts:
    """Row indices of the three parts, each ascending; no group has rows in two of them."""

    train: IntArray
    validation: IntArray
    test: IntArray


def near_duplicates(prompts: Sequence[str], *, overlap: float = 0.6) -> IntArray:
    """The group of every prompt, ``(n_prompts,)``, numbered from 0 in order of first appearance.

    Two prompts are in one group when their normalized texts are equal, or when they share at least
    ``MIN_SHARED`` distinct word triples and the share of the shorter one's triples that the other has
    too reaches ``overlap``, in (0, 1]; groups are closed under this. Measuring by the shorter prompt
    finds the question that another benchmark took over with more options. Triples that stand in more than
    10 prompts, and in more than 0.2 % of them, are left out, or a shared instruction would make one group of
    a whole benchmark: so more than 10 variants of one text are not told from a template. A prompt made of
    nothing else is a group by itself. Of scripts that set no spaces a character counts as a word.

    The comparison is exact (a sparse product), not sampled: about 2 s for 36,000 prompts.

    :raises MissingExtraError: scipy is not installed.
    """
    try:
        from scipy.sparse.csgraph import connected_components
    except ImportError as error:
        raise MissingExtraError("scipy", "train", "finding near-duplicate prompts") from error
    text_of: dict[str, int] = {}
    row_text = np.array([text_of.setdefault(normalize(p), len(text_of)) for p in prompts], np.int64)
    if not text_of:
        return row_text
    alike = _alike(_own_shingles(list(text_of)), overlap)
    _, group_of_text = connected_components(alike, directed=False)
    return _numbered_by_appearance(group_of_text[row_text])


def split(
    groups: npt.ArrayLike, *, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int = 0
) -> Parts:
    """Training, validation and test rows; whole groups, drawn at random by ``seed``.

    ``groups`` ``(n_prompts,)`` as from :func:`near_duplicates`; ``fractions`` of the prompts, summing
    to 1, met to within one group. Tasks and sources are not stratified: with thousands of prompts the
    draw balances them, and a router meets whatever mix comes.

    :raises TableError: the fractions are not a partition, or a part that should have rows has none.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-9:
        raise TableError(f"expected three fractions >= 0 that sum to 1, found {fractions}")
    position = _shuffled_position(groups, seed)
    n = len(position)
    part = np.searchsorted(np.cumsum(fractions)[:2] * n, position, side="right")
    rows = [np.flatnonzero(part == i) for i in range(3)]
    empty = [
        name
        for name, r, f in zip(("training", "validation", "test"), rows, fractions, strict=True)
        if f and not len(r)
    ]
    if empty:
        raise TableError(
            f"{n} prompts in {len(np.unique(groups))} group(s) of near-duplicates leave no "
            f"{', '.join(empty)} part at fractions {fractions}: collect more distinct prompts"
        )
    return Parts(*rows)


def k_folds(groups: npt.ArrayLike, *, k: int = 5, seed: int = 0) -> list[tuple[IntArray, IntArray]]:
    """``k`` pairs of (rows to learn from, rows held out); every row is held out once, groups stay whole.

    :raises TableError: ``k`` is below 2, or there are too few groups to fill ``k`` folds.
    """
    if k < 2:
        raise TableError(f"expected at least 2 folds, found k={k}")
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < k:
        raise TableError(
            f"{len(group)} prompts in {len(names)} group(s) of near-duplicates don't fill {k} folds: use "
            "fewer folds or more distinct prompts"
        )
    fold = _shuffled_position(group, seed) * k // len(group)
    if np.bincount(fold, minlength=k).min() == 0:  # a large group has swallowed one
        fold = deal(group, k, seed)
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(k)]


def deal(kind: IntArray, n_folds: int, seed: int) -> IntArray:
    """The fold of every row, ``(n_prompts,)``: kinds ``(n_prompts,)``, numbered from 0, go whole, the largest
    first, to the fold with least in it."""
    size = np.bincount(kind)
    order = np.random.default_rng(seed).permutation(len(size))
    fold_of, filled = np.zeros(len(size), np.int64), np.zeros(n_folds, np.int64)
    for k in order[np.argsort(-size[order], kind="stable")]:
        fold_of[k] = filled.argmin()
        filled[fold_of[k]] += size[k]
    return fold_of[kind]


def normalize(text: str) -> str:
    """The text without what doesn't make it another prompt: letter case, white space, Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_key(text: str, salt: str) -> str:
    """32 hex digits that stand for a prompt without telling it: a salted hash of its normalized text."""
    salted = f"{salt}\0{normalize(text)}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(salted, digest_size=16).hexdigest()


def seen(
    prompts: Sequence[str], keys: Collection[str], salt: str, *, groups: npt.ArrayLike | None = None
) -> npt.NDArray[np.bool_]:
    """Which prompts have their :func:`prompt_key` among ``keys``, ``(n_prompts,)``.

    With ``groups``, all prompts of a group that holds one of them are marked too. A near-duplicate of
    a keyed prompt whose own twin is not among ``prompts`` cannot be told from its hash.
    """
    known = frozenset(keys)
    mask = np.array([prompt_key(text, salt) in known for text in prompts], dtype=np.bool_)
    if groups is not None:
        group = np.asarray(groups)
        mask = np.isin(group, group[mask])
    return mask


def _own_shingles(texts: Sequence[str]) -> Any:
    """Sparse ``(n_texts, n_shingles)`` ones: each text's distinct word triples, less the boilerplate."""
    from scipy.sparse import csr_matrix

    vocabulary: dict[str, int] = {}
    hashes = []
    for text in texts:
        words = WORDS.findall(text) or [text]
        codes = np.array([vocabulary.setdefault(word, len(vocabulary) + 1) for word in words], np.uint64)
        hashes.append(np.unique(_triples(codes)))
    row = np.repeat(np.arange(len(hashes)), [len(h) for h in hashes])
    _, column, in_texts = np.unique(np.concatenate(hashes), return_inverse=True, return_counts=True)
    limit = max(BOILERPLATE_PROMPTS, int(BOILERPLATE_SHARE * len(texts)))
    keep = in_texts[column] <= limit
    ones = np.ones(int(keep.sum()), np.int32)
    return csr_matrix((ones, (row[keep], column[keep])), shape=(len(texts), len(in_texts)))


def _triples(codes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each run of ``SHINGLE_WORDS`` words; of all of them where there are fewer."""
    width = min(SHINGLE_WORDS, len(codes))
    hashed = np.zeros(len(codes) - width + 1, np.uint64)
    for i in range(width):  # wraps around on purpose: a polynomial modulo 2**64, stirred at each step
        hashed = (hashed ^ codes[i : len(codes) - width + 1 + i]) * np.uint64(0x9E3779B97F4A7C15)
        hashed ^= hashed >> np.uint64(29)
    return hashed


def _alike(shingles: Any, overlap: float) -> Any:
    """Sparse ``(n_texts, n_texts)``: an entry for every pair that counts as near-duplicates."""
    from scipy.sparse import coo_matrix

    n_texts = shingles.shape[0]
    size = np.asarray(shingles.sum(axis=1)).ravel()
    transposed = shingles.T.tocsr()
    pairs = []
    for start in range(0, n_texts, ROWS_AT_ONCE):
        shared = (shingles[start : start + ROWS_AT_ONCE] @ transposed).tocoo()
        left, right = shared.row + start, shared.col
        alike = (shared.data >= MIN_SHARED) & (shared.data >= overlap * np.minimum(size[left], size[right]))
        alike &= left < right
        pairs.append(np.stack([left[alike], right[alike]]))
    rows, columns = np.concatenate(pairs, axis=1)
    return coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(n_texts, n_texts))


def _numbered_by_appearance(labels: npt.NDArray[Any]) -> IntArray:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _shuffled_position(groups: npt.ArrayLike, seed: int) -> IntArray:
    """For every row, how many rows stand before its group when whole groups are shuffled."""
    _, group, size = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(size))
    before = np.empty(len(size), np.int64)
    before[order] = np.cumsum(size[order]) - size[order]
    return before[group]
