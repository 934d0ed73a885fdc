"""The runs that a suite names, and whether they are what its recipes say."""

import json
from pathlib import Path
from typing import NamedTuple

from llmft.config.recipe import Recipe, load_recipe
from llmft.config.suite import Suite
from llmft.data.prepared import PreparedData
from llmft.data.prompts import read_prompt
from llmft.errors import UserError
from llmft.training.run_folder import identify_run, is_finished, list_differences, read_record


class PlannedRun(NamedTuple):
    """A run that the suite names."""

    path: Path
    recipe: Recipe | None
    """What it is to be trained from; None if the suite names the folder itself."""


Plan = dict[str, list[PlannedRun]]
"""Arm -> its runs."""


def plan_runs(suite: Suite) -> Plan:
    """List the runs of every arm, and find at once what would fail after hours.

    Raises:
        UserError: If a recipe learns another task, or two runs share a folder.
    """
    plan: Plan = {}
    for arm, variant in suite.config.variants.items():
        plan[arm] = [PlannedRun(Path(run), None) for run in variant.runs or []]
        for seed in variant.seeds or []:
            path = suite.recipe_paths[arm]
            folder = Path(load_recipe(path).config.output_dir) / f"seed-{seed}"
            overrides = [f"train.seed={seed}", f"output_dir={json.dumps(str(folder))}"]
            recipe = load_recipe(path, overrides=overrides)
            if recipe.task != suite.task:
                raise UserError(
                    f"{path}: learns {recipe.config.task}, which is not the suite's task "
                    f"{suite.config.task}; arms can be compared on one task only"
                )
            plan[arm].append(PlannedRun(folder, recipe))
    owners: dict[Path, str] = {}
    for arm, runs in plan.items():
        for run in runs:
            if run.path.resolve() in owners:
                owner = owners[run.path.resolve()]
                mend = (
                    "give each recipe its own output_dir"
                    if run.recipe is not None
                    else "name another run folder, or remove it"
                )
                raise UserError(f"variants.{arm}: uses the run {run.path} of {owner}; {mend}")
            owners[run.path.resolve()] = arm
    return plan


def refuse_other_recipes(plan: Plan, data: PreparedData) -> None:
    """Stop if a run was not trained from the recipe that the suite names.

    Raises:
        UserError: With what differs.
    """
    for run in (run for runs in plan.values() for run in runs):
        if run.recipe is None:
            continue
        if not is_finished(run.path):
            raise UserError(
                f"{run.path}: holds no finished run; compare with --train to train it, or name a "
                "finished run in the suite"
            )
        prompt = read_prompt(run.recipe.prompt_path, fields=run.recipe.task.fields)
        identity = identify_run(run.recipe, data, prompt)
        found = read_record(run.path)
        # Other data is for the audit to judge.
        same_data = {"data_fingerprint": found.data_fingerprint, "task": found.task}
        differing = list_differences(found, identity.replace(**same_data))
        if differing:
            raise UserError(
                f"{run.path}: was not trained from the suite's recipe: it differs in "
                f"{', '.join(differing)}; train it again, or name the run folder in the suite"
            )
