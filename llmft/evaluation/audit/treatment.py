"""Do the arms differ in the treatment only? (D2)."""

from collections import defaultdict
from collections.abc import Sequence

from llmft.config.audit import Check
from llmft.config.head import SELECTION_METRIC
from llmft.evaluation.audit.findings import RunFacts
from llmft.results.variant import Finding, Status

TREATMENT = ("base", "head", "prompt", "tokens.max_length")
"""Keys of a recipe in which arms may differ where the suite does not say."""
_FOLLOWS_BASE = (
    "train.learning_rate",
    "train.warmup_ratio",
    "train.warmup_steps",
    "train.epochs",
    "train.steps",
)
_MUST_AGREE = (
    "train.metric",
    "tokens.article",
    "train.max_tokens_per_batch",
    "global_batch_size",
)
"""Whatever the treatment: other checkpoints, parts of the articles, or steps are none."""
_NOT_COMPARED = (
    "name", "task", "output_dir", "train.seed",
    # They refuse a training, and change none.
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
                "world_size", "sharing", "distributed_type", "deepspeed",
                "per_device_batch_size", "gradient_accumulation_steps")  # fmt: skip
"""What the record of a run says of how it ran; compared under `run.`."""


def check_data(runs: Sequence[RunFacts], *, fingerprint: str) -> list[Finding]:
    """Every arm has to be trained on the prepared data that it is tested with."""
    others = [r for r in runs if r.record.data_fingerprint != fingerprint]
    if not others:
        return [
            Finding(
                check="same data",
                status="ok",
                variants=[],
                message="all arms were trained on the same prepared data",
            )
        ]
    return [
        Finding(
            check="same data",
            status="invalid",
            variants=[r.arm],
            message=f"{r.run} was trained on other prepared data",
        )
        for r in others
    ]


def check_treatment(
    runs: Sequence[RunFacts], *, reference: str, treatment: Sequence[str] | None = None
) -> list[Finding]:
    """Arms may differ from the reference in the treatment only (D2).

    Args:
        runs: The runs of all arms.
        reference: The arm that the others are held against.
        treatment: Keys of the recipe in which the arms are meant to differ, or `fit`; without them
            `TREATMENT`, and the schedule of training where the bases or their tuning differ.
    """
    check: Check = "only the treatment differs"
    expected = _list_settings(next(r for r in runs if r.arm == reference))
    findings: list[Finding] = []
    for run in runs:
        found = _list_settings(run)
        differing = _list_differing(expected, found)
        allowed = _list_allowed(differing, treatment)
        beside = [
            key
            for key in differing
            if key in _MUST_AGREE or not (_is_under(key, _NOTED) or _is_under(key, allowed))
        ]
        for key in beside:
            name = "the post-hoc fit" if key == "fit" else key
            here, there = (_show(settings.get(key)) for settings in (found, expected))
            message = f"{name} is {here} in {run.arm} and {there} in {reference}"
            if key == "fit":
                message += "; fit all arms alike, or name fit in the suite's treatment"
            findings.append(
                Finding(check=check, status="confounded", variants=[run.arm], message=message)
            )
        noted = [_describe(k, found, expected) for k in differing if _is_under(k, _NOTED)]
        if noted:
            message = f"{run.arm} also differs from {reference} in {', '.join(noted)}"
            findings.append(
                Finding(check=check, status="note", variants=[run.arm], message=message)
            )
    if not any(f.status == "confounded" for f in findings):
        declared = "as the suite declares it" if treatment else "the default"
        named = ", ".join(treatment or TREATMENT)
        message = f"the arms differ in the treatment only ({declared}: {named})"
        findings.append(Finding(check=check, status="ok", variants=[], message=message))
    return [f for i, f in enumerate(findings) if f not in findings[:i]]


def check_seeds(runs: Sequence[RunFacts]) -> list[Finding]:
    """Runs of one arm are averaged, so they must differ in the seed, and in nothing that matters.

    A copy of a run, or one with the same seed, is no further result.
    """
    findings = []
    by_arm: defaultdict[str, list[RunFacts]] = defaultdict(list)
    for run in runs:
        by_arm[run.arm].append(run)
    for arm, own in by_arm.items():
        expected = _list_settings(own[0])
        first_by_seed: dict[int, str] = {}
        for run in own:
            seed = run.record.recipe.train.seed
            first = first_by_seed.setdefault(seed, run.run)
            if first != run.run:
                message = f"{run.run} has the seed {seed} of {first}, so it is no further result"
                findings.append(
                    Finding(
                        check="runs of an arm agree",
                        status="invalid",
                        variants=[arm],
                        message=message,
                    )
                )
        for other in own[1:]:
            found = _list_settings(other)
            differing = _list_differing(expected, found)
            if differing:
                matters = any(not _is_under(key, _NOTED) for key in differing)
                status: Status = "invalid" if matters else "note"
                named = ", ".join(_describe(key, found, expected) for key in differing)
                message = f"{other.run} differs from {own[0].run} in {named}"
                findings.append(
                    Finding(
                        check="runs of an arm agree", status=status, variants=[arm], message=message
                    )
                )
    if any(len(own) == 1 for own in by_arm.values()):
        message = (
            "an arm was trained with one seed only: the intervals cover the choice of rows, not "
            "the luck of training"
        )
        findings.append(Finding(check="several seeds", status="note", variants=[], message=message))
    return findings


def _list_allowed(differing: Sequence[str], treatment: Sequence[str] | None) -> tuple[str, ...]:
    """Return the keys in which an arm may differ from the reference."""
    if treatment is None:
        base_differs = any(key in differing for key in ("base.model", "base.tuning"))
        return TREATMENT + (_FOLLOWS_BASE if base_differs else ())
    return tuple(treatment)


def _list_settings(run: RunFacts) -> dict[str, object]:
    """Return what may make a difference, as dotted keys."""
    record = run.record
    settings = _flatten(record.recipe.model_dump(mode="json", by_alias=True))
    for key in (*_NOT_COMPARED, "train.batch_size", "train.gradient_accumulation_steps"):
        settings.pop(key, None)
    # The recipe's batch size is one device's, its precision may say auto, and its metric be left to
    # the head: take what came of it. Of a file or folder, take what is in it.
    settings["train.metric"] = settings["train.metric"] or SELECTION_METRIC[record.recipe.head.type]
    settings["train.precision"] = record.precision
    settings["global_batch_size"] = record.global_batch_size
    settings["init_from"] = record.init_hash
    settings.pop("prompt.file", None)
    settings["prompt.sha256"] = record.prompt_sha256
    settings["fit"] = run.fit
    settings["base.weights"] = run.base_weights
    return settings | {f"run.{key}": getattr(record, key) for key in _ENVIRONMENT}


def _list_differing(one: dict[str, object], other: dict[str, object]) -> list[str]:
    return sorted(k for k in {*one, *other} if one.get(k) != other.get(k))


def _describe(key: str, found: dict[str, object], expected: dict[str, object]) -> str:
    """Return a key with both values, where these are short."""
    here, there = found.get(key), expected.get(key)
    if isinstance(here, dict) and isinstance(there, dict):
        changed = [k for k in sorted({*here, *there}) if here.get(k) != there.get(k)]
        return f"{key.removeprefix('run.')} ({', '.join(changed)})"
    return f"{key.removeprefix('run.')} ({here} instead of {there})"


def _show(value: object) -> str:
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
