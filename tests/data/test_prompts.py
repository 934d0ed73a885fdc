"""A prompt is cut at its placeholders; everything else in it stays as it was written."""

from pathlib import Path

import pytest

from llmft.cli import main
from llmft.config.task import FieldsConfig
from llmft.data.fields import RowFaultError
from llmft.data.prompts import (
    NO_PROMPT,
    Prompt,
    fill_prompt,
    list_placeholders,
    move_article_last,
    read_prompt,
    split_prompt,
)
from llmft.errors import UserError

FIELDS = FieldsConfig(text=["title", "body"], keep=["source"])
ROW = {"title": "Crisis", "body": "Banks fall.", "source": "wire"}


def fill(template: str, row: dict[str, str] = ROW) -> str:
    return "".join(fill_prompt(split_prompt(template, fields=FIELDS), row, fields=FIELDS))


def test_a_prompt_is_cut_at_its_first_and_last_placeholder() -> None:
    prompt = split_prompt("Rate this.\n{title}\nfrom {source}\nAnswer:\n", fields=FIELDS)
    assert prompt == Prompt("Rate this.\n", "{title}\nfrom {source}", "\nAnswer:")


def test_text_is_all_text_fields() -> None:
    assert fill("<{text}>") == "<Crisis\n\nBanks fall.>"


def test_single_fields_are_put_where_they_are_named() -> None:
    assert fill("{source}: {title}. {body}") == "wire: Crisis. Banks fall."


def test_braces_of_a_json_example_stay() -> None:
    example = 'Answer {"risk": {"score": 7}} or {risk} or { title } or {}.'
    assert fill(example + "\n{text}") == example + "\nCrisis\n\nBanks fall."


def test_without_a_placeholder_the_article_follows_after_a_blank_line() -> None:
    assert fill("Rate this.\n\n\n") == "Rate this.\n\nCrisis\n\nBanks fall."


def test_braces_inside_an_article_are_not_filled() -> None:
    row = {"title": "{body}", "body": "{source} {text} {{title}}", "source": "\\1"}
    assert fill("{title} | {body} | {source}", row) == "{body} | {source} {text} {{title}} | \\1"


@pytest.mark.parametrize("name", ["investment-risk", "überschrift", "a b", "x.y", "(", "1st"])
def test_a_field_may_have_any_name(name: str) -> None:
    fields = FieldsConfig(text=[name])
    prompt = split_prompt(f"Rate {{{name}}} now", fields=fields)
    assert prompt == Prompt("Rate ", f"{{{name}}}", " now")
    assert "".join(fill_prompt(prompt, {name: "it"}, fields=fields)) == "Rate it now"


def test_no_prompt_is_the_text_alone() -> None:
    assert read_prompt(None, fields=FIELDS) == NO_PROMPT
    assert "".join(fill_prompt(NO_PROMPT, ROW, fields=FIELDS)) == "Crisis\n\nBanks fall."


def test_a_prepared_row_and_its_raw_row_read_the_same() -> None:
    prepared = {"id": "1", "text": "Crisis\n\nBanks fall.", "labels": "x", **ROW}
    for template in ("{text}", "{title}{source}", "Rate."):
        assert fill(template, prepared) == fill(template)


def test_a_row_without_a_named_field_is_a_fault() -> None:
    with pytest.raises(RowFaultError, match=r"field missing: the prompt names \{source\}"):
        fill("{source} {text}", {"title": "Crisis", "body": "x"})


def test_a_row_without_text_is_a_fault_whatever_the_prompt_names() -> None:
    with pytest.raises(RowFaultError, match="empty text"):
        fill("{source}", {"source": "wire"})


def test_placeholders_are_the_fields_of_the_task() -> None:
    fields = FieldsConfig(id="uid", text=["title", "body"], group="act", keep=["title", "url"])
    assert list_placeholders(fields) == ["text", "title", "body", "url", "uid", "act"]


def test_a_placeholder_without_a_field_is_an_error_and_a_json_key_is_not(tmp_path: Path) -> None:
    path = tmp_path / "p.md"
    for name, hint in (("titel", "Did you mean `title`?"), ("published", "Name the column in")):
        path.write_text(f'Rate by {{source}}: {{"risk": 7}}\n{{{name}}} {{text}}')
        with pytest.raises(UserError) as caught:
            read_prompt(path, fields=FIELDS)
        assert f"{path}: line 2: {{{name}}} names no field of the task" in str(caught.value)
        assert "text, title, body, source" in str(caught.value)
        assert hint in str(caught.value)
    path.write_text('Answer {{"a": {{"b": 1}}}} with {{risk}} and { b } and {"c"}: {text}')
    assert read_prompt(path, fields=FIELDS).before.endswith('with {{risk}} and { b } and {"c"}: ')


@pytest.mark.parametrize("options", [["--no-data"], []])
def test_check_names_a_misspelt_placeholder(
    options: list[str], write_scores_task, write_recipe, tiny_bert: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    task = write_scores_task()
    assert main(["prepare", str(task)]) == 0
    recipe = write_recipe(tiny_bert, prompt="rate {titel} {text}")
    assert main(["check", str(recipe), *options]) == 2
    assert "line 1: {titel} names no field of the task" in str(capsys.readouterr())


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            "Rate.\n\nTitle: {title}\nFrom: {source}\n{body}\n\nAnswer with JSON.\n",
            ("Rate.\n\nAnswer with JSON.\n\nTitle: ", "{title}\nFrom: {source}\n{body}", ""),
        ),
        ("{title}\nA rule.\n{body} (end)\nB\n", ("A rule.\nB\n\n", "{title}\n{body}", " (end)")),
        (
            "A.\nThe article:\n<article>\n{title}\n\n{body}\n</article>\nB.",
            ("A.\nB.\n\nThe article:\n<article>\n", "{title}\n\n{body}", "\n</article>"),
        ),
        (
            'ARTICLE:\nText: {text}\n\nRate it.\n"""',
            ('Rate it.\n"""\n\nARTICLE:\nText: ', "{text}", ""),
        ),
        ("Rules:\n\n{text}\nB", ("Rules:\nB\n\n", "{text}", "")),
        ("Rate {text} now.\nThen stop.", ("Then stop.\n\nRate ", "{text}", " now.")),
    ],
)
def test_lines_with_placeholders_go_to_the_end(
    template: str, expected: tuple[str, str, str], tmp_path: Path
) -> None:
    moved = move_article_last(split_prompt(template, fields=FIELDS), fields=FIELDS)
    assert moved == Prompt(*expected)
    assert move_article_last(moved, fields=FIELDS) == moved
    (tmp_path / "p.md").write_text(template)
    assert read_prompt(tmp_path / "p.md", fields=FIELDS, article="last") == moved
    assert read_prompt(tmp_path / "p.md", fields=FIELDS) == split_prompt(template, fields=FIELDS)


@pytest.mark.parametrize(
    "template",
    [
        "Rate.\n\nTitle: {title}\n\n{body}\n",
        "Rate it.",
        "Only {text} on one line",
        "\n\n{title}\n\n{body}\n\n",
        "Rate.\n<{text}> and stop",
    ],
)
def test_an_article_that_is_last_stays_as_it_is(template: str) -> None:
    prompt = split_prompt(template, fields=FIELDS)
    assert move_article_last(prompt, fields=FIELDS) == prompt


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "the prompt is empty; write one or set prompt.mode: exclude"),
        (b" \n\t\n", "the prompt is empty"),
        ("Stra\xdfe".encode("latin-1"), "cannot be read as UTF-8 text"),
    ],
)
def test_a_prompt_file_that_is_none(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "p.md").write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        read_prompt(tmp_path / "p.md", fields=FIELDS)


def test_a_byte_order_mark_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.md").write_bytes(b"\xef\xbb\xbfRate {text}")
    assert read_prompt(tmp_path / "p.md", fields=FIELDS).before == "Rate "


def test_d1_a_prompt_that_leaves_out_a_part_of_the_article_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompt.md"
    fields = FieldsConfig(text=["title", "content"], keep=["language"])
    for text, left_out in (
        ("Rate: {title}", r"\{content\}"),
        ("Rate this {language} text.", r"\{title\}, \{content\}"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"leaves out {left_out}"):
            read_prompt(path, fields=fields)
    for text in ("Rate: {text}", "{title} {language} {content}", "Rate the article."):
        path.write_text(text)
        read_prompt(path, fields=fields)
