"""The command line: one table of verbs, each imported only when it is called."""

import importlib
import sys

from llmft import __version__
from llmft.console import run_verb

VERBS = {
    "init": "write a small sample to learn with, or --from FILE task, recipes and suite for it",
    "check": "report errors in a recipe, its data and its token budget; writes nothing",
    "prepare": "clean the data of a task and split it without leakage",
    "train": "train the variant that a recipe describes",
    "evaluate": "measure a trained run and decide whether it may be deployed",
    "compare": "compare the variants of a suite on the same rows, and name the winner",
    "predict": "predict new articles with a trained run",
    "bench": "measure llmft against baselines such as the stock Trainer",
    "schema": "print the JSON Schema of tasks, recipes, suites and results files",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    match given:
        case ["-V" | "--version"]:
            print(f"llmft {__version__}")
            return 0
        case [] | ["-h" | "--help" | "help"]:
            print(_make_help())
            return 0 if given else 2
        case [verb, *rest] if verb in VERBS:
            return run_verb(lambda args: _call(verb, args), rest)
        case [verb, *_]:
            print(
                f"llmft: unknown command {verb!r}; allowed: {', '.join(VERBS)}. See `llmft --help`",
                file=sys.stderr,
            )
            return 2
    raise AssertionError(given)


def _call(verb: str, arguments: list[str]) -> int:
    return int(importlib.import_module(f"llmft.{verb}").main(arguments))


def _make_help() -> str:
    verbs = "\n".join(f"  {name:10} {purpose}" for name, purpose in VERBS.items())
    return (
        "usage: llmft COMMAND ...\n\nFine-tune small models on labels of a large LLM, and compare "
        f"them fairly.\n\n{verbs}\n\n`llmft COMMAND --help` lists its options. From the "
        "sample to a verdict:\n"
        "  llmft init sample && cd sample && llmft compare eval/market_news.yaml --train"
    )


if __name__ == "__main__":
    sys.exit(main())
