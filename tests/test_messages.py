"""Every message that ends a command with status 2 says what, where, and how to mend it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmft

MENDS = re.compile(
    r"\b(add|ask|choose|close|convert|correct|delete|download|drop|evaluate|fetch|fix|free|give"
    r"|increase|install|keep|launch|leave|load|lower|make|mend|move|name|pass|predict|prepare|put"
    r"|quote|raise|reduce|remove|rename|replace|report|restore|run|save|set|shorten|split|start"
    r"|take|train|try|turn|unpack|update|use|wait|write)\b|allowed:|Did you mean",
    re.IGNORECASE,
)
"""What tells a user how to go on."""
COMPUTED = """
    _explain _explain_no_match _faults _NOT_LINES _summarise ending faults faults found fix
    first_fault mend message smaller error
""".split()
"""Values in a message that hold this part: other tests see them, with what they are made from."""
REASONS = {"was prepared again since", "it was trained again since"}
"""Not shown by themselves: they end the sentence of a finding."""


def list_messages() -> Iterator[tuple[str, str, list[str]]]:
    """Yield place, fixed text and names of the values of each message."""
    root = Path(llmft.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                message = node.args[0]
                parts = [n for n in ast.walk(message) if isinstance(n, ast.Constant)]
                text = " ".join(n.value for n in parts if isinstance(n.value, str))
                names = [n.id for n in ast.walk(message) if isinstance(n, ast.Name)]
                names += [n.attr for n in ast.walk(message) if isinstance(n, ast.Attribute)]
                yield f"{path.relative_to(root)}:{node.lineno}", text, names


def test_every_message_says_how_to_mend_it() -> None:
    messages = list(list_messages())
    assert len(messages) > 200
    silent = [
        (place, text)
        for place, text, names in messages
        if not MENDS.search(text)
        and not set(names) & set(COMPUTED)
        and not any(reason in text for reason in REASONS)
    ]
    assert silent == []


@pytest.mark.parametrize(
    "word",
    ["oops", "sorry", "please note", "illegal", "abort", "fatal", "must of", "invalid input"],
)
def test_no_message_scolds(word: str) -> None:
    assert [place for place, text, _ in list_messages() if word in text.lower()] == []


def test_no_log_line_counts_one_as_many() -> None:
    """`1 rows`: a number before a plural comes from `wording.count`."""
    plural = re.compile(r"%d (rows|epochs|sources|processes|seeds|files|steps|models|batches)\b")
    counted = []
    for path in sorted(Path(llmft.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("info", "warning"):
                texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                counted += [f"{path.name}: {t}" for t in texts if plural.search(str(t))]
    assert counted == []
