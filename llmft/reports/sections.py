"""The sections that both pages have: metrics by part, predictions, calibration and curves."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llmft.reports.audit import group_findings
from llmft.reports.fits import make_fits
from llmft.reports.metric_tables import (
    explain_metrics,
    make_all_parts_table,
    make_calibration_table,
    make_confused_table,
    make_parts_table,
    make_reliability_table,
)
from llmft.reports.outline import Block, Section
from llmft.reports.rendering import SavedPlot, name_file, save_plot
from llmft.reports.series import (
    GAP,
    MAX_COUNTED_CLASSES,
    MAX_POINTS,
    Series,
    choose_part_metric,
    list_baselines,
    list_metrics,
    style_variant,
)
from llmft.reports.tables import Table
from llmft.reports.worst_rows import list_worst_rows
from llmft.results.variant import Judgement, VariantResult

Found = TypeVar("Found")

if TYPE_CHECKING:
    from llmft.reports.plots.figures import Plot

_KINDS = {"scores": "dimension", "class": "class", "multilabel": "label"}
_PREDICTED = {
    "scores": "Every dot is a row, at the mean over the runs where there are several; of more than "
    f"{MAX_POINTS} rows, some evenly picked ones are drawn. Good dots "
    "follow the dashed line; a flat cloud says the same of all rows. Residuals are predicted minus "
    "true: where they fall from left to right, low scores are predicted too high and high ones "
    "too low.",
    "class": "Rows are true classes, columns predicted ones, summed over the runs where there are "
    "several. The larger a cell is within its row, the stronger its colour; good predictions "
    "colour the diagonal only.",
    "multilabel": "For the most frequent labels: whether a label applies to a row, against whether "
    "it was predicted, summed over the runs where there are several. Good predictions colour the "
    "diagonal only.",
}
_RELIABLE = (
    "Where a probability of 0.8 is given{what}, 80 % should be true; on the dashed line they are. "
    "Below it, the probabilities promise too much. The bars beneath say how many stand behind each "
    "point. ece: how far the points are from the line, on average over what the bars count; chance "
    "alone: what it would stay below in 95 % of draws if every probability were right. Brier: the "
    "mean squared distance of the probabilities from what came true; sharp and right ones are near "
    "0."
)
_CALIBRATED = {
    "scores": "Each point is a stratum of rows with similar labels. On the dashed line, their mean "
    "is right; a line that is flatter than it is compressed: low scores are predicted too high and "
    "high ones too low. Slope: how much of a step in the label arrives in the prediction, 1 at "
    "best. Bias: how much too high the predictions are on average.",
    "class": _RELIABLE.format(what=" to the most probable class, or to the last of two classes"),
    "multilabel": _RELIABLE.format(what=" to a label, whichever it is"),
}


class Scene(NamedTuple):
    """Who is shown on a page, and by what."""

    result: Judgement
    variants: Mapping[str, VariantResult]
    arms: list[Series]
    baselines: list[Series]
    metric: str
    """The one that is shown by dimension, class or label."""

    @property
    def series(self) -> list[Series]:
        """The arms, then the baselines."""
        return [*self.arms, *self.baselines]

    @property
    def kind(self) -> str:
        """What the metric is shown by."""
        return _KINDS[self.result.label_type]

    def collect(self, read: Callable[[VariantResult], Found | None]) -> dict[str, Found]:
        """Return what was found of every arm that has it."""
        found = {arm.name: read(self.variants[arm.name]) for arm in self.arms}
        return {name: value for name, value in found.items() if value}

    def pick(self, found: Mapping[str, Any]) -> list[Series]:
        """Return the arms of which something was found."""
        return [arm for arm in self.arms if arm.name in found]


def set_scene(result: Judgement, variants: Mapping[str, VariantResult]) -> Scene:
    """Return who is shown."""
    metric = choose_part_metric(
        result.metric, parts=[v.parts for v in variants.values()], label_type=result.label_type
    )
    arms = [
        style_variant(i, name=name, found=found, metric=metric)
        for i, (name, found) in enumerate(variants.items())
    ]
    return Scene(result, variants, arms, list_baselines(result.baselines), metric)


def make_sections(scene: Scene, plots: dict[str, list[SavedPlot]]) -> dict[str, Any]:
    """Return what the templates of both pages use.

    Args:
        scene: Who is shown.
        plots: What `draw_sections` drew, saved.
    """
    series, kind = scene.series, scene.kind
    return {
        "audit": group_findings(scene.result.audit),
        "arms": scene.arms,
        "series": series,
        "kind": kind,
        "explained": explain_metrics(list_metrics(series)),
        "shared": {
            "fits": make_fits(scene.variants, scene.arms),
            "parts": _make_parts(scene, plots["parts"]),
            "predicted": _make_predicted(scene, plots),
            "calibration": _make_calibration(scene, plots["calibration"]),
            "curves": Section(
                "Learning curves",
                "One line per run. Losses of arms with different heads or label scales are not "
                "comparable; the validation metric is.",
                [Block(plots=plots["curves"], legend=scene.arms)],
            ),
        },
        "worst_rows": list_worst_rows(scene.result, scene.arms),
    }


def _make_parts(scene: Scene, plots: list[SavedPlot]) -> Section:
    kind, series = scene.kind, scene.series
    table = make_parts_table(series, metric=scene.metric, kind=kind)
    intro = f"{table.caption}; the best value of a row is marked."
    if GAP in [head.name for head in table.heads]:
        intro += (
            " Of so many only the worst and the best are here, the worst first; the results file "
            "has the rest."
        )
    all_parts = make_all_parts_table(series, kind=kind)
    blocks = [
        Block(table, plots=plots, legend=[s for s in series if s.parts]),
        Block(all_parts, summary=all_parts.caption),
    ]
    return Section(f"By {kind}", intro, blocks if table.heads else [])


def _make_predicted(scene: Scene, plots: dict[str, list[SavedPlot]]) -> Section:
    groups = [plots["predicted"], plots["residuals"], plots["tiers"]]
    if len(scene.arms) == 1:
        groups = [[plot for found in groups for plot in found]]
    blocks = [Block(plots=found, titled=True) for found in groups if found]
    confused = _tabulate_confused(scene, is_drawn=bool(blocks))
    if confused and confused.heads:
        blocks.append(Block(confused))
    return Section("Predicted against true", _PREDICTED[scene.result.label_type], blocks)


def _make_calibration(scene: Scene, plots: list[SavedPlot]) -> Section:
    scores = scene.collect(lambda v: v.calibration)
    probabilities = scene.collect(lambda v: v.reliability)
    if scores:
        names = scene.result.label_names
        table = make_calibration_table(scores, scene.pick(scores), names=names)
        blocks = [Block(table, plots=plots, legend=scene.arms)]
    else:
        table = make_reliability_table(probabilities, scene.pick(probabilities))
        blocks = [Block(table), Block(plots=plots, legend=scene.arms, titled=True)]
    found = scores or probabilities
    return Section("Calibration", _CALIBRATED[scene.result.label_type], blocks if found else [])


def draw_sections(scene: Scene) -> "dict[str, list[Plot]]":
    """Return the plots; who draws needs matplotlib."""
    from llmft.reports.plots.curves import draw_curves
    from llmft.reports.plots.parts import draw_parts

    drawn: dict[str, list[Plot]] = {"parts": [], "residuals": [], "tiers": []}
    if any(s.parts for s in scene.series):
        drawn["parts"] = [draw_parts(scene.series, metric=scene.metric, kind=scene.kind)]
    drawn |= _draw_scores(scene) if scene.result.label_type == "scores" else _draw_classes(scene)
    curves = [(arm, [run.curve for run in scene.variants[arm.name].runs]) for arm in scene.arms]
    return {**drawn, "curves": draw_curves(curves)}


def save_plots(
    drawn: "dict[str, list[Plot]]", *, folder: Path, prefix: str = ""
) -> dict[str, list[SavedPlot]]:
    """Save the plots of every section."""
    return {
        key: [save_plot(plot, folder=folder, prefix=prefix) for plot in found]
        for key, found in drawn.items()
    }


def _draw_scores(scene: Scene) -> "dict[str, list[Plot]]":
    from llmft.reports.plots.classes import draw_tiers
    from llmft.reports.plots.scores import draw_predicted, draw_residuals, draw_strata

    names, rows = scene.result.label_names, scene.result.rows
    rows = rows[:: -(-len(rows) // MAX_POINTS) or 1]
    seen = {arm.name: [row for row in rows if arm.name in row.outputs] for arm in scene.arms}
    seen = {name: found for name, found in seen.items() if found}
    calibrations = scene.collect(lambda v: v.calibration)
    return {
        "predicted": _draw_each(
            scene, "predicted", seen, partial(draw_predicted, label_names=names)
        ),
        "residuals": _draw_each(
            scene, "residuals", seen, partial(draw_residuals, label_names=names)
        ),
        "tiers": _draw_each(scene, "tiers", scene.collect(lambda v: v.tiers), draw_tiers),
        "calibration": [draw_strata(calibrations, scene.pick(calibrations), names=names)]
        if calibrations
        else [],
    }


def _draw_classes(scene: Scene) -> "dict[str, list[Plot]]":
    from llmft.reports.plots.classes import (
        draw_confusion,
        draw_label_confusions,
        draw_reliability,
    )

    matrices = scene.collect(lambda v: v.confusion_matrix)
    confusions = scene.collect(lambda v: v.label_confusions)
    draw = partial(draw_confusion, label_names=scene.result.label_names)
    return {
        "predicted": _draw_each(scene, "predicted", matrices, draw)
        + _draw_each(scene, "predicted", confusions, draw_label_confusions),
        "calibration": _draw_each(
            scene, "calibration", scene.collect(lambda v: v.reliability), draw_reliability
        ),
    }


def _draw_each(
    scene: Scene, section: str, found: Mapping[str, Any], draw: "Callable[..., Plot]"
) -> "list[Plot]":
    """Draw a plot for each arm of which something was found."""
    return [
        draw(found[arm.name], arm, name=f"{section}-{i}-{name_file(arm.name)}")
        for i, arm in enumerate(scene.arms, start=1)
        if arm.name in found
    ]


def _tabulate_confused(scene: Scene, *, is_drawn: bool) -> Table | None:
    """Return what was confused most; None where the confusion matrix that is drawn says it."""
    found, names = scene.collect(lambda v: v.confusion_matrix), scene.result.label_names
    if not found or (is_drawn and len(names) <= MAX_COUNTED_CLASSES):
        return None
    return make_confused_table(found, scene.pick(found), names=names)
