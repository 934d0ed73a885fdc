"""The token budget, counted by hand; a recipe that hides the articles is refused (D1)."""

from pathlib import Path

import pytest

from llmft.cli import main
from llmft.config.recipe import BaseConfig, TokensConfig
from llmft.config.task import FieldsConfig
from llmft.data.encoding import (
    BudgetFindings,
    Encoder,
    TokenBudget,
    check_budget,
    list_prompt_refusals,
    measure_budget,
    refuse_budget,
)
from llmft.data.prompts import split_prompt
from llmft.errors import UserError
from llmft.models.bases import load_tokenizer
from llmft.results.run import describe_budgets

PROMPT = "task : {text} ."  # 3 tokens, and 2 special ones


@pytest.fixture
def open_encoder(tiny_bert: Path):
    """Return an encoder for which a word is a token; ten tokens leave room for five."""

    def open_one(prompt: str = PROMPT, *, max_length: int = 10) -> Encoder:
        return Encoder(
            load_tokenizer(BaseConfig(model=str(tiny_bert))),
            prompt=split_prompt(prompt, fields=FieldsConfig()),
            fields=FieldsConfig(),
            tokens=TokensConfig(max_length=max_length),
        )

    return open_one


def measure(encoder: Encoder, *texts: str) -> TokenBudget:
    rows = [{"text": text} for text in texts]
    return measure_budget(rows, encoder.encode(rows), encoder=encoder)


def judge(encoder: Encoder, *texts: str, min_article: int = 1) -> BudgetFindings:
    config = TokensConfig(max_length=encoder.max_length, min_article=min_article)
    return check_budget({"train": measure(encoder, *texts)}, encoder=encoder, config=config)


def test_a_budget_on_three_rows(open_encoder) -> None:
    budget = measure(open_encoder(), "bank rate oil", "oil gas bank tax debt", "bank " * 8)
    assert budget.article_tokens_p95 == pytest.approx(7.7)
    assert budget.replace(article_tokens_p95=7.7) == TokenBudget(
        num_rows=3,
        prompt_tokens=3,
        article_tokens_median=5.0,
        article_tokens_p95=7.7,
        article_tokens_max=8,
        num_cut=1,
        fraction_kept=13 / 16,
        fraction_kept_median=1.0,
        num_identical=0,
    )
    assert list(describe_budgets({"train": budget})) == [
        "tokens   prompt   article: median   95 %   longest   articles cut     kept",
        "  train        3                 5      8         8         1 of 3    81.2%",
    ]


def test_d1_rows_that_differ_only_behind_the_cut_are_counted(open_encoder) -> None:
    same = "oil gas bank tax debt"
    texts = [f"{same} rate", f"{same} film", "music", "music"]
    assert measure(open_encoder(), *texts).num_identical == 2, "equal texts do not count"
    findings = judge(open_encoder(), *texts)
    assert "train: 2 rows with different texts have identical inputs" in findings.warnings


def test_d1_a_prompt_that_leaves_less_than_the_least_article_is_refused(open_encoder) -> None:
    encoder = open_encoder()
    assert list_prompt_refusals(encoder, TokensConfig(max_length=10, min_article=5)) == []
    (refusal,) = list_prompt_refusals(encoder, TokensConfig(max_length=10, min_article=6))
    assert refusal == (
        "prompt and tail take 5 of tokens.max_length 10, which leaves 5 tokens for the article; "
        "tokens.min_article is 6"
    )
    assert judge(encoder, "bank", min_article=6).refusals == [refusal]


def test_d1_a_median_row_that_keeps_less_than_half_is_refused(open_encoder) -> None:
    half, less = "bank " * 10, "bank " * 11
    assert judge(open_encoder(), half, half, less).refusals == []
    (refusal,) = judge(open_encoder(), half, less, less).refusals
    assert refusal.startswith("train: the median row keeps 45% of its article; prompt and tail")


def test_without_a_prompt_long_articles_are_a_warning(open_encoder) -> None:
    findings = judge(open_encoder("{text}"), *["bank " * 40] * 3, min_article=8)
    assert findings.refusals == []
    assert findings.warnings == [
        "train: 3 of 3 articles are truncated to 8 tokens; 20.0% of all article tokens are kept"
    ]


def test_a_budget_that_keeps_everything_is_silent(open_encoder) -> None:
    assert judge(open_encoder(), "bank", "rate", "oil") == BudgetFindings([], [])


def test_refusals_can_be_waived_with_a_reason() -> None:
    refuse_budget([], waive=None)
    refuse_budget(["too long"], waive="a study of truncation")
    with pytest.raises(UserError, match=r"(?s)refused.*too long.*give a reason in tokens\.waive"):
        refuse_budget(["too long"], waive=None)


def test_d1_a_prompt_that_hides_the_articles_does_not_pass_the_check(
    write_scores_task, write_recipe, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", str(write_scores_task())]) == 0
    recipe = write_recipe(tiny_bert, prompt="bank " * 84 + "{text}")  # 86 of 96 tokens
    for verb in ("check", "train"):
        assert main([verb, str(recipe)]) == 2
        message = capsys.readouterr().err
        assert "the token budget is refused" in message
        assert "leaves 10 tokens for the article; tokens.min_article is 16" in message
        assert "train: the median row keeps" in message
    assert main(["check", str(recipe), "--no-data"]) == 2
    assert "leaves 10 tokens" in capsys.readouterr().err
    assert main(["check", str(recipe), "--set", "tokens.waive=a study"]) == 0


def test_a_prompt_that_names_a_field_the_rows_lack_is_refused(
    write_scores_task, write_recipe, tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = write_scores_task()
    text = task.read_text().replace("id: id, text: [title, content]", "id: uid, text: content")
    task.write_text(text)
    rows = Path("rows.jsonl").read_text().replace('"id":', '"uid":')
    Path("rows.jsonl").write_text(rows)
    assert main(["prepare", str(task)]) == 0
    recipe = write_recipe(tiny_bert, prompt="rate {uid} {text}")
    assert main(["check", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert "variant.md: field missing: the prompt names {uid}; name it in fields.keep" in message


def test_d1_long_text_between_placeholders_is_refused(open_encoder) -> None:
    config = TokensConfig(max_length=200, min_article=10)
    few = open_encoder("task {text} bank rate {text}", max_length=200)
    assert (few.num_between_tokens, list_prompt_refusals(few, config)) == (2, [])
    many = open_encoder("task {text} " + "bank " * 65 + "{text}", max_length=200)
    (refusal,) = list_prompt_refusals(many, config)
    assert refusal.startswith("65 tokens of the prompt are between")


def test_without_a_prompt_a_short_max_length_is_no_refusal(open_encoder) -> None:
    encoder = open_encoder("{text}", max_length=8)
    assert list_prompt_refusals(encoder, TokensConfig(max_length=8, min_article=128)) == []
