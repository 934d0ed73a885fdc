"""llmft: fine-tune small models on labels of a large LLM, and compare them fairly.

Each command is a function here, with the same texts and errors as on the command line:

    run = llmft.train("recipes/market_news_minilm.yaml", overrides={"train.epochs": 1})
    scores = llmft.load(run).predict(frame)
    result = llmft.compare("eval/market_news.yaml")

A recipe, task or suite may be a file, or an object made in Python. Everything is imported when it
is first used, so that `import llmft` takes no time.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspect import Signature

    from llmft.check import CheckResult, check
    from llmft.compare import compare
    from llmft.config.recipe import Recipe
    from llmft.config.suite import Suite
    from llmft.config.task import Task
    from llmft.errors import StoppedError, UserError
    from llmft.evaluate import evaluate
    from llmft.predict import predict
    from llmft.prediction.model import Model, load
    from llmft.prepare import prepare
    from llmft.results.comparison import ComparisonResult
    from llmft.results.evaluation import EvaluationResult
    from llmft.results.manifest import Manifest
    from llmft.results.run import Run
    from llmft.train import train

__version__ = "0.1.0"

__all__ = [
    "CheckResult", "ComparisonResult", "EvaluationResult", "Manifest", "Model", "Recipe", "Run",
    "StoppedError", "Suite", "Task", "UserError", "check", "compare", "evaluate", "load",
    "predict", "prepare", "train",
]  # fmt: skip
_VERBS = ("check", "compare", "evaluate", "predict", "prepare", "train")
_MODULES = {
    "CheckResult": "llmft.check",
    "ComparisonResult": "llmft.results.comparison",
    "EvaluationResult": "llmft.results.evaluation",
    "Manifest": "llmft.results.manifest",
    "Model": "llmft.prediction.model",
    "Recipe": "llmft.config.recipe",
    "Run": "llmft.results.run",
    "StoppedError": "llmft.errors",
    "Suite": "llmft.config.suite",
    "Task": "llmft.config.task",
    "UserError": "llmft.errors",
    "load": "llmft.prediction.model",
}
"""Public name -> the module that defines it."""


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return import_module(f"llmft.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'llmft' has no attribute {name!r}")
    found = getattr(import_module(_MODULES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Verb(ModuleType):
    """The module of a command, which can be called as its function: `llmft.train(...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._get_function()(*args, **kwargs)

    @property
    def __signature__(self) -> "Signature":
        """The signature of the function, for `help` and editors."""
        import inspect

        return inspect.signature(self._get_function())

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        """The documentation of the function, for `help` and editors."""
        return str(self._get_function().__doc__)

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (self.__name__,)

    def _get_function(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    """This package: whoever imports `llmft.train`, the attribute `train` can be called."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Make the module of a command callable when Python sets it after its import."""
        if name in _VERBS and type(value) is ModuleType:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
