"""The schema of a task: sources, fields, labels, cleaning and splits."""

import codecs
import json
import math
import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    field_validator,
    model_validator,
)

from llmft.config.frames import Frame, is_frame
from llmft.config.loading import (
    TAKES_PATHS,
    ConfigFile,
    ConfigSection,
    FaultList,
    LocatedValues,
    Overrides,
    find_named_file,
    load_values,
    suggest,
    validate,
)
from llmft.files import StrPath

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SEEN_SPLITS: tuple[Split, ...] = ("train", "val")
"""Splits that training and the choice of the checkpoint see."""
PREPARED_NAMES = {
    "id": "the id",
    "text": "the joined text",
    "labels": "the labels",
    "group": "the group",
    "cluster": "the cluster",
}
"""Reserved field of a prepared row -> its content, for error messages."""
_Values = list[str | int | float | bool]
_INTEGRAL = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0+")


def write_value(value: Any) -> str:
    """Return a value as text: true, not True; 7, not 7.0, since a column with a gap holds floats.

    Fractions are written as Python does; a string is returned as it is.
    """
    match value:
        case bool():
            return json.dumps(value)
        case float() | Decimal() if math.isfinite(value) and value == int(value):
            return str(int(value))
        case Decimal():
            return str(float(value))
        case _:
            return str(value)


def name_class(value: Any) -> str:
    """Return the name of a class or label in data or configuration (D24).

    An integral number, or a boolean, has one name however it is written: `1`, `1.0`, "1" and "1.0"
    are one class, as are true, "true" and "True". Codes such as "007" stay as they are.
    """
    text = write_value(value)
    if text.lower() in ("true", "false"):
        return text.lower()
    integral = _INTEGRAL.fullmatch(text)
    text = integral[1] if integral else text
    return "0" if text == "-0" else text


def _name_classes(value: Any) -> Any:
    match value:
        case dict():
            return {_name_class(k): _name_class(v) for k, v in value.items()}
        case list():
            return [_name_class(item) for item in value]
        case _:
            return _name_class(value)


def _name_class(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(
            f"found {json.dumps(value)}, which is a boolean, not a name; quote it: "
            f"{json.dumps(value)!r}"
        )
    return name_class(value) if isinstance(value, int | float | str) else value


_NAMES_CLASS = BeforeValidator(_name_classes, json_schema_input_type=str | float | None)
Names = Annotated[
    list[str],
    BeforeValidator(_name_classes, json_schema_input_type=list[str | float]),
]
"""Names of classes; numbers are taken as text."""
NameMap = Annotated[
    dict[str, str],
    BeforeValidator(_name_classes, json_schema_input_type=dict[str, str | float]),
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
    otherwise: Annotated[str | None, _NAMES_CLASS] = None
    """Class of rows in which none of the fields in `from` is 1; without it they are rejected."""
    map: NameMap | None = None
    """Value in the data (or field of 0 and 1) -> name of the class; a value that is not listed
    rejects its row, which counts towards `max_rejected`: list classes to leave out here and in
    `exclude`. Without a map the values are the names."""
    order: Names | None = Field(default=None, min_length=2)
    """All classes from the lowest to the highest, such as [none, weak, strong]; a class that is not
    listed rejects its row, which counts towards `max_rejected`, unless it is in `exclude`. The
    positive class of a binary head is the last one. Without it the order is that of the map, or
    sorted."""
    exclude: Names = Field(default=[])
    """Classes whose rows are left out."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.from_, str) and self.otherwise is not None:
            raise ValueError("otherwise: only for a list of fields in `from`")
        if isinstance(self.from_, list):
            _refuse_repeats(self.from_, key="from")
            _refuse_unknown(self.map or {}, list(map(name_class, self.from_)), key="map")
        if self.order is not None:
            _refuse_repeats(self.order, key="order")
            _refuse_unknown(self.exclude, self.order, key="exclude", negate=True)
            named = list((self.map or {}).values()) + ([self.otherwise] if self.otherwise else [])
            unknown = [n for n in named if n not in (*self.order, *self.exclude)]
            if unknown:
                raise ValueError(f"order: lacks the class {unknown[0]!r}")
        return self

    @property
    def known_names(self) -> list[str] | None:
        """The classes that the task lists; None if the data name them."""
        if self.order is not None:
            return self.order
        if isinstance(self.from_, list):
            named = [(self.map or {}).get(name_class(field), field) for field in self.from_]
        elif self.map is not None:
            named = list(self.map.values())
        else:
            return None
        named += [self.otherwise] if self.otherwise is not None else []
        return [name for name in dict.fromkeys(named) if name not in self.exclude]


class MultilabelConfig(ConfigSection):
    """Labels of which any number apply to a row."""

    type: Literal["multilabel"]
    """Any number of labels per row."""
    from_: str | list[str] = Field(alias="from", min_length=1)
    """Field that holds the labels that apply, as a list or separated by commas; or fields of 0 and
    1, one per label, in this order."""
    names: Names | None = Field(default=None, min_length=1)
    """For a field that holds the labels: all of them, in the order of the outputs; a row with
    another one is rejected. Without them those in the data, sorted."""
    map: NameMap | None = None
    """Label in the data, or field of 0 and 1 -> name of the label; what is not listed keeps its
    name."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.from_, list):
            _refuse_repeats(self.from_, key="from")
            _refuse_unknown(self.map or {}, list(map(name_class, self.from_)), key="map")
            if self.names is not None:
                raise ValueError("names: only for one field that holds the labels; use `map`")
        _refuse_repeats(self.known_names or [], key="map" if self.names is None else "names")
        return self

    @property
    def known_names(self) -> list[str] | None:
        """The labels, in the order of the outputs; None if the data name them."""
        if isinstance(self.from_, str):
            return self.names
        return [self.rename(field) for field in self.from_]

    def rename(self, name: str) -> str:
        """Return the name of the label with this field or name in the data."""
        return (self.map or {}).get(name_class(name), name)


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


def rank_given(split: Split | None) -> int:
    """Return the precedence of a split that a source fixes: test is highest; -1 without one."""
    return -1 if split is None else SPLITS.index(split)


class SourceConfig(ConfigSection):
    """One input file, glob or data set, or in Python a DataFrame."""

    path: Annotated[str, TAKES_PATHS] = Field(min_length=1)
    """File or glob; `.jsonl`, `.json`, `.csv`, `.tsv` and `.parquet` are read, by ending, and all
    but Parquet with `.gz` or `.zst` behind it too. Or `hf://owner/name` on the Hugging Face Hub,
    `hf://owner/name@revision`, `hf://FOLDER`. Or in Python a pandas DataFrame."""
    encoding: str = "utf-8"
    """Encoding of JSON and CSV files, as Python names it."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Character between the cells of a CSV; without it a comma, of `.tsv` a tab."""
    columns: list[str] | None = Field(default=None, min_length=1)
    """Names of the columns of a CSV without a header, in their order."""
    split: Split | None = None
    """Split that all rows of this source belong to, such as a given test set; other rows are
    assigned to the splits that no source fixes."""
    subset: str | None = None
    """Configuration of a `hf://` data set that has several."""
    rows: str | None = None
    """Split of a `hf://` data set to read; without it all of them."""
    _frame: Frame | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        """Compare the keys: the path of a DataFrame has a hash of its rows."""
        return isinstance(other, SourceConfig) and dict(self) == dict(other)

    @property
    def frame(self) -> Frame | None:
        """The DataFrame; None for files and data sets, and if the keys come from a file."""
        return self._frame

    @model_validator(mode="wrap")
    @classmethod
    def _take_frame(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        given = value if isinstance(value, dict) else {"path": value}
        if not is_frame(given.get("path")):
            return handler(value)
        frame = Frame.make(given["path"])
        made = handler({**given, "path": frame.path})
        made._frame = frame
        return made

    @field_validator("encoding")
    @classmethod
    def _check_encoding(cls, encoding: str) -> str:
        try:
            codecs.lookup(encoding)
            "é".encode(encoding, "replace")  # base64, idna and the like are not text encodings
        except (LookupError, UnicodeError) as error:
            raise ValueError(
                f"found {encoding!r}, which is not a text encoding of Python, such as utf-8, "
                "latin-1, cp1252, utf-16"
            ) from error
        return encoding

    @model_validator(mode="after")
    def _check_hub(self) -> Self:
        if not self.path.startswith("hf://") and (self.subset or self.rows):
            raise ValueError("subset and rows are for hf:// sources only")
        if self.columns is not None:
            _refuse_repeats(self.columns, key="columns")
        return self


class FieldsConfig(ConfigSection):
    """Which fields of an input row are used."""

    id: str | None = None
    """Field with the row's id; without it the id is a hash of the text, with -2, -3 for repeats."""
    text: Annotated[
        list[str],
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value,
            json_schema_input_type=str | list[str],
        ),
    ] = Field(default=["text"], min_length=1)
    """Field or fields that make up the article, joined by a blank line."""
    text_pair: str | None = None
    """Field that the model reads as a second segment after the article, as in [CLS] article
    [SEP] pair [SEP]; after a blank line if the base has no segments."""
    group: str | None = None
    """Field; rows with the same value stay in one split, such as the passages on one tax act."""
    keep: list[str] = Field(default=[])
    """Further fields to keep in prepared rows, for prompts, slices and reports."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        kept_apart = {"id": self.id, "group": self.group}
        for name in (*self.text, *self.keep):
            is_same = self.text == ["text"] if name == "text" else kept_apart.get(name) == name
            if name in PREPARED_NAMES and (not is_same or (name in self.text and name != "text")):
                raise ValueError(
                    f"{name!r} cannot be among them, since prepared rows hold "
                    f"{PREPARED_NAMES[name]} under this name; rename the field in the data"
                )
        if self.text_pair in (*self.text, *PREPARED_NAMES):
            raise ValueError(f"text_pair: {self.text_pair!r} is taken; name another field")
        return self

    @property
    def carried(self) -> list[str]:
        """Fields of a source row that a prepared row has under the same names."""
        pair = [self.text_pair] if self.text_pair else []
        names = dict.fromkeys([*self.text, *pair, *self.keep])
        return [name for name in names if name not in PREPARED_NAMES]


class FilterConfig(ConfigSection):
    """A condition that a row has to meet; other rows are rejected with the reason."""

    field: str
    """Field of the source row."""
    min: float | None = None
    """Lowest number; a row without a number is left out."""
    max: float | None = None
    """Highest number; a row without a number is left out."""
    in_: _Values | None = Field(default=None, alias="in", min_length=1)
    """Allowed values, compared as text."""
    not_in: _Values | None = Field(default=None, min_length=1)
    """Refused values, compared as text."""
    empty: bool | None = None
    """Whether the field has to be empty or missing (true), or filled (false)."""
    matches: str | None = None
    """Regular expression that has to be found in the text."""
    not_matches: str | None = None
    """Regular expression that must not be found in the text."""

    @field_validator("matches", "not_matches")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a valid regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _check(self) -> Self:
        if all(value is None for key, value in self if key != "field"):
            raise ValueError(
                f"a filter on {self.field!r} needs a condition: min, max, in, not_in, empty, "
                "matches or not_matches"
            )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class CleanConfig(ConfigSection):
    """What happens to short, long and repeated texts."""

    min_chars: int = Field(default=1, ge=1)
    """A row with a shorter text is rejected."""
    max_chars: int | None = Field(default=None, ge=1)
    """A row with a longer text is rejected."""
    drop: Literal["none", "exact", "near"] = "exact"
    """Keep repeats, drop rows of equal text, or drop near-duplicates too (the first row stays)."""
    near_duplicates: float = Field(default=0.9, gt=0.0, le=1.0)
    """Jaccard similarity of the bags of words from which on texts are near-duplicates; these stay
    in one split."""


class SplitConfig(ConfigSection):
    """How rows are assigned to train, val and test."""

    train: float = Field(default=0.8, gt=0.0, lt=1.0)
    """Fraction of the rows to train on."""
    val: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Fraction that chooses the checkpoint."""
    test: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Fraction that the final evaluation uses."""
    by: str | None = None
    """Field with a date or a number: the earliest rows are train, the latest test."""
    stratify: bool = True
    """Keep classes, tiers, or quantiles of the overall score equally frequent in every split."""
    seed: int = 42
    """Seed of the shuffle."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(self.train + self.val + self.test - 1.0) > 1e-6:
            raise ValueError(
                f"train + val + test must be 1, found {self.train + self.val + self.test:g}"
            )
        return self


class BalanceConfig(ConfigSection):
    """What happens to frequent and rare classes (or tiers) in train, after the split."""

    reduce_majority_to: float | None = Field(default=None, ge=1.0)
    """Leave out rows of the most frequent class until it has at most this many times the rows of
    the second most frequent."""
    oversample: float | None = Field(default=None, gt=0.0, le=1.0)
    """Repeat rows of every class until it has at least this fraction of the rows of the most
    frequent."""


class OracleViewConfig(ConfigSection):
    """Truncation of the articles that the oracle labelled."""

    max_words: int = Field(ge=1)
    """Words of an article that the oracle was given, at most."""
    head_share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Fraction of these words from the head of a longer article; the rest is from its tail."""


class Task(ConfigFile):
    """What is predicted, from which data; shared by the variants that are compared."""

    __init__ = ConfigFile.__init__  # so that type checkers allow sections that are dicts

    name: str
    """Name of the task, used in reports."""
    sources: list[SourceConfig] = Field(min_length=1)
    """Where the rows come from."""
    fields: FieldsConfig = FieldsConfig()
    """Which fields of a row are used."""
    labels: LabelsConfig = Field(discriminator="type")
    """What is to be learned."""
    filters: list[FilterConfig] = Field(default=[])
    """Conditions that the rows of all splits have to meet."""
    max_rejected: float = Field(default=0.05, ge=0.0, le=1.0)
    """Fraction of the rows of a source, if it has 20 or more, that may be rejected for one reason
    that nobody asked for, such as a date that cannot be read; beyond it `prepare` stops."""
    clean: CleanConfig = CleanConfig()
    """What happens to short, long and repeated texts."""
    split: SplitConfig = SplitConfig()
    """How rows are assigned to train, val and test."""
    balance: BalanceConfig = BalanceConfig()
    """What happens to frequent and rare classes in train; val and test keep their frequencies."""
    oracle_sees: OracleViewConfig | None = None
    """Truncation of the oracle's articles; the audit compares it with that of the models."""
    output: Annotated[str, TAKES_PATHS] = Field(min_length=1)
    """Folder for the prepared splits and their manifest."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return check_name(name)

    @model_validator(mode="after")
    def _check(self) -> Self:
        has_classes = isinstance(self.labels, ClassConfig) or (
            isinstance(self.labels, ScoresConfig) and self.labels.tiers is not None
        )
        if self.balance != BalanceConfig() and not has_classes:
            raise ValueError("balance: needs labels of type class, or scores with tiers")
        if self.fixed_splits == {"train", "val", "test"} and not all(s.split for s in self.sources):
            raise ValueError("sources: every split is fixed, so every source has to name its split")
        return self

    @property
    def fixed_splits(self) -> set[Split]:
        """Splits that a source fixes."""
        return {source.split for source in self.sources if source.split is not None}


def check_name(name: str) -> str:
    """Return a name that can be part of a file name.

    Raises:
        ValueError: If it contains anything but letters, digits, `.`, `_` and `-`.
    """
    if not name or not all(c.isalnum() or c in "._-" for c in name):
        raise ValueError(f"found {name!r}, allowed: letters, digits, '.', '_' and '-'")
    return name


def name_task(task: str | Task) -> str:
    """Return the task file that a recipe or suite names, or the name of a task without a file."""
    return task if isinstance(task, str) else task.name


def find_task(named: Any, *, values: LocatedValues, faults: FaultList) -> tuple[Any, Task | None]:
    """Find the task of a recipe or suite.

    Args:
        named: Its value of the key `task`.
        values: All its values.
        faults: Gets the faults of the task.

    Returns:
        The path of the task file, or what else `named` is; and the task, None if it has faults.
    """
    if not isinstance(named, str):
        return named, named if isinstance(named, Task) else None
    path = faults.catch(lambda: find_named_file(named, key=("task",), values=values))
    if path is None:
        return named, None
    return str(path), faults.catch(lambda: load_task(path))


def load_task(task: StrPath | Task, *, overrides: Overrides | None = None) -> Task:
    """Load a task.

    Args:
        task: Task file, or a task made in Python.
        overrides: Dotted key -> value that replaces that of the task.

    Raises:
        UserError: Naming every fault of the file.
    """
    found: Task = validate(load_values(task, schema=Task, overrides=overrides), schema=Task)
    return found
