"""Prompt files: the shared prompt, the article with its fields, and a tail."""

import re
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from llmft.config.loading import suggest
from llmft.config.recipe import ResolvedRecipe
from llmft.config.task import FieldsConfig
from llmft.data.fields import Row, RowFaultError, as_text, assemble_text
from llmft.errors import UserError

_DELIMITER = re.compile(r"</?[\w-]+>|`{3,}\w*|\"{3}|'{3}|[-=*#~]{3,}")
_BRACED_NAME = re.compile(r"(?<!\{)\{([A-Za-z_][A-Za-z0-9_]*)\}(?!\})")


class Prompt(NamedTuple):
    """A prompt split at its placeholders; `NO_PROMPT` is the article alone.

    Only the text between the first and the last placeholder differs from row to row, so `before`
    has the same tokens everywhere.
    """

    before: str
    """Text before the article, the same in all rows."""
    article: str
    """Template of the article, such as `{title}` or `{title}\\nSource: {source}\\n{text}`."""
    after: str
    """Text after the article, the same in all rows."""


NO_PROMPT = Prompt(before="", article="{text}", after="")


class RowText(NamedTuple):
    """The texts of one row, which are tokenised separately."""

    before: str
    article: str
    pair: str
    """The second segment; empty if the task has none."""
    after: str


def read_recipe_prompt(recipe: ResolvedRecipe) -> Prompt:
    """Read the prompt of a recipe, its article where the recipe wants it.

    Raises:
        UserError: As `read_prompt`.
    """
    return read_prompt(
        recipe.prompt_path, fields=recipe.task.fields, article=recipe.config.prompt.article
    )


def read_prompt(
    path: Path | None, *, fields: FieldsConfig, article: Literal["in_place", "last"] = "in_place"
) -> Prompt:
    """Read a prompt file; without a path return the empty prompt.

    Args:
        path: The file.
        fields: Of the task.
        article: Where the article is to be: as in the file, or after all else.

    Raises:
        UserError: If the file cannot be read, is empty, names a field that is not there, or leaves
            out a field of the article.
    """
    if path is None:
        return NO_PROMPT
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as UTF-8 text: {error}; save it as UTF-8"
        ) from error
    if not text.strip():
        raise UserError(f"{path}: the prompt is empty; write one or set prompt.mode: exclude")
    _refuse_unknown_placeholders(text, path=path, fields=fields)
    named = set(_match_placeholders(fields).findall(text))
    left_out = [name for name in fields.text if name not in named]
    if named and left_out and "text" not in named:
        raise UserError(
            f"{path}: the prompt names {{{'}, {'.join(sorted(named))}}} but leaves out "
            f"{{{'}, {'.join(left_out)}}}, so the model would not get the complete article; add "
            "it, or use {text} for all of it"
        )
    prompt = split_prompt(text, fields=fields)
    return move_article_last(prompt, fields=fields) if article == "last" else prompt


def _refuse_unknown_placeholders(text: str, *, path: Path, fields: FieldsConfig) -> None:
    names = list_placeholders(fields)
    for number, line in enumerate(text.splitlines(), start=1):
        for name in _BRACED_NAME.findall(line):
            if name not in names:
                raise UserError(
                    f"{path}: line {number}: {{{name}}} names no field of the task, whose fields "
                    f"are {', '.join(names)}.{suggest(name, allowed=names)} Name the column in "
                    f"fields.keep and prepare again, or write {{{{{name}}}}} if it is no field: "
                    "double braces stay as they are"
                )


def split_prompt(text: str, *, fields: FieldsConfig) -> Prompt:
    """Split a prompt at its first and last placeholder.

    Braces that do not name a field of the task, such as those of a JSON example, are kept.
    Without a placeholder the article follows after a blank line.
    """
    marks = list(_match_placeholders(fields).finditer(text))
    if not marks:
        return Prompt(before=text.rstrip() + "\n\n", article="{text}", after="")
    start, end = marks[0].start(), marks[-1].end()
    return Prompt(before=text[:start], article=text[start:end], after=text[end:].rstrip())


def _find_article(blocks: list[str], *, placeholders: re.Pattern[str]) -> set[int]:
    """Return the positions of lines with placeholders, and of what belongs to them.

    That is a pair of delimiters around them, such as tags or fences, and a line directly before
    that ends with a colon.
    """
    places = {i for i, block in enumerate(blocks) if placeholders.search(block)}
    for place in sorted(places):
        if place - 1 in places:
            continue
        first = last = place
        while last + 1 in places:
            last += 1
        around = [blocks[i].strip() for i in (first - 1, last + 1) if 0 <= i < len(blocks)]
        if len(around) == 2 and all(map(_DELIMITER.fullmatch, around)):
            first, last = first - 1, last + 1
            places |= {first, last}
        if first > 0 and _is_label(blocks[first - 1], before=blocks[first]):
            places.add(first - 1)
    return places


def _is_label(line: str, *, before: str) -> bool:
    """Return whether a line ends with a colon, and another one follows without a blank line."""
    return line.rstrip().endswith(":") and not before.startswith("\n\n")


def list_placeholders(fields: FieldsConfig) -> list[str]:
    """Return the names that are placeholders when a prompt has them in braces."""
    named = ["text", *fields.text, *fields.keep, fields.id, fields.group]
    return list(dict.fromkeys(name for name in named if name is not None))


def move_article_last(prompt: Prompt, *, fields: FieldsConfig) -> Prompt:
    """Return a prompt after moving its lines with placeholders to the end.

    All else then comes before the article, has the same tokens in every row, and can be computed
    once. Delimiters around these lines and a label before them go with them. A prompt whose article
    is last already is returned as it is.
    """
    # Each line with the blank ones before it.
    blocks = re.findall(r"(?:[^\S\n]*\n)*[^\n]+", "".join(prompt).rstrip())
    places = _find_article(blocks, placeholders=_match_placeholders(fields))
    moved = [block for i, block in enumerate(blocks) if i in places]
    rest = [block for i, block in enumerate(blocks) if i not in places]
    if not rest or blocks[-len(moved) :] == moved:
        return prompt
    text = "".join(rest).strip() + "\n\n" + "".join(moved).strip()
    return split_prompt(text, fields=fields)


def fill_prompt(prompt: Prompt, row: Row, *, fields: FieldsConfig) -> RowText:
    """Fill the placeholders of a prompt with the fields of a row.

    Raises:
        RowFaultError: If the row lacks a field that the prompt names, or has no text.
    """
    text = assemble_text(row, fields)

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "text":
            return text
        if name not in row:
            raise RowFaultError(f"field missing: the prompt names {{{name}}}")
        return as_text(row[name], name=name)

    article = _match_placeholders(fields).sub(look_up, prompt.article)
    pair = ""
    if fields.text_pair is not None:
        pair = as_text(row.get(fields.text_pair), name=fields.text_pair)
        if not pair:
            raise RowFaultError(f"empty text: nothing in {fields.text_pair}")
    return RowText(prompt.before, article, pair, prompt.after)


def strip_fields(prompt: Prompt, *, fields: FieldsConfig) -> str:
    """Return the text between a prompt's placeholders, which is the same in every row."""
    return _match_placeholders(fields).sub("", prompt.article)


def _match_placeholders(fields: FieldsConfig) -> re.Pattern[str]:
    return _match_any(tuple(list_placeholders(fields)))


@cache
def _match_any(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\{{({'|'.join(map(re.escape, names))})\}}")
