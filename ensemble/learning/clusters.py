"""Which prompts lie together? k-means in a few lines: the same clusters at every run, on any load.

scikit-learn's sums in whatever order its threads end, and starts them anew for every small batch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ensemble.records import FloatArray

Index = npt.NDArray[np.int64]
STEPS = 12  # more moves hardly anything


def k_means(position: FloatArray, n_clusters: int, seed: int) -> Index:
    """The cluster of every row of ``position`` (n, width), (n,), numbered from 0 without gaps.

    Starts from rows drawn at random, all different where there are so many; clusters that lose all
    their rows are dropped.
    """
    distinct = list({row.tobytes(): i for i, row in enumerate(position)}.values())
    drawn = np.random.default_rng(seed).permutation(distinct)[:n_clusters]
    labels = nearest(position, position[drawn])
    for _ in range(STEPS):
        before, labels = labels, nearest(position, means(position, labels))
        if np.array_equal(before, labels):
            break
    return labels


def nearest(position: FloatArray, centres: FloatArray) -> Index:
    """The nearest of ``centres`` (k, width) for every row, (n,), renumbered from 0 without gaps."""
    closeness = position @ centres.T - (centres**2).sum(axis=1) / 2
    return np.unique(closeness.argmax(axis=1), return_inverse=True)[1]


def means(position: FloatArray, labels: Index) -> FloatArray:
    """The mean row of every cluster, (k, width) in the type of ``position``."""
    from scipy.sparse import csr_matrix

    sizes = np.bincount(labels)
    shares = (1 / sizes[labels]).astype(position.dtype)
    inside = csr_matrix((shares, (labels, np.arange(len(labels)))), (len(sizes), len(labels)))
    return np.asarray(inside @ position)  # each row's share added in the rows' order, one after the other
