"""The methods of a comparison: each procedure with its level and its source."""

from typing import NamedTuple

from llmft.reports import formatting as f
from llmft.reports.layout import Block, HeaderCell, Section, Table, make_columns
from llmft.results.comparison import ComparisonResult
from llmft.wording import count


class Method(NamedTuple):
    """A statistical procedure."""

    name: str
    used_for: str
    level: str
    source: str
    is_used: bool = True


def make_methods(result: ComparisonResult) -> Section:
    """Return the appendix that names every statistical procedure behind the report."""
    methods = [m for m in list_methods(result) if m.is_used] if result.pairs else []
    texts = {
        "used for": [method.used_for for method in methods],
        "level": [method.level for method in methods],
        "source": [method.source for method in methods],
    }
    table = Table(
        "Statistical procedures", "procedure", [HeaderCell(method.name) for method in methods],
        make_columns(texts, words=list(texts)),
    )  # fmt: skip
    units = count(result.num_rows, "test row")
    if result.num_clusters < result.num_rows:
        units += f" in {count(result.num_clusters, 'cluster')}, which are drawn as a whole"
    intro = (
        f"{units}; look {result.look}, which decides at {f.format_percent(result.level)}. How "
        "often verdicts by these procedures are false on simulated rows: `llmft bench verdict`, "
        "and its table in the documentation of suites."
    )
    return Section("Statistical procedures", intro, [Block(table)])


def list_methods(result: ComparisonResult) -> list[Method]:
    """Return the procedures of comparisons, with those that this one did not need."""
    level, sure = f.format_percent(result.level), f.format_percent(1 - result.level)
    metrics = {name for variant in result.variants.values() for name in variant.metrics}
    several = len(result.pairs) > 1
    safety = max((pair.safety_factor for pair in result.pairs), default=1.0)
    return [
        Method(
            "jackknife over clusters of rows",
            "influence of each cluster on metrics and gains, and their variances",
            "",
            "Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 11.2",
        ),
        Method(
            "bootstrap-t",
            "intervals, bounds and p-values: 4,000 draws of the influences; the more cautious of "
            "it and Student's t, which is alone beyond all draws; above 2,000 clusters of merged "
            "ones, for metrics of rankings of 50",
            f"intervals 95 %, bounds of the verdict {sure} each",
            "Efron and Tibshirani 1993, section 12.5; Hall 1988, doi:10.1214/aos/1176350933",
        ),
        Method(
            "effective number of clusters",
            "degrees of freedom of Student's t",
            "10, and 20 rows, for any evidence",
            "Carter, Schnepel and Steigerwald 2017, doi:10.1162/REST_a_00639",
        ),
        Method(
            "rows crossed with seeds",
            "variance over rows and seeds, and its degrees of freedom",
            "",
            "Searle, Casella and McCulloch 1992, Variance Components, section 4.5; Owen 2007, "
            "doi:10.1214/07-AOAS122; Satterthwaite 1946, doi:10.2307/3002019; normal multipliers: "
            "van der Vaart and Wellner 1996, section 2.9",
            is_used=any(len(v.runs) > 1 for v in result.variants.values() if v.valid),
        ),
        Method(
            f"safety factor {safety:.3g}",
            "all error rates of gains (pairs, simultaneous, best, parts, probe, power) are divided "
            "by it, and their p-values multiplied: 1.1 + 8 / effective number of clusters "
            f"({8 / (safety - 1.1):.0f}), since skewed errors in few clusters need it, and more by "
            "part; not those of single metrics, slices, gates and betting",
            f"5 % is computed at {f.format_percent(0.05 / safety)}, {level} at "
            f"{f.format_percent(result.level / safety)}",
            "calibration of a level by simulation: Loh 1987, doi:10.1080/01621459.1987.10478408",
        ),
        Method(
            "spent error rate",
            "each further look at the same variants decides at a smaller level",
            f"look {result.look}: 5 % times 6 / (π × {result.look})², {level}; all looks 5 %",
            "union bound",
        ),
        Method(
            "Holm's correction",
            "p-values of the verdict over challengers; those by dimension, class or label over "
            "these, for each challenger by itself; those against the probe over variants",
            f"verdict {level}; parts and probe 5 % at every look",
            "Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure",
        ),
        Method(
            "max-t",
            "simultaneous intervals of all challengers",
            "95 % together",
            "Westfall and Young 1993, Resampling-Based Multiple Testing, section 2.5",
            is_used=several,
        ),
        Method(
            "multiple comparisons with the best",
            "which variants may be the best, and which are as good as it",
            f"upper bounds {sure} together, by max-t",
            "Hsu 1984, doi:10.1214/aos/1176346732",
            is_used=bool(result.gaps),
        ),
        Method(
            "MOVER of two splits",
            "gates val_test_gap and train_val_gap, from the intervals on each split",
            "95 %",
            "Zou and Donner 2008, doi:10.1002/sim.3095",
            is_used=any(
                gate.name.endswith("_gap") for v in result.variants.values() for gate in v.gates
            ),
        ),
        Method(
            "noncentral t",
            "power, with the critical value of the bounds, and the rows or seeds that have 80 % "
            "power at the next look",
            f"{level} over the safety factor and the number of challengers",
            "Lehmann and Romano 2005, Testing Statistical Hypotheses, section 5.2",
        ),
        Method(
            "exact binomial interval",
            "fractions of independent rows of one run; metrics with hardly any error",
            "95 %",
            "Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404",
        ),
        Method(
            "MOVER of Wilson's intervals",
            "interval of the mean recall",
            "95 %",
            "Wilson 1927, doi:10.1080/01621459.1927.10502953; Zou and Donner 2008, "
            "doi:10.1002/sim.3095",
            is_used="balanced_accuracy" in metrics,
        ),
        Method(
            "placements of clustered data",
            "variance of the area under the ROC curve; its interval, and that of average "
            "precision, by Student's t on the logit scale",
            "95 %",
            "Obuchowski 1997, doi:10.2307/2533958; Pepe 2003, The Statistical Evaluation of "
            "Medical Tests, section 5.2.3",
            is_used="roc_auc" in metrics,
        ),
        Method(
            "McNemar's exact test",
            "rows that only one of two first runs classifies correctly; nothing rests on it",
            "two-sided",
            "McNemar 1947, doi:10.1007/BF02295996",
            is_used=any(pair.mcnemar for pair in result.pairs),
        ),
        Method(
            "rule of three",
            "fraction of articles, or clusters of them, of a kind that no test row shows",
            "95 %, exact",
            "Hanley and Lippman-Hand 1983, doi:10.1001/jama.1983.03330370053031",
            is_used=result.unseen is not None,
        ),
        Method(
            "betting",
            "lower bounds of gains that assume only the range of the errors; nothing rests on them",
            sure,
            "Waudby-Smith and Ramdas 2024, doi:10.1093/jrsssb/qkad009",
            is_used=any(pair.assumption_free is not None for pair in result.pairs),
        ),
    ]
