"""Find texts that repeat each other, in linear time.

MinHash signatures (Broder 1997) are cut into bands; texts that agree on a band are candidates,
and every candidate pair is then measured exactly, so the hashing can only ever miss a pair
(with a chance below 0.1 % at the threshold), never invent one.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import rensa
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

_NUM_HASHES = 128
_MAX_MISS = 1e-3
_MAX_COMPARED = 10  # earlier members of a bucket that a text is compared with
_WORD = re.compile(r"\w+")


def cluster_texts(texts: Sequence[str], *, threshold: float) -> list[int]:
    """Return for each text the index of the first text of its cluster.

    Two texts are linked if they share at least `threshold` of their words; clusters are the
    connected components.

    Args:
        texts: The texts.
        threshold: Jaccard similarity of the bags of words, in (0, 1].

    Returns:
        Cluster ids; `ids[i] == i` for the first text of each cluster.
    """
    joined = DisjointSet(range(len(texts)))
    first_by_text: dict[str, int] = {}
    for index, text in enumerate(texts):
        joined.merge(first_by_text.setdefault(text, index), index)
    distinct = list(first_by_text.values())
    for one, other in _find_candidates([texts[i] for i in distinct], threshold):
        a, b = distinct[one], distinct[other]
        if joined[a] != joined[b] and measure_similarity(texts[a], texts[b]) >= threshold:
            joined.merge(a, b)
    first_of_root: dict[int, int] = {}
    return [first_of_root.setdefault(joined[i], i) for i in range(len(texts))]


def measure_similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity of two texts' bags of words, in [0, 1]."""
    a, b = Counter(_split_words(one)), Counter(_split_words(other))
    shared = sum((a & b).values())
    return shared / (a.total() + b.total() - shared)


def _split_words(text: str) -> list[str]:
    return _WORD.findall(text.casefold()) or list(text)


def _find_candidates(texts: list[str], threshold: float) -> Iterator[tuple[int, int]]:
    if len(texts) < 2:
        return
    bands_NB = _hash_bands(texts, _choose_band_size(threshold))
    for hashes_N in bands_NB.T:
        order_N = np.argsort(hashes_N, kind="stable")
        starts = np.flatnonzero(np.diff(hashes_N[order_N])) + 1
        for bucket in np.split(order_N, starts):
            for position in range(1, len(bucket)):
                for earlier in bucket[max(0, position - _MAX_COMPARED) : position]:
                    yield int(earlier), int(bucket[position])


def _choose_band_size(threshold: float) -> int:
    """Return the longest band that still finds a pair at the threshold."""
    sizes = [
        size
        for size in range(1, _NUM_HASHES + 1)
        if (1 - threshold**size) ** (_NUM_HASHES // size) <= _MAX_MISS
    ]
    return max(sizes, default=1)


def _hash_bands(texts: list[str], size: int) -> NDArray[np.int64]:
    """Return one hash per band, shape [N, B]."""
    num_bands = _NUM_HASHES // size
    bands_NB = np.empty((len(texts), num_bands), dtype=np.int64)
    for index, text in enumerate(texts):
        seen: defaultdict[str, int] = defaultdict(int)
        tokens = []
        for word in _split_words(text):
            seen[word] += 1
            tokens.append(f"{word} {seen[word]}")  # a repeated word is a token of its own
        sketch = rensa.RMinHash(num_perm=_NUM_HASHES, seed=0)
        sketch.update(tokens)
        digest = sketch.digest()
        for band in range(num_bands):
            bands_NB[index, band] = hash(tuple(digest[band * size : (band + 1) * size]))
    return bands_NB
