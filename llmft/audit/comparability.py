"""Whether variants differ in the treatment only, and how each was trained and used (D2, D8)."""

from collections import defaultdict
from collections.abc import Sequence

from llmft.audit.findings import RunFacts, make_finding
from llmft.config.head import SELECTION_METRIC
from llmft.config.recipe import Recipe
from llmft.config.suite import FIXED_KEYS, IDENTITY_KEYS, Check
from llmft.results.evaluation import Finding, Status

TREATMENT = ("base", "head", "prompt", "tokens.max_length")
"""Keys of a recipe in which variants may differ if the suite names no treatment."""
_FOLLOWS_BASE = (
    "train.learning_rate",
    "train.warmup_ratio",
    "train.warmup_steps",
    "train.epochs",
    "train.steps",
)
_MATTERS_WHEN_FROZEN = ("train.metric", "train.limit_rows", "train.precision")
"""Keys of `train` that change the head of a frozen base, which is fitted to all rows at once."""
_MUST_AGREE = (*FIXED_KEYS, "global_batch_size")
_NOT_COMPARED = (
    *IDENTITY_KEYS,
    # These can only refuse a training, they do not change its result.
    "tokens.min_article", "tokens.waive", "train.world_size",
)  # fmt: skip
_NOTED = (
    "prompt.share",
    "train.precision",
    "train.gradient_checkpointing",
    "train.auto_batch_size",
    "train.save_steps",
    "train.save_total_limit",
    "train.report_to",
    "launch",
    "run",
)
_ENVIRONMENT = ("device", "packages", "python", "platform", "num_threads", "git_revision",
                "world_size", "parallelism", "distributed_type", "deepspeed",
                "per_device_batch_size", "gradient_accumulation_steps")  # fmt: skip
"""Environment in the record of a run; compared under `run.`."""
_FEW_READS = 1
_MANY_READS = 10


def check_data(runs: Sequence[RunFacts], *, fingerprint: str) -> list[Finding]:
    """Find variants that were not trained on the prepared data of the test rows."""
    others = [r for r in runs if r.record.data_fingerprint != fingerprint]
    if not others:
        return [
            make_finding("same_data", "ok", "all variants were trained on the same prepared data")
        ]
    return [
        make_finding(
            "same_data", "invalid", f"{r.path} was trained on other prepared data", r.variant
        )
        for r in others
    ]


def check_treatment(
    runs: Sequence[RunFacts], *, reference: str, treatment: Sequence[str] | None = None
) -> list[Finding]:
    """Find variants that differ from the reference in more than the treatment (D2).

    Args:
        runs: The runs of all variants.
        reference: The variant that the others are compared with.
        treatment: Keys of the recipe in which the variants may differ, or `fit`; None:
            `TREATMENT`, and the schedule of training if the bases or their tuning differ.
    """
    check: Check = "comparability"
    of_reference = next(r for r in runs if r.variant == reference)
    expected = _list_settings(of_reference)
    findings: list[Finding] = []
    followed: set[str] = set()
    for run in runs:
        found = _list_settings(run)
        differing = _list_differing(expected, found)
        if "frozen" in (expected["base.tuning"], found["base.tuning"]):
            differing = [key for key in differing if not _is_of_optimisation(key)]
        allowed = _list_allowed(differing, treatment)
        if _is_under("base.model", allowed):
            allowed += _list_defaults(run.record.recipe, of_reference.record.recipe)
        followed |= {key for key in differing if key in allowed and key in _FOLLOWS_BASE}
        confounders = [
            key
            for key in differing
            if key in _MUST_AGREE or not (_is_under(key, _NOTED) or _is_under(key, allowed))
        ]
        for key in confounders:
            name = "the fit (calibrator or thresholds)" if key == "fit" else key
            here, there = (_format_value(settings.get(key)) for settings in (found, expected))
            message = f"{name} is {here} in {run.variant} and {there} in {reference}"
            if key == "fit":
                message += "; fit all variants alike, or name fit in the suite's treatment"
            findings.append(make_finding(check, "confounded", message, run.variant))
        noted = [_format_difference(k, found, expected) for k in differing if _is_under(k, _NOTED)]
        if noted:
            message = f"{run.variant} also differs from {reference} in {', '.join(noted)}"
            findings.append(make_finding(check, "note", message, run.variant))
    if not any(f.status == "confounded" for f in findings):
        declared = "as the suite declares it" if treatment else "the default"
        named = ", ".join(treatment or TREATMENT)
        if followed:
            named += f"; with the base also {', '.join(sorted(followed))}"
        message = f"the variants differ in the treatment only ({declared}: {named})"
        findings.append(make_finding(check, "ok", message))
    return [f for i, f in enumerate(findings) if f not in findings[:i]]


def check_replicates(runs: Sequence[RunFacts]) -> list[Finding]:
    """Find runs of one variant that differ in more than the seed, since runs are averaged.

    A copy of a run, or a run with the same seed, is not a replicate.
    """
    findings = []
    by_variant: defaultdict[str, list[RunFacts]] = defaultdict(list)
    for run in runs:
        by_variant[run.variant].append(run)
    for variant, own in by_variant.items():
        expected = _list_settings(own[0])
        first_by_seed: dict[int, str] = {}
        for run in own:
            seed = run.record.recipe.train.seed
            first = first_by_seed.setdefault(seed, run.path)
            if first != run.path:
                message = f"{run.path} has the same seed {seed} as {first}: it is not a replicate"
                findings.append(make_finding("seed_replicates", "invalid", message, variant))
        for other in own[1:]:
            found = _list_settings(other)
            differing = _list_differing(expected, found)
            if differing:
                matters = any(not _is_under(key, _NOTED) for key in differing)
                status: Status = "invalid" if matters else "note"
                named = ", ".join(_format_difference(key, found, expected) for key in differing)
                message = f"{other.path} differs from {own[0].path} in {named}"
                findings.append(make_finding("seed_replicates", status, message, variant))
    return findings


def _list_allowed(differing: Sequence[str], treatment: Sequence[str] | None) -> tuple[str, ...]:
    """Return the keys in which a variant may differ from the reference."""
    if treatment is None:
        base_differs = any(key in differing for key in ("base.model", "base.tuning"))
        return TREATMENT + (_FOLLOWS_BASE if base_differs else ())
    return tuple(treatment)


def _list_defaults(*recipes: Recipe) -> tuple[str, ...]:
    """Return the keys that no recipe sets, so that their values follow from the base."""
    is_unset = {
        "head.init": all(recipe.head.init == "auto" for recipe in recipes),
        "train.learning_rate": all(recipe.train.learning_rate is None for recipe in recipes),
    }
    return tuple(key for key, unset in is_unset.items() if unset)


def _list_settings(run: RunFacts) -> dict[str, object]:
    """Return the settings that may change a run, as dotted keys."""
    record = run.record
    settings = _flatten(record.resolved_recipe.model_dump(mode="json", by_alias=True))
    for key in (*_NOT_COMPARED, "train.batch_size", "train.gradient_accumulation_steps"):
        settings.pop(key, None)
    # The recipe's batch size is per device, its precision may be auto and its metric the head's
    # default: compare what they stand for. Compare files and folders by their contents.
    settings["train.metric"] = settings["train.metric"] or SELECTION_METRIC[record.recipe.head.type]
    settings["train.precision"] = record.precision
    settings["global_batch_size"] = record.global_batch_size
    settings["init_from"] = record.init_hash
    settings.pop("prompt.file", None)
    settings["prompt.sha256"] = record.prompt_sha256
    settings["fit"] = run.fit
    settings["base.weights"] = run.base_weights
    if record.is_frozen:
        settings = {key: v for key, v in settings.items() if not _is_of_optimisation(key)}
    return settings | {f"run.{key}": getattr(record, key) for key in _ENVIRONMENT}


def _is_of_optimisation(key: str) -> bool:
    """Return whether a setting has no effect on the head of a frozen base."""
    is_of_training = _is_under(key, ("train", "global_batch_size"))
    return is_of_training and key not in _MATTERS_WHEN_FROZEN


def _list_differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    return sorted(k for k in {*one, *other} if one.get(k) != other.get(k))


def _format_difference(key: str, found: dict[str, object], expected: dict[str, object]) -> str:
    """Return a key with both values; of dictionaries only the keys that differ."""
    here, there = found.get(key), expected.get(key)
    if isinstance(here, dict) and isinstance(there, dict):
        changed = [k for k in sorted({*here, *there}) if here.get(k) != there.get(k)]
        return f"{key.removeprefix('run.')} ({', '.join(changed)})"
    return f"{key.removeprefix('run.')} ({here} instead of {there})"


def _format_value(value: object) -> str:
    return "none" if value is None else str(value)


def _flatten(tree: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _is_under(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def check_run(run: RunFacts) -> list[Finding]:
    """Return warnings about how a run was trained: token budget, row limit, base."""
    variant, record = run.variant, run.record
    findings = []
    if record.budget_warnings:
        message = f"{variant}: {'; '.join(record.budget_warnings)}"
        findings.append(make_finding("token_budget", "warning", message, variant))
    waived = record.recipe.tokens.waive
    if waived is not None:
        message = f"{variant}: the refused token budget was waived for the training: {waived}"
        findings.append(make_finding("token_budget", "warning", message, variant))
    limit = record.recipe.train.limit_rows
    if limit is not None:
        message = f"{variant} was trained on at most {limit} rows (train.limit_rows): a quick trial"
        findings.append(make_finding("trial_run", "warning", message, variant))
    if not record.base_pretrained:
        base = record.recipe.base.model
        message = (
            f"{variant}: the base {base} was never pretrained; it is for tests of the pipeline"
        )
        findings.append(make_finding("pretrained_base", "note", message, variant))
    return findings


def check_test_use(run: RunFacts, *, num_reads: int) -> list[Finding]:
    """Check that validation chose the checkpoint, and count how often the test rows were read.

    Args:
        run: The run.
        num_reads: How many reports have read its test predictions, this one included.
    """
    variant, chosen_by = run.variant, run.record.best_metric_name
    findings = []
    if not chosen_by.startswith("val_"):
        message = (
            f"the checkpoint of {variant} was chosen by {chosen_by} instead of a validation metric"
        )
        findings.append(make_finding("checkpoint_selection", "invalid", message, variant))
    else:
        message = f"the checkpoint of {variant} was chosen by {chosen_by}"
        findings.append(make_finding("checkpoint_selection", "ok", message, variant))
    status: Status = (
        "warning" if num_reads >= _MANY_READS else "note" if num_reads > _FEW_READS else "ok"
    )
    times = "once" if num_reads == 1 else f"{num_reads} times"
    message = f"the test rows of {variant} were read {times}, this report included" + (
        "; choosing variants by test results makes these results too optimistic"
        if status == "warning"
        else ""
    )
    return [
        *findings,
        make_finding("test_reads", status, message, variant),
    ]
