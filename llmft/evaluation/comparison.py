"""The steps of `compare`: audit, measure and compare the variants of a suite."""

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from llmft.audit.collapsed_predictions import check_baselines, check_collapsed_predictions
from llmft.audit.comparability import TREATMENT
from llmft.audit.findings import apply_waivers, make_finding
from llmft.config.recipe import Recipe, ResolvedRecipe, load_recipe
from llmft.config.suite import FEWEST_SEEDS, NoiseKind, ResolvedSuite, merge_with_defaults
from llmft.config.task import name_task
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData, open_prepared
from llmft.data.prompts import read_recipe_prompt
from llmft.errors import UserError
from llmft.evaluation.baselines import measure_baselines
from llmft.evaluation.edge_cases import EdgeCase, read_suite_cases, run_cases
from llmft.evaluation.ensembles import find_cost, measure_ensembles
from llmft.evaluation.gates import Outcome, measure_train_and_val, predict_train_and_val
from llmft.evaluation.latency import group_by_memory, measure_latencies
from llmft.evaluation.noise import SecondLabels, measure_noise, read_second_labels
from llmft.evaluation.post_hoc_fitting import check_fit
from llmft.evaluation.probe_baseline import predict_probe
from llmft.evaluation.rare_events import measure_rare
from llmft.evaluation.rows import (
    LabelledRows,
    describe_rows,
    open_rows,
    pick_worst,
)
from llmft.evaluation.slices import Slicing, list_row_slices, measure_slices, slice_rows
from llmft.evaluation.variants import (
    Criteria,
    Run,
    Variants,
    decide_variant,
    measure_variant,
    open_variants,
    record_test_read,
)
from llmft.evaluation.verdict import (
    OutputsByVariant,
    Rules,
    Verdict,
    bound_without_assumptions,
    compare_parts,
    compare_with_best,
    compare_with_reference,
    find_level,
    find_unseen,
    find_valid_variants,
    jackknife_variants,
    reach_verdict,
)
from llmft.metrics.definitions import find_label_type, is_better
from llmft.prediction.inference import Predictor
from llmft.results.comparison import ComparisonResult, Gap, Pair, Scope, UnseenRows
from llmft.results.evaluation import (
    Finding,
    VariantResult,
)
from llmft.results.files import read_result
from llmft.results.run import RunRecord
from llmft.statistics.paired_tests import compute_mcnemar
from llmft.training.run_folder import identify_run, is_finished, list_differences, read_record
from llmft.wording import count

logger = logging.getLogger(__name__)


class SuiteRun(NamedTuple):
    """A run that the suite names."""

    path: Path
    recipe: ResolvedRecipe | None
    """The recipe to train it from; None if the suite names the folder itself."""


_ABOUT_AS_CHEAP = 1.1
"""A variant that costs up to so many times as much as another is about as cheap."""
RunsByVariant = dict[str, list[SuiteRun]]
"""Variant -> its runs."""


def plan_runs(suite: ResolvedSuite) -> RunsByVariant:
    """List the runs of every variant; raise errors that would otherwise show up after hours.

    Raises:
        UserError: If the task of a recipe is another one, or two runs have the same folder.
    """
    plan: RunsByVariant = {}
    for name, variant in suite.config.variants.items():
        plan[name] = [SuiteRun(Path(run), None) for run in variant.runs or []]
        for seed in variant.seeds or []:
            source = suite.recipes[name]
            folder = Path(load_recipe(source).config.output_dir) / f"seed-{seed}"
            overrides = {"train.seed": seed, "output_dir": str(folder)}
            recipe = load_recipe(source, overrides=overrides)
            if recipe.task != suite.task:
                raise UserError(
                    f"variants.{name}: the task of its recipe is {name_task(recipe.config.task)}, "
                    f"but the suite's is {name_task(suite.config.task)}; variants can be compared "
                    "on one task only: choose one"
                )
            plan[name].append(SuiteRun(folder, recipe))
    owners: dict[Path, str] = {}
    for name, runs in plan.items():
        for run in runs:
            if run.path.resolve() in owners:
                owner = owners[run.path.resolve()]
                fix = (
                    "give each recipe its own output_dir"
                    if run.recipe is not None
                    else "name another run folder, or remove it"
                )
                raise UserError(f"variants.{name}: uses the run {run.path} of {owner}; {fix}")
            owners[run.path.resolve()] = name
    return plan


def check_before_training(suite: ResolvedSuite, plan: RunsByVariant, data: PreparedData) -> None:
    """Raise before the training what the comparison would raise after it.

    Raises:
        UserError: If the metric is not defined, or a file or run that the suite names is unusable.
    """
    data.refuse_metric(suite.config.metric, key="metric")
    read_suite_cases(suite, label_names=data.label_names)
    _read_noise(suite, data, rows=data.read_split("test"))
    for run in chain.from_iterable(plan.values()):
        if run.recipe is None:
            read_record(run.path)


def _read_noise(
    suite: ResolvedSuite, data: PreparedData, *, rows: list[Row]
) -> dict[NoiseKind, SecondLabels]:
    return {
        kind: read_second_labels(path, task=suite.task, rows=rows, names=data.label_names)
        for kind, path in suite.noise_paths.items()
    }


def check_run_recipes(plan: RunsByVariant, data: PreparedData) -> None:
    """Stop if a run was not trained from the recipe that the suite names.

    Raises:
        UserError: With what differs.
    """
    for run in (run for runs in plan.values() for run in runs):
        if run.recipe is None:
            continue
        if not is_finished(run.path):
            raise UserError(
                f"{run.path}: contains no finished run; train it with "
                "`llmft compare SUITE --train`, or name a finished run in the suite"
            )
        identity = identify_run(run.recipe, data, read_recipe_prompt(run.recipe))
        found = read_record(run.path)
        # Differences in the data are reported by the audit.
        same_data = {"data_fingerprint": found.data_fingerprint, "task": found.task}
        differing = list_differences(found, identity.replace(**same_data))
        if differing:
            raise UserError(
                f"{run.path}: was not trained from the suite's recipe: it differs in "
                f"{', '.join(differing)}; train it again, or name the run folder in the suite"
            )


class Comparison(NamedTuple):
    """The runs of a suite after their audit, and the rows to measure them on."""

    suite: ResolvedSuite
    data: PreparedData
    opened: Variants
    """All runs of the suite."""
    variants: Variants
    """The runs that are measured."""
    few_seeds: list[str]
    """Valid variants with so few seeds that the comparison is about trained models only."""
    valid: list[str]
    """Variants that the audit does not exclude."""
    audit: list[Finding]
    rows: LabelledRows
    slicings: list[Slicing]
    num_test_rows: int
    """Rows of the test split, the excluded ones included."""
    cases: list[EdgeCase]
    second_labels: dict[NoiseKind, SecondLabels]
    look: int = 1
    """Which look at these variants it is (`find_look`)."""

    @property
    def scope(self) -> Scope:
        """What a verdict is about."""
        return "models" if self.few_seeds else "recipes"

    @property
    def rules(self) -> Rules:
        """Metric, reference and thresholds of the suite, and the error rate at this look."""
        config = self.suite.config
        return Rules(
            config.metric, config.reference, config.margin, config.min_difference,
            level=find_level(self.look), next_level=find_level(self.look + 1),
        )  # fmt: skip

    @property
    def outputs(self) -> OutputsByVariant:
        """Decision scores [N, C] of each run of the valid variants."""
        return {name: [run.decision_scores for run in self.variants[name]] for name in self.valid}


def open_comparison(suite: ResolvedSuite, plan: RunsByVariant) -> Comparison:
    """Open the runs of a suite and its test rows, predict them, and audit all of it.

    Raises:
        UserError: If a run is missing or unreadable, or not of the suite's recipe.
    """
    config = suite.config
    data = open_prepared(suite.task, named=config.task)
    data.refuse_metric(config.metric, key="metric")
    test_rows = data.read_split("test")
    cases = read_suite_cases(suite, label_names=data.label_names)
    second_labels = _read_noise(suite, data, rows=test_rows)
    check_run_recipes(plan, data)
    opened = open_variants(
        {variant: [run.path for run in runs] for variant, runs in plan.items()},
        data=data,
        rows=test_rows,
        reference=config.reference,
        treatment=config.treatment,
        waivers=config.waive,
    )
    scored_ids = {row["id"] for row in opened.rows}
    kept = [i for i, row in enumerate(test_rows) if row["id"] in scored_ids]
    rows, findings = open_rows(opened.rows, data), opened.audit
    names = list(opened.variants)
    valid = find_valid_variants(names, apply_waivers(findings, config.waive))
    is_settled = False
    while not is_settled:  # a variant that is excluded may be the one with the fewest seeds
        variants, few_seeds = choose_runs(opened.variants, valid, metric=config.metric)
        found = find_collapsed(variants, valid, rows)
        findings += [finding for finding in found if finding not in findings]
        before, valid = valid, find_valid_variants(names, apply_waivers(findings, config.waive))
        is_settled = valid == before
    findings += [*_note_few_seeds(few_seeds), *rows.check_rare_classes()]
    return Comparison(
        suite=suite,
        data=data,
        opened=opened.variants,
        variants=variants,
        few_seeds=few_seeds,
        valid=valid,
        audit=apply_waivers(findings, config.waive),
        rows=rows,
        slicings=slice_rows(
            rows.rows, rows.labels, fields=config.slices, names=rows.names, config=rows.config
        ),
        num_test_rows=len(test_rows),
        cases=cases,
        second_labels={kind: labels.take(kept) for kind, labels in second_labels.items()},
    )


def find_look(path: Path, comparison: Comparison) -> int:
    """Return which look at the same variants a comparison is (D19).

    The next one after an earlier comparison, by the same metric, of the same reference with one of
    the same challengers, on other rows or with other seeds. The same rows and runs again are the
    same look, and what could find nothing was none. With other recipes it is the first one, since
    choosing among recipes by test results is no look.

    Args:
        path: `comparison.json` of the earlier comparison.
        comparison: The one that follows.
    """
    if not path.is_file():
        return 1
    try:
        before = read_result(path, ComparisonResult, fix="remove it")
    except UserError as error:
        logger.warning("this counts as the first look at these variants: %s", error)
        return 1
    config = comparison.suite.config
    ours = {name: _strip(runs[0].record) for name, runs in comparison.opened.items()}
    theirs = {name: _strip(variant.record) for name, variant in before.variants.items()}
    is_alike = before.metric == config.metric
    is_alike &= theirs.pop(before.reference) == ours.pop(config.reference)
    if not is_alike or not any(recipe in theirs.values() for recipe in ours.values()):
        return 1
    measured = {str(run.path) for runs in comparison.variants.values() for run in runs}
    of_before = {run.path for variant in before.variants.values() for run in variant.runs}
    is_same = before.data.fingerprint == comparison.data.fingerprint and of_before == measured
    could_find = any(pair.shortage is None for pair in before.pairs)
    return before.look if is_same or not could_find else before.look + 1


def _strip(record: RunRecord) -> Recipe:
    """Return a recipe without what differs between its runs."""
    recipe = record.recipe
    train = recipe.train.model_copy(update={"seed": 0})
    return recipe.model_copy(update={"name": "", "task": "", "output_dir": "", "train": train})


def find_collapsed(variants: Variants, valid: list[str], rows: LabelledRows) -> list[Finding]:
    """Find variants whose measured runs predict the same for every row (D9)."""
    found: list[Finding] = []
    for name in valid:
        outputs = [(run.record.recipe.train.seed, run.decision_scores) for run in variants[name]]
        found += check_collapsed_predictions(name, rows.labels, outputs)
    return found


def _note_few_seeds(few_seeds: Sequence[str]) -> list[Finding]:
    if not few_seeds:
        return []
    message = (
        f"fewer than {FEWEST_SEEDS} seeds of {', '.join(few_seeds)}: the intervals cover the "
        "sampling of rows, not the variance between seeds"
    )
    return [make_finding("num_seeds", "note", message)]


def choose_runs(variants: Variants, valid: list[str], *, metric: str) -> tuple[Variants, list[str]]:
    """Return the runs that are measured, and the variants with too few seeds (D16).

    If a valid variant has n < 3 seeds, each is represented by one run: of its first n the one that
    is best on validation, so that no variant gains by having more to choose from. A frozen base has
    no luck of training: one run of it is enough.

    Args:
        variants: All runs.
        valid: Variants that the audit did not exclude.
        metric: The leading metric.
    """
    few_seeds = {
        name: len(variants[name])
        for name in valid
        if len(variants[name]) < FEWEST_SEEDS and not variants[name][0].record.is_frozen
    }
    if not few_seeds:
        return variants, []
    first = min(few_seeds.values())
    chosen = {name: [_pick_best(variants[name][:first], metric)] for name in valid}
    return variants | chosen, list(few_seeds)


def _pick_best(runs: Sequence[Run], metric: str) -> Run:
    """Return the run that is best on validation, the first of equal ones."""
    best = runs[0]
    for run in runs[1:]:
        if is_better(metric, run.get_val(metric), best.get_val(metric)):
            best = run
    return best


class Judgement(NamedTuple):
    """A verdict and what it rests on."""

    verdict: Verdict
    pairs: dict[str, Pair]
    """Challenger -> its gain over the reference."""
    gaps: dict[str, Gap]
    """Variant -> by how much it is behind the best; empty unless the comparison is fair."""
    unseen: UnseenRows | None


def judge_variants(comparison: Comparison) -> Judgement:
    """Compare the valid variants with the reference and with the best, and reach the verdict."""
    config, rows = comparison.suite.config, comparison.rows
    pairs: dict[str, Pair] = {}
    gaps: dict[str, Gap] = {}
    unseen = None
    if config.reference in comparison.valid and len(comparison.valid) > 1:
        jackknifed = jackknife_variants(
            comparison.outputs, rows.labels,
            rules=comparison.rules, groups=rows.groups, config=rows.config,
        )  # fmt: skip
        bounds = bound_without_assumptions(jackknifed)
        pairs = {
            name: pair.replace(assumption_free=bounds.get(name))
            for name, pair in compare_with_reference(jackknifed).items()
        }
        gaps, unseen = compare_with_best(jackknifed), find_unseen(jackknifed)
    verdict = reach_verdict(
        pairs, valid_variants=comparison.valid, findings=comparison.audit,
        reference=config.reference, metric=config.metric, margin=config.margin,
        scope=comparison.scope, level=comparison.rules.level,
    )  # fmt: skip
    is_fair = verdict.name not in ("INVALID", "CONFOUNDED")
    return Judgement(verdict, pairs, gaps if is_fair else {}, unseen)


def compare_variants(comparison: Comparison, *, probe: Path | None = None) -> ComparisonResult:
    """Measure the valid variants, compare them with the reference, and reach the verdict.

    Unless the verdict is INVALID, `complete_result` then adds all else, and the decision.

    Args:
        comparison: The variants and rows.
        probe: The finished run of the baseline `probe`; None to leave it out.
    """
    config, data, rows = comparison.suite.config, comparison.data, comparison.rows
    valid = comparison.valid
    predicted = None
    if probe is not None:
        test_rows = data.read_split("test")
        predicted = predict_probe(
            probe, rows, name="test", all_rows=test_rows, data=data.fingerprint
        )
    baselines = measure_baselines(
        {name: comparison.variants[name] for name in valid},
        rows,
        data=data,
        fit=comparison.variants[config.reference][0].fit,
        metric=config.metric,
        probe=predicted,
    )
    variants = {
        variant: measure_variant(runs, rows, valid=variant in valid).replace(
            gains=baselines.gains.get(variant, {})
        )
        for variant, runs in comparison.variants.items()
    }
    judged = judge_variants(comparison)
    audit = [
        *comparison.audit,
        *check_baselines(
            config.metric,
            {variant: variants[variant].metrics.get(config.metric) for variant in valid},
            baselines.get_values(config.metric),
        ),
        *(f for name in valid for f in check_fit(name, variants[name], config.metric)),
    ]
    described = describe_rows(
        rows.rows,
        rows.labels,
        {name: [run.final_outputs for run in comparison.variants[name]] for name in valid},
        names=rows.names,
        slices=list_row_slices(comparison.slicings, num_rows=len(rows.rows)),
    )
    return ComparisonResult(
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        suite=comparison.suite.file,
        task=data.task.name,
        data=data.manifest,
        reference=config.reference,
        metric=config.metric,
        margin=config.margin,
        min_difference=config.min_difference,
        treatment=config.treatment or list(TREATMENT),
        waivers=config.waive,
        label_type=find_label_type(rows.labels),
        label_names=rows.names,
        num_rows=len(rows.rows),
        num_clusters=rows.num_clusters,
        num_test_rows=comparison.num_test_rows,
        num_dropped=comparison.num_test_rows - len(rows.rows),
        verdict=judged.verdict.name,
        winner=judged.verdict.winner,
        why=judged.verdict.why,
        decision="FAIL",
        reasons=[
            "the comparison is invalid, so no variant can be deployed"
            if judged.verdict.name == "INVALID"
            else "no gate was applied"
        ],
        pairs=list(judged.pairs.values()),
        gaps=judged.gaps,
        unseen=judged.unseen,
        scope=comparison.scope,
        left_out=_list_left_out(comparison),
        look=comparison.look,
        level=comparison.rules.level,
        audit=audit,
        variants=variants,
        baselines=baselines.measurements,
        probe=baselines.probe,
        rows=described,
        worst_rows=pick_worst(described),
    )


def complete_result(comparison: Comparison, result: ComparisonResult) -> ComparisonResult:
    """Add what only a valid comparison has, and decide.

    That is edge cases, latency, gates, gains per part, ensembles, slices, rare events and noise.
    """
    config, data, rows = comparison.suite.config, comparison.data, comparison.rows
    outputs, verdict = comparison.outputs, Verdict(result.verdict, result.winner, result.why)
    runs = {name: comparison.variants[name] for name in comparison.valid}
    gates = merge_with_defaults(config.gates)
    train_val_predictions = {
        name: [predict_train_and_val(run.path, run.record, data, names=gates) for run in found]
        for name, found in runs.items()
    }
    values = {name: found.metrics.get(config.metric) for name, found in result.baselines.items()}
    criteria = Criteria(gates, config.metric, result.audit, values)
    decided = {
        name: decide_variant(
            name, variant, runs[name], rows,
            criteria=criteria,
            splits=measure_train_and_val(
                train_val_predictions[name], data,
                metric=config.metric, limit=variant.record.recipe.train.limit_rows,
            ),
            few_seeds=comparison.few_seeds,
        )
        for name, variant in _add_edge_cases_and_latency(comparison, result.variants).items()
    }  # fmt: skip
    ensembles = measure_ensembles(
        comparison.rules, outputs, rows,
        train_val_predictions=train_val_predictions,
        val_rows=data.read_split("val"),
        costs={name: find_cost(variant) for name, variant in decided.items()},
        may_recommend=verdict.name != "CONFOUNDED"
        and all(variant.decision != "FAIL" for variant in decided.values()),
    )  # fmt: skip
    variants = result.variants | decided
    outcome = decide_comparison(verdict, variants)
    recommended = next((name for name, found in ensembles.items() if found.recommended), None)
    recommended = recommended or recommend_variant(decided, result.gaps, winner=verdict.winner)
    return result.replace(
        variants=variants,
        decision=outcome.decision,
        reasons=outcome.reasons,
        recommended=recommended,
        pairs=[complete_pair(p, outputs, rows, rules=comparison.rules) for p in result.pairs],
        ensembles=ensembles,
        slices=measure_slices(
            comparison.slicings, rows.labels, outputs, metric=config.metric, config=rows.config,
            groups=rows.groups,
        ),
        rare=measure_rare(
            rows.labels, outputs, ids=[row["id"] for row in rows.rows], names=rows.names,
            config=rows.config, high=config.high, top_k=config.top_k, groups=rows.groups,
        ),
        noise=[
            measure_noise(
                again, rows.labels, outputs, kind=kind,
                path=comparison.suite.noise_paths[kind], names=rows.names, groups=rows.groups,
                config=rows.config,
            )
            for kind, again in comparison.second_labels.items()
            if len(again.positions_M)
        ],
    )  # fmt: skip


def _add_edge_cases_and_latency(
    comparison: Comparison, variants: Mapping[str, VariantResult]
) -> dict[str, VariantResult]:
    """Add edge cases and latency of each valid variant's first run.

    Models are timed in turns, as many as fit into memory together.
    """
    first = {name: comparison.variants[name][0] for name in comparison.valid}
    groups = group_by_memory({name: run.record for name, run in first.items()})
    if len(groups) > 1:
        logger.warning(
            "latency: the models do not fit into memory together; %s are timed one after another, "
            "so that a machine that slows down meanwhile slows some of them only",
            " | ".join(", ".join(group) for group in groups),
        )  # fmt: skip
    logger.info(
        "timing predictions of %s, in turns: about a minute each, less for fast ones",
        count(len(first), "model"),
    )
    complete = {}
    for group in groups:
        predictors = {name: Predictor.open(first[name].path) for name in group}
        latencies = measure_latencies(
            predictors, comparison.rows.rows, comparison.suite.config.latency
        )
        for name, predictor in predictors.items():
            edge_cases = None
            if comparison.cases:
                edge_cases = run_cases(predictor, comparison.cases, name=name)
            complete[name] = variants[name].replace(edge_cases=edge_cases, latency=latencies[name])
        predictors.clear()
        del predictor  # memory holds one group at a time
    return {name: complete[name] for name in first}


def recommend_variant(
    variants: Mapping[str, VariantResult], gaps: Mapping[str, Gap], *, winner: str | None
) -> str | None:
    """Return the cheapest of the winner and the variants that are as good as the best (D22).

    The fastest, of about as fast ones the one with the least memory, of those the best. Not told
    apart is not as good: without a winner, and a variant whose bound stays within the margin of the
    best, there is none. Nor is one whose gates fail.

    Args:
        variants: The valid variants with their decisions.
        gaps: By how much each is behind the best.
        winner: The variant that the verdict names.
    """
    usable = [
        name
        for name, variant in variants.items()
        if variant.decision != "FAIL"
        and (name == winner or (name in gaps and gaps[name].within_margin))
    ]
    costs = {name: find_cost(variants[name]) for name in usable}
    for key in ("single_p50_ms", "peak_memory_gib"):
        values = {name: getattr(costs[name], key) for name in usable}
        usable = [n for n in usable if values[n] <= _ABOUT_AS_CHEAP * min(values.values())]
    return min(usable, key=lambda name: gaps[name].gap if name in gaps else 0.0, default=None)


def _list_left_out(comparison: Comparison) -> dict[str, list[str]]:
    """Return the runs of each variant that are not measured."""
    measured = {run.path for runs in comparison.variants.values() for run in runs}
    left_out = {
        name: [str(run.path) for run in runs if run.path not in measured]
        for name, runs in comparison.opened.items()
    }
    return {name: paths for name, paths in left_out.items() if paths}


def record_test_reads(comparison: Comparison, *, report: Path) -> None:
    """Record in every run whose test predictions were read that a report has read them (D8)."""
    for run in chain.from_iterable(comparison.opened.values()):
        if run.predictions is not None:
            record_test_read(run.path, by="compare", report=str(report))


def complete_pair(
    pair: Pair, outputs: OutputsByVariant, rows: LabelledRows, *, rules: Rules
) -> Pair:
    """Add the gains per dimension, class or label, and McNemar's test for classes."""
    reference, challenger = outputs[pair.reference], outputs[pair.challenger]
    mcnemar = None
    if find_label_type(rows.labels) == "class":
        mcnemar = compute_mcnemar(
            rows.labels,
            reference=reference,
            challenger=challenger,
            groups=rows.groups,
        )
    parts = compare_parts(
        rows.labels,
        names=rows.names,
        reference=reference,
        challenger=challenger,
        min_difference=rules.min_difference,
        groups=rows.groups,
    )
    return pair.replace(mcnemar=mcnemar, parts=parts)


def decide_comparison(verdict: Verdict, variants: Mapping[str, VariantResult]) -> Outcome:
    """Return whether the variant that the verdict names may be deployed.

    Without a winner it is REVIEW, or FAIL if every valid variant fails its gates.

    Args:
        verdict: The verdict of a valid comparison.
        variants: All variants, the valid ones with their own decisions.
    """
    if verdict.winner is None:
        if all(variant.decision == "FAIL" for variant in variants.values() if variant.valid):
            return Outcome("FAIL", ["every variant fails its gates"])
        return Outcome("REVIEW", ["the verdict names no variant, so a person has to decide"])
    chosen = variants[verdict.winner]
    assert chosen.decision is not None
    return Outcome(chosen.decision, chosen.reasons)
