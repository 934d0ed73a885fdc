"""Files of a run next to its model: record, learning curve, test reads, post-hoc fit."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llmft.config.head import FITS, FitMethod, Head
from llmft.config.loading import MISSING, refuse_values
from llmft.config.recipe import Precision, Recipe
from llmft.config.task import Task
from llmft.files import hash_text
from llmft.results.files import HasTable, Result, ResultFile, require_keys

if TYPE_CHECKING:
    import pandas as pd

Parallelism = Literal["none", "ddp", "zero", "zero3", "fsdp"]
"""How parameters are distributed over processes: one process (none); replicated (ddp, and zero for
DeepSpeed's stages 0 to 2); sharded (zero3, fsdp)."""


class TokenBudget(Result):
    """The token budget of one split: truncation of the articles."""

    num_rows: int
    prompt_tokens: int
    """Prompt and tail, without special tokens."""
    article_tokens_median: float
    article_tokens_p95: float
    article_tokens_max: int
    num_cut: int
    """Rows with a truncated article."""
    fraction_kept: float
    """Fraction of all article tokens that truncation keeps, in [0, 1]."""
    fraction_kept_median: float
    """The same for the median row."""
    num_identical: int
    """Rows whose input is identical to that of a row with a different text."""


def describe_budgets(budgets: Mapping[str, TokenBudget]) -> Iterator[str]:
    """Yield the lines of a table: tokens of the prompt and of the articles of each split."""
    yield "tokens   prompt   article: median   95 %   longest   articles cut     kept"
    for split, b in budgets.items():
        cut = f"{b.num_cut:,} of {b.num_rows:,}"
        yield (
            f"  {split:<5}  {b.prompt_tokens:>7,}   {b.article_tokens_median:>15,.0f}"
            f"   {b.article_tokens_p95:>4,.0f}   {b.article_tokens_max:>7,}   {cut:>12}"
            f"   {b.fraction_kept:>6.1%}"
        )


class RunIdentity(Result):
    """What a run is trained from: recipe, task, rows, prompt and initial weights."""

    recipe: Recipe
    """As resolved, with all defaults."""
    task: Task
    """The task when the training started."""
    data_fingerprint: str
    """Of the prepared data."""
    prompt_sha256: str | None
    """Of the text of the prompt; null without one."""
    init_hash: str | None
    """Of the run that the initial weights come from; null where the base gave them."""


PoolingName = Literal["cls", "mean", "last"]
"""The state of the first token, the mean over the tokens, or the state of the last one."""


class Pooling(Result):
    """How a base's states become the vector that a head reads."""

    how: PoolingName
    num_layers: int = Field(ge=1)
    """Layers of the base that are computed; the head reads the last of them."""
    normalises: bool
    """Whether the vector is scaled to length 1."""

    def describe(self) -> str:
        """Return a few words for a terminal."""
        scaled = ", scaled to length 1" if self.normalises else ""
        return f"{self.how} of layer {self.num_layers}{scaled}"


class HeadFit(Result):
    """How a linear head was fitted to the states of a base that is not trained."""

    pooling: Pooling
    """Of an initial head in a class of transformers: that of the class, whose other layers stand
    between."""
    strength: float
    """Of the penalty on the squared weights, for vectors of mean variance 1."""
    is_at_edge: bool
    """Whether it is the strongest or the weakest that was tried, so that another may be better."""
    metric: str
    """The validation metric that chose pooling and strength."""
    best: float
    """Its value."""
    by_strength: dict[str, float]
    """Strength -> the metric."""
    by_pooling: dict[str, float]
    """Pooling -> the metric of ridge regression on it, which chose the pooling."""
    num_rows: int
    """Rows of train and val."""
    num_computed: int
    """Those whose states were computed; the states of the others were kept from before."""
    num_computed_tokens: int
    encoding_seconds: float
    fitting_seconds: float

    @property
    def seconds(self) -> float:
        """Of encoding and fitting."""
        return self.encoding_seconds + self.fitting_seconds

    def describe(self) -> str:
        """Return one line for a terminal."""
        edge = ", at the edge of what was tried: a better one may lie beyond" * self.is_at_edge
        return (
            f"probe: {self.pooling.describe()}; strength {self.strength:g}{edge}; val "
            f"{self.metric} {self.best:.4f}; states in {self.encoding_seconds:.1f} s, head in "
            f"{self.fitting_seconds:.1f} s"
        )


class ResolvedDefaults(Result):
    """What defaults of a recipe stand for on its base and launch."""

    pooling: Pooling | None
    """Of `base.pooling`; null: as the base's class in transformers does."""
    head_init: Literal["random", "probe"] | None
    """Of `head.init`; null: the weights of `init_from`."""
    learning_rate: float
    """Of `train.learning_rate`."""

    def apply(self, recipe: Recipe) -> Recipe:
        """Return the recipe with these values; it means the same when it is read again."""
        how = self.pooling.how if self.pooling is not None else "transformers"
        changes: dict[str, tuple[Any, dict[str, object]]] = {
            "base": (recipe.base, {"pooling": how}),
            "head": (recipe.head, {"init": self.head_init or "auto"}),
            "train": (recipe.train, {"learning_rate": self.learning_rate}),
        }
        return recipe.model_copy(
            update={name: part.model_copy(update=new) for name, (part, new) in changes.items()}
        )

    def describe(self) -> str:
        """Return one line for a terminal."""
        how = self.pooling.describe() if self.pooling is not None else "the class in transformers"
        begins = {
            "random": "begins at random",
            "probe": "begins at a linear head that is first fitted to the frozen base",
            None: "begins with the weights of init_from",
        }
        return f"head: {how}; {begins[self.head_init]}; learning rate {self.learning_rate:g}"


class UnfinishedRun(ResultFile, RunIdentity):
    """`training_metadata.json` of a run that is still training, or was stopped."""

    schema_version: Literal[8] = 8
    status: Literal["unfinished"] = "unfinished"
    world_size: int
    """Number of processes."""
    parallelism: Parallelism
    """How parameters are distributed over them."""
    precision: Precision
    """Dtype of the matrix products."""
    micro_batch_divisor: int = 1
    """Number of smaller micro-batches that each one is split into, so that they fit into memory."""
    gradient_checkpointing: bool = False
    """Whether gradient checkpointing is on, in the recipe or so that a micro-batch fits."""
    memory_gib: float | None = None
    """Estimate of the memory that it takes; None if that is unknown, or surely little."""
    free_gib: float | None = None
    """Memory that was free when it started."""
    resolved: ResolvedDefaults | None = None
    """What defaults of the recipe stand for; null for a frozen base, and before it is known."""
    head_fit: HeadFit | None = None
    """How the initial head was fitted, once it was."""


class RunRecord(ResultFile, RunIdentity):
    """`training_metadata.json` of a finished run: what it depended on, its time and its memory."""

    schema_version: Literal[8] = 8
    status: Literal["finished"] = "finished"
    name: str
    """Of the recipe."""
    started: str
    """Start of the last attempt, in UTC."""
    training_mode: Literal["instruction_tuning", "fine_tuning"]
    """Whether the prompt was included."""

    world_size: int
    """Number of processes."""
    parallelism: Parallelism
    """How parameters were distributed over them."""
    distributed_type: str
    """`distributed_type` of accelerate."""
    deepspeed: dict[str, Any] | None
    """The configuration that DeepSpeed got."""
    per_device_batch_size: int
    """Rows of the micro-batch with the most tokens."""
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    """Whether it was on, in the recipe or so that a micro-batch fits into memory."""
    global_batch_size: float
    """Rows of an optimizer step, over all processes; the mean if it varies."""

    train_seconds: float
    """Wall time of training, validation included, over all attempts, and of fitting the initial
    head, which `tokens_per_second` and the learning curve leave out."""
    num_train_tokens: int
    """A shared prompt counts once per row, padding does not count."""
    tokens_per_second: float
    peak_memory_gib: float
    """On the main process's device."""
    prompt_shared: bool
    """Whether the prompt was computed once for all rows of a batch."""
    resolved: ResolvedDefaults | None
    """What defaults of the recipe stood for; null for a frozen base."""
    num_steps: int
    """Optimizer steps."""
    resumed_from_step: int
    """0 if it was not resumed."""
    num_rows: Annotated[dict[str, int], require_keys("train", "val", "test")]
    """Split -> number of rows."""
    token_budget: Annotated[dict[str, TokenBudget], require_keys("train", "val", "test")]
    """Split -> truncation of its articles."""
    budget_warnings: list[str]
    """Warnings about the budget, waived refusals included; every report repeats them."""

    best_metric_name: str
    """The metric that chose the checkpoint."""
    best_metric: float
    """Its value at that checkpoint."""
    best_epoch: float
    best_step: int

    precision: Precision
    """Dtype of the matrix products."""
    num_parameters: int
    num_trainable: int
    head_fit: HeadFit | None = None
    """How the head of a frozen base, or the initial head (`head.init: probe`), was fitted."""
    base_pretrained: bool
    """Whether the base is pretrained, not randomly initialised."""
    model_hash: str
    """Of the files in `model/`."""
    python: str
    packages: dict[str, str]
    """Package -> its version."""
    platform: str
    device: str
    num_threads: int
    git_revision: str | None
    """Of the working folder; null outside a repository."""

    @property
    def is_frozen(self) -> bool:
        """Whether the base was frozen, so that no seed and no setting of the optimizer counts."""
        return self.recipe.base.tuning == "frozen"

    @property
    def resolved_recipe(self) -> Recipe:
        """The recipe with what its defaults stood for."""
        return self.recipe if self.resolved is None else self.resolved.apply(self.recipe)

    def describe(self) -> str:
        """Return one line for a terminal."""
        return (
            f"{self.name}: best {self.best_metric_name.replace('_', ' ', 1)} "
            f"{self.best_metric:.4f} at epoch {self.best_epoch:.2f}, trained in "
            f"{self.train_seconds:.0f} s"
        )


RunFile = Annotated[RunRecord | UnfinishedRun, Field(discriminator="status")]
"""The schemas of `training_metadata.json`."""


class CurvePoint(Result):
    """One validation during a training."""

    epoch: float
    step: int
    """Optimizer steps so far."""
    train_loss: float
    """Mean over the steps since the validation before."""
    learning_rate: float
    seconds: float
    """Of training so far."""
    val: Annotated[dict[str, float], require_keys("loss")]
    """`loss` and the metrics on the validation rows."""


class LearningCurve(ResultFile):
    """`training_history.json`: losses and validation metrics over the course of a training."""

    schema_version: Literal[1] = 1
    metric: str
    """The metric that chose the checkpoint: a key of `val`."""
    epochs: list[CurvePoint] = Field(min_length=1)
    """One entry for each validation."""

    @model_validator(mode="after")
    def _refuse_without_metric(self) -> Self:
        refuse_values(
            (("epochs", i, "val", self.metric), MISSING)
            for i, point in enumerate(self.epochs)
            if self.metric not in point.val
        )
        return self


class Run(Result, HasTable):
    """A finished run, as `llmft.train` returns it; wherever a run folder is expected, it is one."""

    path: str
    """Its folder."""
    record: RunRecord
    """What it depended on, its time and its memory."""
    curve: LearningCurve
    """Losses and validation metrics over the course of the training."""

    def __fspath__(self) -> str:
        """Return its folder."""
        return self.path

    def describe(self) -> str:
        """Return one line on its best checkpoint."""
        return self.record.describe()

    def to_frame(self) -> "pd.DataFrame":
        """Return the learning curve: one row per validation, with columns `val_METRIC`."""
        import pandas as pd

        points = [
            {
                **point.model_dump(exclude={"val"}),
                **{f"val_{name}": value for name, value in point.val.items()},
            }
            for point in self.curve.epochs
        ]
        return pd.DataFrame(points).set_index("step")


class Read(Result):
    """A report that read the test predictions of a run."""

    when: str
    """In UTC."""
    by: Literal["evaluate", "compare"]
    report: str
    """Its results file."""


class ReadLog(ResultFile):
    """`evaluation/test_reads.json`: the reports that read the test predictions of a run (D8)."""

    schema_version: Literal[1] = 1
    reads: list[Read] = Field(default=[])


class Calibrator(Result):
    """Isotonic regression of one dimension: linear between knots, constant beyond them."""

    x: list[float] = Field(min_length=1)
    """The model's scores at the knots, strictly increasing."""
    y: list[float]
    """The calibrated scores there, non-decreasing."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError("x and y differ in length")
        if any(b <= a for a, b in pairwise(self.x)) or any(b < a for a, b in pairwise(self.y)):
            raise ValueError("x must be strictly increasing, and y non-decreasing")
        return self


class PostHocFit(ResultFile):
    """Calibrators or thresholds of a model, and the rows that they were fitted on."""

    schema_version: Literal[1] = 1
    method: FitMethod
    head: Head
    """Of the model; thresholds of multilabel heads differ from those of classes."""
    split: Literal["val"] = "val"
    """The split that it was fitted on, and must not be evaluated on (D7)."""
    num_rows: int
    """Number of rows that it was fitted on."""
    model_hash: str
    """Of the model that it was fitted to."""
    data_fingerprint: str
    """Of the prepared data that the rows are from."""
    curves: dict[str, Calibrator] | None = None
    """Dimension -> its calibrator, for `isotonic`."""
    thresholds: dict[str, Annotated[float, Field(gt=0, lt=1)]] | None = None
    """Class or label -> its threshold, for `f1` and `precision`; 0.5 changes nothing."""
    min_recall: float | None = None
    """Lowest recall that `precision` allows."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.head not in FITS[self.method]:
            raise ValueError(f"{self.method} is not for a {self.head} head")
        if (self.curves is None) == (self.method == "isotonic"):
            raise ValueError("curves: required for isotonic, and not allowed for other methods")
        if (self.thresholds is None) == (self.method != "isotonic"):
            raise ValueError("thresholds: required for f1 and precision, not allowed for isotonic")
        return self

    @property
    def names(self) -> list[str]:
        """Dimensions, classes or labels, in the order of the outputs."""
        return list(self.curves or self.thresholds or {})

    @property
    def identity(self) -> str:
        """Hash of its contents."""
        return hash_text(self.model_dump_json())
