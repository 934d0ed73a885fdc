"""`llmft prepare TASK`: clean the data of a task and split it without leakage."""

import argparse
import logging
from pathlib import Path

from llmft.config.task import load_task

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Prepare the data and log how many rows were rejected, by reason; return 0."""
    parser = argparse.ArgumentParser(prog="llmft prepare", description=__doc__, allow_abbrev=False)
    parser.add_argument("task", type=Path, help="task file (YAML)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override a value")
    args = parser.parse_args(arguments)
    task = load_task(args.task, overrides=args.set)
    # Imported late, since it takes a while: errors in the task are reported before that.
    from llmft.data.preparation import prepare_task

    manifest = prepare_task(task, report=logger.info)
    for kind, count in manifest.rejected.items():
        logger.info("  rejected %d: %s", count, kind)
    logger.info("wrote %s", Path(task.output) / "manifest.json")
    return 0
