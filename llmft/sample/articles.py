"""Invented market news with four scores an article: the same seed gives the same bytes."""

import datetime
import functools
import random
import re
import tomllib
from importlib import resources
from typing import NamedTuple

DIMENSIONS = ("market_stress", "policy_risk", "evidence_quality", "actionability")
NUM_PLANTED = 10

_SCORES_FIELD = "market_news_analysis"
_LABEL_NOISE_SD = 0.7
_WORD_LIMITS = (40, 90)
_FIRST_DAY = datetime.date(2024, 1, 2)


class _Wording(NamedTuple):
    """The content of wording.toml, which explains its notation."""

    outlets: list[str]
    leads: list[str]
    background: list[str]
    slots: dict[str, list[str]]
    titles: dict[str, list[list[str]]]
    sentences: dict[str, list[list[str]]]


def make_articles(*, num_articles: int = 420, seed: int = 7) -> list[dict[str, object]]:
    """Return the sample's rows: invented articles and, among them, ten planted ones.

    A latent level per dimension chooses the wording; the score is that level with noise of
    standard deviation 0.7, rounded to an integer from 0 to 10. Market stress and policy risk are
    correlated, and so are evidence quality and actionability.

    The planted rows show what `prepare` rejects: three are identical to another article, three
    differ from another by a few words, and four are faulty (a dimension missing, a score of 14, the
    score "n/a", title and content empty).

    Args:
        num_articles: Number of valid and distinct articles, at least 10; the ten planted rows are
            added to them.
        seed: Seed of every choice.

    Returns:
        `num_articles + 10` rows with `id`, `title`, `content` (40 to 90 words), `language`,
        `source`, `published_date` (ISO) and `market_news_analysis` (dimension to score).

    Raises:
        ValueError: If `num_articles` is below 10.
    """
    if num_articles < NUM_PLANTED:
        raise ValueError(f"num_articles must be at least {NUM_PLANTED}, not {num_articles}")
    rng = random.Random(seed)
    rows = [_make_article(rng) for _ in range(num_articles)]
    rows += _plant_rows(rows, rng=rng)
    rng.shuffle(rows)
    return [{"id": f"mn-{number:04d}"} | row for number, row in enumerate(rows, start=1)]


@functools.cache
def _load_wording() -> _Wording:
    text = resources.files("llmft.sample").joinpath("wording.toml").read_text(encoding="utf-8")
    return _Wording(**tomllib.loads(text))


def _make_article(rng: random.Random) -> dict[str, object]:
    levels = _draw_levels(rng)
    title, content = _compose(levels, rng=rng)
    while not _WORD_LIMITS[0] <= len(content.split()) <= _WORD_LIMITS[1]:
        title, content = _compose(levels, rng=rng)
    published = _FIRST_DAY + datetime.timedelta(days=rng.randrange(500))
    return {
        "title": title,
        "content": content,
        "language": "en",
        "source": rng.choice(_load_wording().outlets),
        "published_date": published.isoformat(),
        _SCORES_FIELD: {name: _draw_score(level, rng=rng) for name, level in levels.items()},
    }


def _draw_levels(rng: random.Random) -> dict[str, float]:
    """Draw a level in [0, 10] per dimension; the first two correlate, and so do the last two."""
    deviations = {}
    for first, second in (DIMENSIONS[:2], DIMENSIONS[2:]):
        deviations[first] = rng.gauss(0, 1)
        deviations[second] = 0.35 * deviations[first] + 0.94 * rng.gauss(0, 1)
    return {name: _clip(5 + 3 * deviation) for name, deviation in deviations.items()}


def _draw_score(level: float, *, rng: random.Random) -> int:
    return round(_clip(level + rng.gauss(0, _LABEL_NOISE_SD)))


def _clip(level: float) -> float:
    return min(max(level, 0.0), 10.0)


def _compose(levels: dict[str, float], *, rng: random.Random) -> tuple[str, str]:
    """Return a title and a content worded for the levels."""
    wording = _load_wording()
    slots = {name: rng.choice(fillers) for name, fillers in wording.slots.items()}
    # {Sector} is {sector} at the start of a sentence.
    slots |= {name.capitalize(): text[0].upper() + text[1:] for name, text in slots.items()}
    bands = {name: min(int(level / 2), 4) for name, level in levels.items()}
    sentences = {name: rng.choice(wording.sentences[name][bands[name]]) for name in DIMENSIONS}
    advice = sentences.pop("actionability")
    body = list(sentences.values())
    if rng.random() < 0.3:
        body.append(rng.choice(wording.background))
    rng.shuffle(body)
    content = " ".join([rng.choice(wording.leads), *body, advice])
    headline_of = rng.choice(list(wording.titles))
    title = rng.choice(wording.titles[headline_of][bands[headline_of]])
    return _fill(title, slots=slots, rng=rng), _fill(content, slots=slots, rng=rng)


def _fill(template: str, *, slots: dict[str, str], rng: random.Random) -> str:
    chosen = re.sub(r"\[([^]]+)\]", lambda match: rng.choice(match[1].split("|")), template)
    return chosen.format(**slots)


def _plant_rows(rows: list[dict[str, object]], *, rng: random.Random) -> list[dict[str, object]]:
    """Return three repeats and three near repeats of the rows, and four faulty rows."""
    repeats = [dict(row) for row in rng.sample(rows, 6)]
    for row in repeats[3:]:
        row["content"] = f"Update: {row['content']}".removesuffix(".") + " soon."
    incomplete, too_high, not_a_number, empty = (_make_article(rng) for _ in range(4))
    incomplete[_SCORES_FIELD] = _change_scores(incomplete, without="actionability")
    too_high[_SCORES_FIELD] = _change_scores(too_high, policy_risk=14)
    not_a_number[_SCORES_FIELD] = _change_scores(not_a_number, evidence_quality="n/a")
    empty |= {"title": "", "content": ""}
    return [*repeats, incomplete, too_high, not_a_number, empty]


def _change_scores(row: dict[str, object], *, without: str = "", **changes: object) -> object:
    scores = row[_SCORES_FIELD]
    assert isinstance(scores, dict)
    return {name: score for name, score in (scores | changes).items() if name != without}
