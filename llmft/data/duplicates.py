"""Find near-duplicate texts, in linear time.

MinHash signatures (Broder 1997) are cut into bands; texts that agree on a band are candidates,
and the similarity of every candidate pair is computed exactly, so hashing can miss a pair, but has
no false positives. A single pair at the threshold is missed with a probability below 0.1 %; more
often among many similar texts, since a text is compared with a few of a large bucket only.

`rensa.RMinHashLSH` is not used, since it returns complete buckets: for 1,000 texts made from one
template it compares every pair, which took 42 s instead of 7 s and grows quadratically.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import rensa
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

_NUM_HASHES = 128
_MAX_MISS = 1e-3
_NUM_COUNTED = 10_000  # texts whose words are kept for the next comparison
_MAX_COMPARED = 10  # earlier members of a bucket that a text is compared with
# In scripts that put no spaces between words, every letter counts as a word: Thai, Lao, Burmese,
# Khmer, kana and Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


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
    count = functools.lru_cache(maxsize=_NUM_COUNTED)(lambda index: _count_words(texts[index]))
    for one, other in _find_candidates([texts[i] for i in distinct], threshold):
        a, b = distinct[one], distinct[other]
        if joined[a] != joined[b] and _compare(count(a), count(b)) >= threshold:
            joined.merge(a, b)
    first_of_root: dict[int, int] = {}
    return [first_of_root.setdefault(joined[i], i) for i in range(len(texts))]


def split_words(text: str) -> list[str]:
    """Return the words of a text without case and punctuation; letters, if it has no words."""
    return _WORD.findall(text.casefold()) or list(text)


def measure_similarity(one: str, other: str) -> float:
    """Return the Jaccard similarity of two texts' bags of words, in [0, 1]."""
    return _compare(_count_words(one), _count_words(other))


def _compare(one: Counter[str], other: Counter[str]) -> float:
    shared = (one & other).total()
    return shared / (one.total() + other.total() - shared)


def _count_words(text: str) -> Counter[str]:
    return Counter(split_words(text))


def _find_candidates(texts: list[str], threshold: float) -> Iterator[tuple[int, int]]:
    if len(texts) < 2:
        return
    bands_NB = _hash_bands(texts, _choose_band_size(threshold))
    for hashes_N in bands_NB.T:
        order_N = np.argsort(hashes_N, kind="stable")
        starts = np.flatnonzero(np.diff(hashes_N[order_N])) + 1
        bounds = np.concatenate([[0], starts, [len(texts)]])
        for first in np.flatnonzero(np.diff(bounds) > 1):  # most texts are alone in their bucket
            bucket = order_N[bounds[first] : bounds[first + 1]]
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
        counts = Counter(split_words(text))
        sketch = rensa.RMinHash(num_perm=_NUM_HASHES, seed=0)
        # A repeated word is a token of its own.
        sketch.update([f"{word} {i}" for word, n in counts.items() for i in range(1, n + 1)])
        digest = sketch.digest()
        for band in range(num_bands):
            bands_NB[index, band] = hash(tuple(digest[band * size : (band + 1) * size]))
    return bands_NB
