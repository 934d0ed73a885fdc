"""From a row to token ids: parts tokenised apart and joined, and only the article cut."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from llmft.config.task import FieldsConfig
from llmft.data.prompts import Prompt, RowText, fill_prompt, strip_fields
from llmft.errors import UserError


class EncodedRow(NamedTuple):
    """The model's input for one row."""

    input_ids: list[int]
    """Special tokens, prompt, article, tail; at most `max_length` of them."""
    num_article_tokens: int
    """Length of the whole article."""
    num_kept_tokens: int
    """How many of its tokens are in `input_ids`."""


class Encoder:
    """Encodes rows for one base, one prompt and one budget.

    Prompt, article and tail are tokenised apart, so the prompt's tokens are the same in every
    row, whatever the article begins with. Text that spells a special token (`[SEP]`,
    `<|endoftext|>`) is encoded as plain text.
    """

    def __init__(
        self, tokenizer: Any, *, prompt: Prompt, fields: FieldsConfig, max_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._fields = fields
        opening, closing = _find_special_tokens(tokenizer)
        self._before_ids = opening + self._tokenize([prompt.before])[0]
        self._after_ids = self._tokenize([prompt.after])[0] + closing
        self.num_prompt_tokens = len(self._before_ids) + len(self._after_ids)
        """Tokens of an input that are no article: prompt, tail and special tokens."""
        self.num_between_tokens = len(self._tokenize([strip_fields(prompt, fields=fields)])[0])
        """Tokens of the prompt between its first and last placeholder, which count as article."""
        self.num_special_tokens = len(opening) + len(closing)
        self.max_length = max_length

    @property
    def has_prompt(self) -> bool:
        """Whether anything but special tokens stands around the article."""
        return self.num_prompt_tokens > self.num_special_tokens

    @property
    def room(self) -> int:
        """Tokens left for the article; 0 or less if there is no room."""
        return self.max_length - self.num_prompt_tokens

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[EncodedRow]:
        """Encode rows.

        Raises:
            RowFaultError: If a row has no text or lacks a field that the prompt names.
            UserError: If the prompt leaves no room for an article.
        """
        if self.room < 1:
            raise UserError(
                f"tokens.max_length: {self.max_length} leaves no room for the article: prompt, "
                f"tail and special tokens take {self.num_prompt_tokens}"
            )
        articles = [fill_prompt(self._prompt, row, fields=self._fields).article for row in rows]
        return [self._join(ids) for ids in self._tokenize(articles)]

    def fill(self, row: dict[str, Any]) -> RowText:
        """Return the text of a row's parts."""
        return fill_prompt(self._prompt, row, fields=self._fields)

    def _join(self, article_ids: list[int]) -> EncodedRow:
        kept = article_ids[: self.room]
        input_ids = self._before_ids + kept + self._after_ids
        return EncodedRow(input_ids, len(article_ids), len(kept))

    def _tokenize(self, texts: Iterable[str]) -> list[list[int]]:
        batch = list(texts)
        if not batch:
            return []  # tokenizers take no empty batch
        encoded = self._tokenizer(
            batch, add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        return list(encoded["input_ids"])


def _find_special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens in front of and behind a single sequence."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    raise UserError("this tokenizer changes the text when it adds special tokens; not supported")
