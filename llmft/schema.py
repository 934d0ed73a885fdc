"""`llmft schema [KIND]`: print the JSON Schema of YAML files and results files."""

import argparse
import json
import logging
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from llmft.config.loading import ConfigSection
from llmft.config.recipe import Recipe
from llmft.config.suite import Suite
from llmft.config.task import Task
from llmft.models.saved import ModelSpec
from llmft.results.comparison import ComparisonResult
from llmft.results.evaluation import EvaluationResult
from llmft.results.manifest import Manifest, PredictionManifest
from llmft.results.run import LearningCurve, PostHocFit, ReadLog, RunFile

logger = logging.getLogger(__name__)

CONFIGS: dict[str, type[ConfigSection]] = {
    "task": Task,
    "recipe": Recipe,
    "suite": Suite,
}
"""Kind of YAML -> its schema."""
RESULTS: dict[str, Any] = {
    "manifest": Manifest,
    "training_metadata": RunFile,
    "training_history": LearningCurve,
    "model_spec": ModelSpec,
    "fit": PostHocFit,
    "test_reads": ReadLog,
    "evaluation": EvaluationResult,
    "comparison": ComparisonResult,
    "prediction_manifest": PredictionManifest,
}
"""Kind of results file -> its type."""
KINDS = [*CONFIGS, *RESULTS]
_EXTENDS = {
    "type": ["string", "null"],
    "description": "File with defaults for this one, looked up in the folder of this file first.",
}


def main(arguments: list[str]) -> int:
    """Print the schema of one kind of file, or all of them as one JSON object; return 0."""
    parser = argparse.ArgumentParser(prog="llmft schema", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "kind",
        nargs="?",
        choices=KINDS,
        help="kind of file; without it, all in one object",
    )
    args = parser.parse_args(arguments)
    schemas = {kind: make_schema(kind) for kind in KINDS}
    logger.info("%s", json.dumps(schemas[args.kind] if args.kind else schemas, indent=2))
    return 0


def make_schema(kind: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a kind of file.

    In a YAML that extends another no key is required, at any depth.
    """
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"llmft {kind}",
    }
    if kind in RESULTS:
        described = TypeAdapter(RESULTS[kind]).json_schema(
            mode="serialization", schema_generator=_CompleteGenerator
        )
        return {**head, **described}
    return {
        **head,
        "if": {"required": ["extends"]},
        "then": _describe(CONFIGS[kind], _ExtendingGenerator, place="then"),
        "else": _describe(CONFIGS[kind], _CompleteGenerator, place="else"),
    }


def _describe(
    section: type[ConfigSection], generator: type[GenerateJsonSchema], *, place: str
) -> dict[str, Any]:
    described = section.model_json_schema(
        ref_template=f"#/{place}/$defs/{{model}}", schema_generator=generator
    )
    described["properties"]["extends"] = _EXTENDS
    return described


class _CompleteGenerator(GenerateJsonSchema):
    """Generates the schema of a complete file."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Leave out titles, since they only repeat the keys."""
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> dict[str, Any]:
        """Leave out the names of the classes too."""
        described = super().model_schema(schema)
        del described["title"]
        return described

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> dict[str, Any]:
        """Leave out the keyword `discriminator`, which is not part of JSON Schema."""
        has_key = isinstance(schema["discriminator"], str)  # else members may overlap
        members = super().tagged_union_schema(schema)["oneOf"]
        return {"oneOf" if has_key else "anyOf": members}


class _ExtendingGenerator(_CompleteGenerator):
    """Generates the schema of a file that extends another: no key is required."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        """Require nothing."""
        return False

    def dict_schema(self, schema: core_schema.DictSchema) -> dict[str, Any]:
        """Allow few entries, since they are merged with those of the other file."""
        described = super().dict_schema(schema)
        described.pop("minProperties", None)
        return described

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> dict[str, Any]:
        """Allow a section that fits several members, since the tag may be in the other file."""
        return {"anyOf": super().tagged_union_schema(schema)["oneOf"]}
