"""The schema of the labels of a task."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from llmft.config.loading import ConfigSection, suggest


def _write_numbers_as_text(value: Any) -> Any:
    def write(item: Any) -> Any:
        return str(item) if type(item) in (int, float) else item

    match value:
        case dict():
            return {write(k): write(v) for k, v in value.items()}
        case list():
            return [write(item) for item in value]
        case _:
            return write(value)


_TAKES_NUMBERS = BeforeValidator(_write_numbers_as_text, json_schema_input_type=str | float | None)
Names = Annotated[
    list[str],
    BeforeValidator(_write_numbers_as_text, json_schema_input_type=list[str | float]),
]
"""Names of classes; numbers are taken as text."""
NameMap = Annotated[
    dict[str, str],
    BeforeValidator(_write_numbers_as_text, json_schema_input_type=dict[str, str | float]),
]


class ScoresConfig(ConfigSection):
    """Labels that are numbers: one score per dimension."""

    type: Literal["scores"]
    """Scores on one or more dimensions."""
    from_: str | None = Field(default=None, alias="from")
    """Field that holds {dim: 7}, {dim: {score: 7}}, {dimensions: {dim: 7}}, or a plain number if
    there is one dimension only. Without it every dimension is a field of its own."""
    dimensions: list[str] = Field(min_length=1)
    """Dimensions to learn, in this order."""
    range: list[Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(
        default=[0.0, 10.0], min_length=2, max_length=2
    )
    """Lowest and highest score; a row with a score outside is rejected."""
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Dimension -> weight in the overall score, which is their weighted mean; a dimension that is
    left out has weight 0. Without weights the overall score is the unweighted mean."""
    tiers: dict[str, float] | None = Field(default=None, min_length=2)
    """Tier -> lower bound on the overall score, in rising order; rows are stratified by tier, and
    reports have the accuracy of the predicted tier."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_repeats(self.dimensions, key="dimensions")
        if "tiers" in self.dimensions:
            raise ValueError("dimensions: 'tiers' is the name of the tiers; choose another")
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range: the first must be below the second, found {self.range}")
        for name in self.weights or {}:
            if name not in self.dimensions:
                hint = suggest(name, allowed=self.dimensions)
                raise ValueError(f"weights: {name!r} is not among the dimensions.{hint}")
        if self.weights is not None and not sum(self.weights.values()) > 0:
            raise ValueError("weights: at least one must be above 0")
        bounds = list((self.tiers or {}).values())
        if bounds != sorted(set(bounds)):
            raise ValueError(f"tiers: the lower bounds must rise, found {bounds}")
        if bounds and not bounds[0] <= self.range[0] < bounds[1]:
            raise ValueError(
                f"tiers: the first must begin at the lowest score {self.range[0]:g}, so that every "
                f"row has a tier; found {bounds}"
            )
        if bounds and bounds[-1] > self.range[1]:
            raise ValueError(f"tiers: the last begins above the highest score {self.range[1]:g}")
        return self


class ClassConfig(ConfigSection):
    """Labels that are one class per row."""

    type: Literal["class"]
    """One class per row."""
    from_: str | list[str] = Field(alias="from", min_length=1)
    """Field that holds the class, or fields of 0 and 1 of which one is 1."""
    otherwise: Annotated[str | None, _TAKES_NUMBERS] = None
    """Class of rows in which none of the fields in `from` is 1; without it they are rejected."""
    map: NameMap | None = None
    """Value in the data (or field of 0 and 1) -> name of the class; a value that is not listed
    rejects its row. Without a map the values are the names."""
    order: Names | None = Field(default=None, min_length=2)
    """All classes from the lowest to the highest, such as [none, weak, strong]; a class that is not
    listed rejects its row. The positive class of a binary head is the last one. Without it the
    order is that of the map, or sorted."""
    exclude: Names = Field(default=[])
    """Classes whose rows are left out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.from_, str) and self.otherwise is not None:
            raise ValueError("otherwise: only for a list of fields in `from`")
        if isinstance(self.from_, list):
            _refuse_repeats(self.from_, key="from")
            _refuse_unknown(self.map or {}, self.from_, key="map")
        if self.order is not None:
            _refuse_repeats(self.order, key="order")
            _refuse_unknown(self.exclude, self.order, key="exclude", negate=True)
            named = list((self.map or {}).values()) + ([self.otherwise] if self.otherwise else [])
            strange = [n for n in named if n not in (*self.order, *self.exclude)]
            if strange:
                raise ValueError(f"order: lacks the class {strange[0]!r}")
        return self


class MultilabelConfig(ConfigSection):
    """Labels of which any number apply to a row."""

    type: Literal["multilabel"]
    """Any number of labels per row."""
    from_: list[str] = Field(alias="from", min_length=1)
    """Fields of 0 and 1, one per label, in this order."""
    map: NameMap | None = None
    """Field -> name of its label; without it the field's name."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_repeats(self.from_, key="from")
        _refuse_unknown(self.map or {}, self.from_, key="map")
        _refuse_repeats(self.names, key="map")
        return self

    @property
    def names(self) -> list[str]:
        """The labels, in the order of the outputs."""
        return [(self.map or {}).get(field, field) for field in self.from_]


LabelsConfig = ScoresConfig | ClassConfig | MultilabelConfig


def _refuse_repeats(names: list[str], *, key: str) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"{key}: a name is repeated")


def _refuse_unknown(
    names: dict[str, str] | list[str], allowed: list[str], *, key: str, negate: bool = False
) -> None:
    for name in names:
        if (name in allowed) is negate:
            found = "is in `order` as well" if negate else "is not among the fields of `from`"
            raise ValueError(f"{key}: {name!r} {found}")
