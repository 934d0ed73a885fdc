"""The steps of `compare`: audit, measure and compare the variants of a suite."""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from llmft.audit.collapsed_predictions import check_baselines
from llmft.audit.comparability import TREATMENT
from llmft.config.recipe import Recipe, load_recipe
from llmft.config.suite import NoiseKind, Suite, merge_with_defaults
from llmft.config.task import Split
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData, open_prepared
from llmft.data.prompts import read_prompt
from llmft.errors import UserError
from llmft.evaluation.edge_cases import EdgeCase, read_suite_cases, run_cases
from llmft.evaluation.ensembles import find_best_variant, make_ensembles, recommend, sum_costs
from llmft.evaluation.gates import Outcome, measure_train_and_val, predict_train_and_val
from llmft.evaluation.latency import measure_latencies
from llmft.evaluation.noise import SecondLabels, measure_noise, read_second_labels
from llmft.evaluation.post_hoc_fitting import check_fit
from llmft.evaluation.rare_events import measure_rare
from llmft.evaluation.rows import (
    LabelledRows,
    average_metrics,
    describe_rows,
    measure_baselines,
    open_rows,
    pick_worst,
)
from llmft.evaluation.slices import Slicing, list_row_slices, measure_slices, slice_rows
from llmft.evaluation.variants import (
    Criteria,
    Variants,
    decide_variant,
    measure_variant,
    open_variants,
    record_test_read,
)
from llmft.evaluation.verdict import (
    Floats,
    OutputsByVariant,
    Rules,
    Verdict,
    compare_parts,
    compare_with_reference,
    find_valid_variants,
    is_provisional,
    reach_verdict,
)
from llmft.metrics.definitions import find_label_type
from llmft.prediction.inference import Predictor
from llmft.prediction.stored import StoredPredictions
from llmft.results.comparison import (
    ComparisonResult,
    Cost,
    EnsembleResult,
    NoiseResult,
    Pair,
    RareEvents,
    SliceTable,
)
from llmft.results.evaluation import Finding, VariantResult
from llmft.statistics.paired_tests import compute_mcnemar
from llmft.training.run_folder import identify_run, is_finished, list_differences, read_record


class SuiteRun(NamedTuple):
    """A run that the suite names."""

    path: Path
    recipe: Recipe | None
    """The recipe to train it from; None if the suite names the folder itself."""


RunsByVariant = dict[str, list[SuiteRun]]
"""Variant -> its runs."""


def plan_runs(suite: Suite) -> RunsByVariant:
    """List the runs of every variant; raise errors that would otherwise show up after hours.

    Raises:
        UserError: If the task of a recipe is another one, or two runs have the same folder.
    """
    plan: RunsByVariant = {}
    for name, variant in suite.config.variants.items():
        plan[name] = [SuiteRun(Path(run), None) for run in variant.runs or []]
        for seed in variant.seeds or []:
            path = suite.recipe_paths[name]
            folder = Path(load_recipe(path).config.output_dir) / f"seed-{seed}"
            overrides = [f"train.seed={seed}", f"output_dir={json.dumps(str(folder))}"]
            recipe = load_recipe(path, overrides=overrides)
            if recipe.task != suite.task:
                raise UserError(
                    f"{path}: its task is {recipe.config.task}, but the suite's is "
                    f"{suite.config.task}; variants can be compared on one task only"
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
                f"{run.path}: contains no finished run; compare with --train to train it, or "
                "name a finished run in the suite"
            )
        prompt = read_prompt(run.recipe.prompt_path, fields=run.recipe.task.fields)
        identity = identify_run(run.recipe, data, prompt)
        found = read_record(run.path)
        # Differences in the data are reported by the audit.
        same_data = {"data_fingerprint": found.data_fingerprint, "task": found.task}
        differing = list_differences(found, identity.replace(**same_data))
        if differing:
            raise UserError(
                f"{run.path}: was not trained from the suite's recipe: it differs in "
                f"{', '.join(differing)}; train it again, or name the run folder in the suite"
            )


_Predictions = Mapping[str, Sequence[Mapping[Split, StoredPredictions]]]
"""Variant -> predictions of each of its runs for train and val."""


def compare_variants(suite: Suite, plan: RunsByVariant, *, suite_path: Path) -> ComparisonResult:
    """Audit, measure and compare the variants of a suite, and record the read of their test rows.

    Raises:
        UserError: If a run is missing or unreadable.
    """
    inputs, audit, num_test_rows = _open_inputs(suite, plan)
    result = _compare(inputs, audit, suite_path=suite_path, num_test_rows=num_test_rows)
    report = str(Path(suite.config.output_dir) / "comparison.json")
    for run in chain.from_iterable(inputs.variants.values()):
        if run.predictions is not None:
            record_test_read(run.path, by="compare", report=report)
    return result


def _compare(
    inputs: "_ComparisonInputs", audit: list[Finding], *, suite_path: Path, num_test_rows: int
) -> ComparisonResult:
    config, data, rows = inputs.suite.config, inputs.data, inputs.rows
    baselines = measure_baselines(
        data.read_split("train"), rows.rows, names=rows.names, task=data.task
    )
    values = {name: base.metrics.get(config.metric) for name, base in baselines.items()}
    valid = find_valid_variants(list(inputs.variants), audit)
    variants = {
        variant: measure_variant(runs, rows, valid=variant in valid)
        for variant, runs in inputs.variants.items()
    }
    pairs: dict[str, Pair] = {}
    if config.reference in valid:
        pairs = compare_with_reference(
            inputs.get_outputs(valid), rows.labels,
            rules=inputs.rules, groups=rows.groups, config=rows.config,
        )  # fmt: skip
    verdict = reach_verdict(
        pairs, valid_variants=valid, findings=audit, reference=config.reference,
        metric=config.metric, margin=config.margin,
    )  # fmt: skip
    measured = {variant: variants[variant].metrics.get(config.metric) for variant in valid}
    audit += check_baselines(config.metric, measured, values)
    audit += [f for variant in valid for f in check_fit(variant, variants[variant], config.metric)]
    slicings = slice_rows(
        rows.rows, rows.labels, fields=config.slices, names=rows.names, config=rows.config
    )
    analysis = _NO_ANALYSIS
    if verdict.name != "INVALID":
        gates = merge_with_defaults(config.gates, labels=rows.config)
        criteria = Criteria(gates, config.metric, audit, values["constant"])
        analysis = _analyse(inputs, variants, valid, pairs, verdict, criteria, slicings)
        variants |= analysis.variants
    deciding = find_deciding_variants(verdict, valid, reference=config.reference)
    provisional = [variant for variant in deciding if is_provisional(len(inputs.variants[variant]))]
    outcome = decide_comparison(verdict, variants, provisional=provisional)
    recommended = analysis.recommended or verdict.winner
    if recommended == verdict.winner and outcome.decision == "FAIL":
        recommended = None
    described = describe_rows(
        rows.rows,
        rows.labels,
        {variant: [run.final_outputs for run in inputs.variants[variant]] for variant in valid},
        names=rows.names,
        slices=list_row_slices(slicings, num_rows=len(rows.rows)),
    )
    return ComparisonResult(
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        suite=str(suite_path),
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
        num_test_rows=num_test_rows,
        num_dropped=num_test_rows - len(rows.rows),
        num_groups=None if rows.groups is None else int(rows.groups.max()) + 1,
        verdict=verdict.name,
        winner=verdict.winner,
        why=verdict.why,
        decision=outcome.decision,
        reasons=outcome.reasons,
        provisional=bool(provisional),
        recommended=recommended,
        audit=audit,
        variants=variants,
        baselines=baselines,
        pairs=analysis.pairs,
        ensembles=analysis.ensembles,
        slices=analysis.slices,
        rare=analysis.rare,
        noise=analysis.noise,
        rows=described,
        worst_rows=pick_worst(described),
    )


class _ComparisonInputs(NamedTuple):
    """The suite, its runs and the measured rows."""

    suite: Suite
    data: PreparedData
    variants: Variants
    rows: LabelledRows
    cases: list[EdgeCase]
    second: dict[NoiseKind, SecondLabels]
    """Origin of second labels -> these labels."""

    @property
    def rules(self) -> Rules:
        """Metric, reference, margin and minimum difference of the suite."""
        config = self.suite.config
        return Rules(config.metric, config.reference, config.margin, config.min_difference)

    def get_outputs(self, variants: Sequence[str]) -> OutputsByVariant:
        """Return the decision scores [N, C] of each run of some variants."""
        return {
            variant: [run.decision_scores for run in self.variants[variant]] for variant in variants
        }


def _open_inputs(suite: Suite, plan: RunsByVariant) -> tuple[_ComparisonInputs, list[Finding], int]:
    """Return the inputs of the comparison, the audit's findings, and the number of test rows."""
    config = suite.config
    data = open_prepared(suite.task, task_file=config.task)
    data.refuse_metric(config.metric, key="metric")
    test_rows = data.read_split("test")
    cases = read_suite_cases(suite, label_names=data.label_names)
    second = {
        kind: read_second_labels(path, task=suite.task, rows=test_rows, names=data.label_names)
        for kind, path in suite.noise_paths.items()
    }
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
    inputs = _ComparisonInputs(
        suite,
        data,
        opened.variants,
        open_rows(opened.rows, data),
        cases,
        {kind: labels.take(kept) for kind, labels in second.items()},
    )
    return inputs, list(opened.audit), len(test_rows)


class _Analysis(NamedTuple):
    """Results that only a valid comparison has."""

    variants: dict[str, VariantResult]
    """The valid variants, with edge cases, latency, gates and decision."""
    pairs: list[Pair]
    ensembles: dict[str, EnsembleResult]
    recommended: str | None
    """The ensemble to use, if it beats the best single variant."""
    slices: list[SliceTable]
    rare: RareEvents | None
    noise: list[NoiseResult]


_NO_ANALYSIS = _Analysis({}, [], {}, None, [], None, [])


def _analyse(
    inputs: _ComparisonInputs,
    variants: Mapping[str, VariantResult],
    valid: Sequence[str],
    pairs: Mapping[str, Pair],
    verdict: Verdict,
    criteria: Criteria,
    slicings: Sequence[Slicing],
) -> _Analysis:
    config, rows, outputs = inputs.suite.config, inputs.rows, inputs.get_outputs(valid)
    complete = _add_edge_cases_and_latency(
        inputs, {variant_name: variants[variant_name] for variant_name in valid}
    )
    earlier = {
        variant_name: [
            predict_train_and_val(run.path, run.record, inputs.data)
            for run in inputs.variants[variant_name]
        ]
        for variant_name in valid
    }
    decided = {
        variant_name: decide_variant(
            variant_name,
            variant,
            inputs.variants[variant_name],
            rows,
            criteria=criteria,
            splits=measure_train_and_val(
                earlier[variant_name],
                inputs.data,
                metric=config.metric,
                limit=variant.record.recipe.train.limit_rows,
            ),
            provisional=is_provisional(len(inputs.variants[variant_name])),
        )
        for variant_name, variant in complete.items()
    }
    ensembles = measure_ensembles(
        inputs.rules, outputs, rows,
        earlier=earlier,
        val_rows=inputs.data.read_split("val"),
        costs={variant_name: _find_cost(variant) for variant_name, variant in decided.items()},
        may_recommend=verdict.name != "CONFOUNDED",
    )  # fmt: skip
    return _Analysis(
        decided,
        [complete_pair(pair, outputs, rows, rules=inputs.rules) for pair in pairs.values()],
        ensembles,
        next((name for name, found in ensembles.items() if found.recommended), None),
        measure_slices(
            slicings, rows.labels, outputs, metric=config.metric, config=rows.config,
            groups=rows.groups,
        ),
        measure_rare(
            rows.labels, outputs, ids=[row["id"] for row in rows.rows], names=rows.names,
            config=rows.config, high=config.high, top_k=config.top_k,
        ),
        [
            measure_noise(
                again, rows.labels, outputs, kind=kind,
                path=inputs.suite.noise_paths[kind], names=rows.names, groups=rows.groups,
            )
            for kind, again in inputs.second.items()
            if len(again.positions_M)
        ],
    )  # fmt: skip


def _add_edge_cases_and_latency(
    inputs: _ComparisonInputs, variants: Mapping[str, VariantResult]
) -> dict[str, VariantResult]:
    """Add the edge cases and the latency of each variant's first run; models are timed in turns."""
    predictors = {name: Predictor.open(inputs.variants[name][0].path) for name in variants}
    latencies = measure_latencies(predictors, inputs.rows.rows, inputs.suite.config.latency)
    complete = {}
    for name, variant in variants.items():
        edge_cases, fit = None, inputs.variants[name][0].fit
        if inputs.cases:
            edge_cases = run_cases(predictors[name], inputs.cases, name=name, fit=fit)
        complete[name] = variant.replace(edge_cases=edge_cases, latency=latencies[name])
    return complete


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
            is_clustered=rows.groups is not None,
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


def measure_ensembles(
    rules: Rules,
    outputs: OutputsByVariant,
    rows: LabelledRows,
    *,
    earlier: _Predictions,
    val_rows: Sequence[Row],
    costs: Mapping[str, Cost],
    may_recommend: bool,
) -> dict[str, EnsembleResult]:
    """Make ensembles of the valid variants, and compare each with the best single variant.

    An ensemble is recommended only if it beats the best single variant. Routes are chosen on the
    model outputs for validation without calibrators or thresholds, which were fitted on it.

    Args:
        rules: Metric, margin and minimum difference.
        outputs: Decision scores of the valid variants.
        rows: The test rows.
        earlier: Variant -> predictions of each of its runs for validation.
        val_rows: The validation rows; only those that every run predicted are used.
        costs: Cost of one prediction of each variant.
        may_recommend: Whether the comparison is fair, so that an ensemble may be recommended.
    """
    on_val = {variant: [found["val"] for found in earlier[variant]] for variant in outputs}
    shared = _pick_shared(val_rows, [run for runs in on_val.values() for run in runs])
    ensembles = make_ensembles(
        outputs,
        val_variants={
            variant: [_pick_outputs(run, shared) for run in on_val[variant]] for variant in outputs
        },
        val_labels=make_targets(shared, label_names=rows.names).numpy(),
        names=rows.names,
    )
    everyone = {**outputs, **{name: ensemble.runs for name, ensemble in ensembles.items()}}
    measured = {
        name: average_metrics([m.metrics for m in rows.measure(runs)])
        for name, runs in everyone.items()
    }
    best_variant = find_best_variant(
        rules.metric, {variant: measured[variant].get(rules.metric) for variant in outputs}
    )
    pairs = compare_with_reference(
        {name: everyone[name] for name in (best_variant, *ensembles)},
        rows.labels,
        rules=rules._replace(reference=best_variant),
        groups=rows.groups,
        config=rows.config,
    )
    best = recommend(pairs, best_variant=best_variant) if may_recommend else best_variant
    return {
        name: EnsembleResult(
            kind=ensemble.kind,
            made_of=ensemble.made_of,
            routes=ensemble.routes,
            fitted_on=ensemble.fitted_on,
            metrics=measured[name],
            intervals=rows.estimate_intervals(ensemble.runs),
            pair=pairs.get(name),
            recommended=name == best,
            cost=sum_costs([costs[variant] for variant in ensemble.made_of]),
        )
        for name, ensemble in ensembles.items()
    }


def _pick_shared(rows: Sequence[Row], runs: Sequence[StoredPredictions]) -> list[Row]:
    """Return the rows that all runs predicted: runs with a row limit have few of them."""
    everywhere = set.intersection(*(set(run.ids) for run in runs))
    return [row for row in rows if row["id"] in everywhere]


def _pick_outputs(run: StoredPredictions, rows: Sequence[Row]) -> Floats:
    places = {row_id: i for i, row_id in enumerate(run.ids)}
    return run.outputs[[places[row["id"]] for row in rows]]


def _find_cost(variant: VariantResult) -> Cost:
    """Return time and memory of one prediction of a variant."""
    latency = variant.latency
    return Cost(
        single_p50_ms=None if latency is None else latency.single_p50_ms,
        peak_memory_gib=None if latency is None else latency.peak_memory_gib,
        num_parameters=variant.record.num_parameters,
    )


def find_deciding_variants(
    verdict: Verdict, valid_variants: Sequence[str], *, reference: str
) -> list[str]:
    """Return the variants that a verdict depends on: winner and reference, or else all."""
    if verdict.name == "WINNER":
        return [variant for variant in valid_variants if variant in (verdict.winner, reference)]
    return list(valid_variants)


def decide_comparison(
    verdict: Verdict, variants: Mapping[str, VariantResult], *, provisional: Sequence[str]
) -> Outcome:
    """Return whether the variant that the verdict names may be deployed.

    A verdict without a winner is REVIEW, an invalid one is FAIL.

    Args:
        verdict: The verdict of the comparison.
        variants: All variants, the valid ones with their own decisions.
        provisional: Variants that the verdict depends on and that have fewer than three seeds.
    """
    if verdict.name == "INVALID":
        return Outcome("FAIL", ["the comparison is invalid, so no variant can be deployed"])
    if verdict.winner is None:
        if all(variant.decision == "FAIL" for variant in variants.values() if variant.valid):
            return Outcome("FAIL", ["every variant fails its gates"])
        return Outcome("REVIEW", ["the verdict names no variant, so a person has to decide"])
    chosen = variants[verdict.winner]
    assert chosen.decision is not None
    if provisional and chosen.decision == "DEPLOY":
        named = ", ".join(provisional)
        return Outcome(
            "REVIEW",
            [f"provisional: {named} has fewer than 3 seeds, and the verdict depends on it"]
            if len(provisional) == 1
            else [f"provisional: {named} have fewer than 3 seeds, and the verdict depends on them"],
        )
    return Outcome(chosen.decision, chosen.reasons)
