"""Is the comparison fair, and did the models see the articles? Asked before any metric."""

from llmft.evaluation.audit.findings import RunFacts, apply_waivers
from llmft.evaluation.audit.inputs import check_inputs, check_oracle_view
from llmft.evaluation.audit.leakage import (
    KnownRows,
    Leaks,
    check_groups,
    check_leaks,
    check_overlap,
    check_prompt,
    check_start,
    find_known_rows,
    find_quoted_rows,
)
from llmft.evaluation.audit.outputs import check_baselines, check_variation
from llmft.evaluation.audit.runs import check_run, check_test_use
from llmft.evaluation.audit.single import RunAudit, audit_run
from llmft.evaluation.audit.treatment import TREATMENT, check_data, check_seeds, check_treatment

__all__ = [
    "TREATMENT",
    "KnownRows",
    "Leaks",
    "RunAudit",
    "RunFacts",
    "apply_waivers",
    "audit_run",
    "check_baselines",
    "check_data",
    "check_groups",
    "check_inputs",
    "check_leaks",
    "check_oracle_view",
    "check_overlap",
    "check_prompt",
    "check_run",
    "check_seeds",
    "check_start",
    "check_test_use",
    "check_treatment",
    "check_variation",
    "find_known_rows",
    "find_quoted_rows",
]
