"""Texts that repeat each other are found, others are left apart."""

import random
from collections import Counter

import pytest

from llmft.data import duplicates
from llmft.data.duplicates import cluster_texts, measure_similarity
from tests.conftest import WORDS


def make_words(generator: random.Random, num_words: int = 40) -> list[str]:
    return [f"{generator.choice(WORDS)}{generator.randrange(100)}" for _ in range(num_words)]


def test_similarity_is_counted_by_hand() -> None:
    assert measure_similarity("a b c", "a b c") == 1.0
    assert measure_similarity("a b c", "C, b... A!") == 1.0, "order, case and signs do not count"
    assert measure_similarity("a b c", "a b d") == 2 / 4
    assert measure_similarity("a a b", "a b") == 2 / 3, "a repeated word counts"
    assert measure_similarity("a b", "c d") == 0.0
    assert measure_similarity("???", "???!") == 3 / 4, "without words, signs are compared"


@pytest.mark.parametrize("num_changed", [1, 2])
def test_d5_pairs_that_differ_in_a_word_or_two_are_linked(num_changed: int) -> None:
    generator = random.Random(num_changed)
    texts, partners = [], {}
    for _ in range(100):
        words = make_words(generator)
        changed = list(words)
        for position in generator.sample(range(40), num_changed):
            changed[position] = "another"
        partners[len(texts) + 1] = len(texts)
        texts += [" ".join(words), " ".join(changed)]
    ids = cluster_texts(texts, threshold=0.9)
    assert ids == [partners.get(i, i) for i in range(len(texts))]


def test_pairs_below_the_threshold_are_not_linked() -> None:
    words = make_words(random.Random(0))
    changed = ["x", "y", "z", *words[3:]]  # 37 of 43 words shared, 0.86
    assert cluster_texts([" ".join(words), " ".join(changed)], threshold=0.9) == [0, 1]


def test_unrelated_texts_stay_apart() -> None:
    generator = random.Random(0)
    texts = [" ".join(make_words(generator)) for _ in range(2000)]
    assert cluster_texts(texts, threshold=0.9) == list(range(2000))


def test_clusters_are_connected_components() -> None:
    words = make_words(random.Random(0))
    one, two, three = words, ["x", "y", *words[2:]], ["x", "y", "z", "q", *words[4:]]
    texts = [" ".join(t) for t in (one, three, two)]
    assert measure_similarity(texts[0], texts[1]) < 0.9
    assert cluster_texts(texts, threshold=0.9) == [0, 0, 0], "joined by the one between them"


def test_a_thousand_equal_texts_are_one_cluster() -> None:
    texts = ["other", *["the same words again"] * 1000, "quite another"]
    assert cluster_texts(texts, threshold=0.9) == [0, *[1] * 1000, 1001]


def test_texts_that_nearly_agree_cost_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    num_compared = 0

    compare = duplicates._compare

    def count(one: Counter[str], other: Counter[str]) -> float:
        nonlocal num_compared
        num_compared += 1
        return compare(one, other)

    monkeypatch.setattr(duplicates, "_compare", count)
    shared = make_words(random.Random(0), 34)  # any two share 34 of 46 words, 0.74
    texts = [" ".join([*shared, *(f"own{i}x{k}" for k in range(6))]) for i in range(600)]
    assert cluster_texts(texts, threshold=0.9) == list(range(600))
    assert 0 < num_compared < 600 * 160, "of 179,700 pairs"


@pytest.mark.parametrize("texts", [[], ["one"], ["!!!", "???"]])
def test_few_and_wordless_texts(texts: list[str]) -> None:
    assert cluster_texts(texts, threshold=0.9) == list(range(len(texts)))


@pytest.mark.parametrize("threshold", [0.05, 0.5, 1.0])
def test_any_threshold_joins_equal_bags_of_words(threshold: float) -> None:
    ids = cluster_texts(["bank rate falls", "falls bank rate", "music"], threshold=threshold)
    assert ids == [0, 0, 2]
