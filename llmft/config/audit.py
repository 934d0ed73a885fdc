"""The checks of the audit: what it asks of a comparison, and which answers can be waived."""

from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from llmft.config.loading import ConfigSection

WaivableCheck = Literal[
    "same_data",
    "comparability",
    "seed_replicates",
    "num_seeds",
    "contamination",
    "group_contamination",
    "few_shot_contamination",
    "initial_weights",
    "truncation",
    "identical_inputs",
    "oracle_view",
    "token_budget",
    "collapsed_predictions",
    "baselines",
    "checkpoint_selection",
    "test_reads",
    "trial_run",
    "pretrained_base",
    "unknown_classes",
    "post_hoc_fit",
    "waivers",
]
_NeverWaived = Literal["same_rows", "changed_model"]
NEVER_WAIVED: tuple[str, ...] = get_args(_NeverWaived)
"""Without these there is nothing to measure."""
Check = Literal[WaivableCheck, _NeverWaived]


class WaiverConfig(ConfigSection):
    """A finding of the audit that a person decides to accept; every report repeats it."""

    check: WaivableCheck
    """Name of the check, as the audit prints it."""
    variants: list[str] = Field(default=[])
    """Variants that it is waived for; empty: all."""
    reason: str = Field(min_length=1)
    """Why it does not matter here."""

    @field_validator("check", mode="before")
    @classmethod
    def _refuse_unwaivable(cls, check: Any) -> Any:
        if check in NEVER_WAIVED:
            raise ValueError(f"{check!r} cannot be waived: without it nothing can be measured")
        return check

    @field_validator("reason", mode="before")
    @classmethod
    def _refuse_silence(cls, reason: Any) -> Any:
        if isinstance(reason, str) and not reason.strip():
            raise ValueError("empty; say why it does not matter here")
        return reason
