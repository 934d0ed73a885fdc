"""The story of `compare`: the variants of a suite, audited, measured and compared."""

import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from llmft.config.gates import lay_over_defaults
from llmft.config.suite import NoiseKind, Suite
from llmft.config.task import Split
from llmft.data.batches import make_targets
from llmft.data.fields import Row
from llmft.data.prepared import PreparedData, open_prepared
from llmft.evaluation.arms import Arms, open_arms
from llmft.evaluation.audit import TREATMENT, check_baselines
from llmft.evaluation.differences import Floats, Outputs, Rules, compare_with_reference
from llmft.evaluation.edge_cases import EdgeCase, read_suite_cases, run_cases
from llmft.evaluation.fitting import check_fit
from llmft.evaluation.gate_facts import measure_earlier, predict_earlier
from llmft.evaluation.gates import Ruling
from llmft.evaluation.latency import measure_latencies
from llmft.evaluation.metrics import find_label_type
from llmft.evaluation.mixed import find_best_arm, mix_arms, recommend, sum_costs
from llmft.evaluation.noise import SecondLabels, measure_noise, read_second_labels
from llmft.evaluation.paired_tests import compare_classes
from llmft.evaluation.pairs import compare_parts
from llmft.evaluation.plan import Plan, refuse_other_recipes
from llmft.evaluation.rare import measure_rare
from llmft.evaluation.reads import record_test_read
from llmft.evaluation.rows import Rows, average_metrics, open_rows
from llmft.evaluation.slices import Slicing, list_row_slices, measure_slices, slice_rows
from llmft.evaluation.tables import describe_rows, measure_baselines, pick_worst
from llmft.evaluation.variants import Criteria, judge_variant, measure_variant
from llmft.evaluation.verdict import Verdict, find_valid_arms, is_provisional, reach_verdict
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
from llmft.results.variant import Finding, VariantResult

_Predictions = Mapping[str, Sequence[Mapping[Split, StoredPredictions]]]
"""Arm -> what each of its runs predicted for train and validation."""


def compare_variants(suite: Suite, plan: Plan, *, suite_path: Path) -> ComparisonResult:
    """Audit, measure and compare the arms of a suite, and note that their test rows were read.

    Raises:
        UserError: If a run is missing or unreadable.
    """
    contest, audit, num_test_rows = _open_contest(suite, plan)
    result = _compare(contest, audit, suite_path=suite_path, num_test_rows=num_test_rows)
    report = str(Path(suite.config.output_dir) / "comparison.json")
    for run in chain.from_iterable(contest.arms.values()):
        if run.seen is not None:
            record_test_read(run.path, by="compare", report=report)
    return result


def _compare(
    contest: "_Contest", audit: list[Finding], *, suite_path: Path, num_test_rows: int
) -> ComparisonResult:
    config, data, rows = contest.suite.config, contest.data, contest.rows
    baselines = measure_baselines(
        data.read_split("train"), rows.rows, names=rows.names, task=data.task
    )
    values = {name: base.metrics.get(config.metric) for name, base in baselines.items()}
    valid = find_valid_arms(list(contest.arms), audit)
    variants = {
        arm: measure_variant(runs, rows, valid=arm in valid) for arm, runs in contest.arms.items()
    }
    pairs: dict[str, Pair] = {}
    if config.reference in valid:
        pairs = compare_with_reference(
            contest.get_outputs(valid), rows.labels,
            rules=contest.rules, groups=rows.groups, config=rows.config,
        )  # fmt: skip
    verdict = reach_verdict(
        pairs, valid_arms=valid, findings=audit, reference=config.reference,
        metric=config.metric, margin=config.margin,
    )  # fmt: skip
    measured = {arm: variants[arm].metrics.get(config.metric) for arm in valid}
    audit += check_baselines(config.metric, measured, values)
    audit += [f for arm in valid for f in check_fit(arm, variants[arm], config.metric)]
    slicings = slice_rows(
        rows.rows, rows.labels, fields=config.slices, names=rows.names, config=rows.config
    )
    analysis = _NO_ANALYSIS
    if verdict.name != "INVALID":
        gates = lay_over_defaults(config.gates, labels=rows.config)
        criteria = Criteria(gates, config.metric, audit, values["constant"])
        analysis = _analyse(contest, variants, valid, pairs, verdict, criteria, slicings)
        variants |= analysis.variants
    deciding = find_deciding_arms(verdict, valid, reference=config.reference)
    provisional = [arm for arm in deciding if is_provisional(len(contest.arms[arm]))]
    ruling = decide_comparison(verdict, variants, provisional=provisional)
    recommended = analysis.recommended or verdict.winner
    if recommended == verdict.winner and ruling.decision == "FAIL":
        recommended = None
    described = describe_rows(
        rows.rows,
        rows.labels,
        {arm: [run.shown for run in contest.arms[arm]] for arm in valid},
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
        decision=ruling.decision,
        reasons=ruling.reasons,
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


class _Contest(NamedTuple):
    """What is compared."""

    suite: Suite
    data: PreparedData
    arms: Arms
    rows: Rows
    cases: list[EdgeCase]
    second: dict[NoiseKind, SecondLabels]
    """Who gave labels a second time -> these labels."""

    @property
    def rules(self) -> Rules:
        """By what arms are compared."""
        config = self.suite.config
        return Rules(config.metric, config.reference, config.margin, config.min_difference)

    def get_outputs(self, arms: Sequence[str]) -> Outputs:
        """Return what decides, of some arms."""
        return {arm: [run.outputs for run in self.arms[arm]] for arm in arms}


def _open_contest(suite: Suite, plan: Plan) -> tuple[_Contest, list[Finding], int]:
    """Return what is compared, what the audit says of it, and how many test rows there are."""
    config = suite.config
    data = open_prepared(suite.task, task_file=config.task)
    data.refuse_metric(config.metric, key="metric")
    test_rows = data.read_split("test")
    cases = read_suite_cases(suite, label_names=data.label_names)
    second = {
        kind: read_second_labels(path, task=suite.task, rows=test_rows, names=data.label_names)
        for kind, path in suite.noise_paths.items()
    }
    refuse_other_recipes(plan, data)
    opened = open_arms(
        {arm: [run.path for run in runs] for arm, runs in plan.items()},
        data=data,
        rows=test_rows,
        reference=config.reference,
        treatment=config.treatment,
        waivers=config.waive,
    )
    scored_ids = {row["id"] for row in opened.rows}
    kept = [i for i, row in enumerate(test_rows) if row["id"] in scored_ids]
    contest = _Contest(
        suite,
        data,
        opened.arms,
        open_rows(opened.rows, data),
        cases,
        {kind: labels.take(kept) for kind, labels in second.items()},
    )
    return contest, list(opened.audit), len(test_rows)


class _Analysis(NamedTuple):
    """What is found out where the comparison is valid."""

    variants: dict[str, VariantResult]
    """The valid ones, with edge cases, latency, gates and decision."""
    pairs: list[Pair]
    ensembles: dict[str, EnsembleResult]
    recommended: str | None
    """The ensemble to use, if it beats the best single arm."""
    slices: list[SliceTable]
    rare: RareEvents | None
    noise: list[NoiseResult]


_NO_ANALYSIS = _Analysis({}, [], {}, None, [], None, [])


def _analyse(
    contest: _Contest,
    variants: Mapping[str, VariantResult],
    valid: Sequence[str],
    pairs: Mapping[str, Pair],
    verdict: Verdict,
    criteria: Criteria,
    slicings: Sequence[Slicing],
) -> _Analysis:
    config, rows, outputs = contest.suite.config, contest.rows, contest.get_outputs(valid)
    tried = _try_models(contest, {arm: variants[arm] for arm in valid})
    earlier = {
        arm: [predict_earlier(run.path, run.record, contest.data) for run in contest.arms[arm]]
        for arm in valid
    }
    judged = {
        arm: judge_variant(
            arm,
            variant,
            contest.arms[arm],
            rows,
            criteria=criteria,
            splits=measure_earlier(
                earlier[arm],
                contest.data,
                metric=config.metric,
                limit=variant.record.recipe.train.limit_rows,
            ),
            provisional=is_provisional(len(contest.arms[arm])),
        )
        for arm, variant in tried.items()
    }
    ensembles = judge_ensembles(
        contest.rules, outputs, rows,
        earlier=earlier,
        val_rows=contest.data.read_split("val"),
        costs={arm: _find_cost(variant) for arm, variant in judged.items()},
        may_recommend=verdict.name != "CONFOUNDED",
    )  # fmt: skip
    return _Analysis(
        judged,
        [complete_pair(pair, outputs, rows, rules=contest.rules) for pair in pairs.values()],
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
                path=contest.suite.noise_paths[kind], names=rows.names, groups=rows.groups,
            )
            for kind, again in contest.second.items()
            if len(again.positions_M)
        ],
    )  # fmt: skip


def _try_models(
    contest: _Contest, variants: Mapping[str, VariantResult]
) -> dict[str, VariantResult]:
    """Run the model of each arm's first run over the edge cases, and time all of them in turns."""
    predictors = {arm: Predictor.open(contest.arms[arm][0].path) for arm in variants}
    latencies = measure_latencies(predictors, contest.rows.rows, contest.suite.config.latency)
    tried = {}
    for arm, variant in variants.items():
        edge_cases, fit = None, contest.arms[arm][0].fit
        if contest.cases:
            edge_cases = run_cases(predictors[arm], contest.cases, name=arm, fit=fit)
        tried[arm] = variant.replace(edge_cases=edge_cases, latency=latencies[arm])
    return tried


def complete_pair(pair: Pair, outputs: Outputs, rows: Rows, *, rules: Rules) -> Pair:
    """Return what a challenger gains with its gains by part and, of classes, McNemar's test."""
    reference, challenger = outputs[pair.reference], outputs[pair.challenger]
    mcnemar = None
    if find_label_type(rows.labels) == "class":
        mcnemar = compare_classes(
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


def judge_ensembles(
    rules: Rules,
    outputs: Outputs,
    rows: Rows,
    *,
    earlier: _Predictions,
    val_rows: Sequence[Row],
    costs: Mapping[str, Cost],
    may_recommend: bool,
) -> dict[str, EnsembleResult]:
    """Put the valid arms together, and hold each ensemble against the best of them.

    One is recommended only if it beats the best single arm. Routes are chosen by what the models
    themselves say of validation, which post-hoc fits know.

    Args:
        rules: By what arms are compared.
        outputs: What decides, of the valid arms.
        rows: The test rows.
        earlier: Arm -> what each of its runs predicted for validation.
        val_rows: The validation rows; those that every run predicted are looked at.
        costs: What one prediction of each arm takes.
        may_recommend: Whether the arms are fit to be held against each other.
    """
    on_val = {arm: [found["val"] for found in earlier[arm]] for arm in outputs}
    shared = _pick_shared(val_rows, [run for runs in on_val.values() for run in runs])
    mixed = mix_arms(
        outputs,
        val_arms={arm: [_pick_outputs(run, shared) for run in on_val[arm]] for arm in outputs},
        val_labels=make_targets(shared, label_names=rows.names).numpy(),
        names=rows.names,
    )
    everyone = {**outputs, **{name: ensemble.runs for name, ensemble in mixed.items()}}
    measured = {
        name: average_metrics([m.metrics for m in rows.measure(runs)])
        for name, runs in everyone.items()
    }
    best_arm = find_best_arm(
        rules.metric, {arm: measured[arm].get(rules.metric) for arm in outputs}
    )
    pairs = compare_with_reference(
        {name: everyone[name] for name in (best_arm, *mixed)},
        rows.labels,
        rules=rules._replace(reference=best_arm),
        groups=rows.groups,
        config=rows.config,
    )
    best = recommend(pairs, best_arm=best_arm) if may_recommend else best_arm
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
            cost=sum_costs([costs[arm] for arm in ensemble.made_of]),
        )
        for name, ensemble in mixed.items()
    }


def _pick_shared(rows: Sequence[Row], runs: Sequence[StoredPredictions]) -> list[Row]:
    """Return the rows that all runs predicted: a quick trial saw few of them."""
    everywhere = set.intersection(*(set(run.ids) for run in runs))
    return [row for row in rows if row["id"] in everywhere]


def _pick_outputs(run: StoredPredictions, rows: Sequence[Row]) -> Floats:
    places = {row_id: i for i, row_id in enumerate(run.ids)}
    return run.outputs[[places[row["id"]] for row in rows]]


def _find_cost(variant: VariantResult) -> Cost:
    """Return what one prediction of an arm takes."""
    latency = variant.latency
    return Cost(
        single_p50_ms=None if latency is None else latency.single_p50_ms,
        peak_memory_gib=None if latency is None else latency.peak_memory_gib,
        num_parameters=variant.record.num_parameters,
    )


def find_deciding_arms(verdict: Verdict, valid_arms: Sequence[str], *, reference: str) -> list[str]:
    """Return the arms that a verdict rests on: winner and reference, or all where none beats it."""
    if verdict.name == "WINNER":
        return [arm for arm in valid_arms if arm in (verdict.winner, reference)]
    return list(valid_arms)


def decide_comparison(
    verdict: Verdict, variants: Mapping[str, VariantResult], *, provisional: Sequence[str]
) -> Ruling:
    """Return whether the arm that the verdict names may be deployed.

    A verdict that names none is for a person to look at, an invalid one is no ground to deploy
    anything.

    Args:
        verdict: What the comparison says.
        variants: All arms, the valid ones with their own decisions.
        provisional: Arms that the verdict rests on and that have fewer than three seeds.
    """
    if verdict.name == "INVALID":
        return Ruling("FAIL", ["an invalid comparison is no ground to deploy anything"])
    if verdict.winner is None:
        if all(variant.decision == "FAIL" for variant in variants.values() if variant.valid):
            return Ruling("FAIL", ["every arm fails its gates"])
        return Ruling("REVIEW", ["the verdict names no arm, so a person has to decide"])
    chosen = variants[verdict.winner]
    assert chosen.decision is not None
    if provisional and chosen.decision == "DEPLOY":
        named = ", ".join(provisional)
        return Ruling(
            "REVIEW",
            [f"provisional: fewer than 3 seeds of {named}, and the verdict rests on them"],
        )
    return Ruling(chosen.decision, chosen.reasons)
