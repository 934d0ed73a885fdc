"""The checks of the audit: what it asks of a comparison, and which answers can be waived."""

from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from llmft.config.loading import Section

WaivableCheck = Literal[
    "same data",
    "only the treatment differs",
    "runs of an arm agree",
    "several seeds",
    "unseen rows",
    "unseen groups",
    "examples in the prompt",
    "weights begun with",
    "articles seen",
    "inputs differ",
    "what the oracle saw",
    "token budget",
    "predictions vary",
    "beats the baselines",
    "checkpoint chosen on val",
    "test reads",
    "trial",
    "pretrained base",
    "known classes",
    "post-hoc fit",
    "waivers",
]
_NeverWaived = Literal["same rows", "same model"]
NEVER_WAIVED: tuple[str, ...] = get_args(_NeverWaived)
"""Where these fail there is nothing to score."""
Check = Literal[WaivableCheck, _NeverWaived]


class WaiverConfig(Section):
    """A finding of the audit that a person takes the blame for; every report repeats it."""

    check: WaivableCheck
    """Name of the check, as the audit prints it."""
    arms: list[str] = Field(default=[])
    """Whom it is waived for; empty: all."""
    reason: str = Field(min_length=1)
    """Why it does not matter here."""

    @field_validator("check", mode="before")
    @classmethod
    def _refuse_unwaivable(cls, check: Any) -> Any:
        if check in NEVER_WAIVED:
            raise ValueError(f"{check!r} cannot be waived: without it nothing can be scored")
        return check

    @field_validator("reason", mode="before")
    @classmethod
    def _refuse_silence(cls, reason: Any) -> Any:
        if isinstance(reason, str) and not reason.strip():
            raise ValueError("empty; say why it does not matter here")
        return reason
