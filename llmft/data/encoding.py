"""From a row to token ids within the token budget, and how much of the articles it keeps.

Prompt, article and tail are tokenised separately, and joined; only the article is truncated.
"""

import hashlib
import json
import math
import threading
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import numpy as np

from llmft import __version__
from llmft.config.recipe import TokensConfig
from llmft.config.task import FieldsConfig
from llmft.data.fields import Row
from llmft.data.prompts import Prompt, RowText, fill_prompt, move_article_last, strip_fields
from llmft.errors import UserError
from llmft.files import hash_text
from llmft.results.run import TokenBudget

HEAD_FRACTION = 0.7
"""Fraction of the kept tokens from the head of an article, with `head_tail`."""
_ROWS_PER_CALL = 1_000
ENOUGH_KEPT = 0.99
"""Truncation that keeps at least this fraction of all article tokens is not a warning."""
_MAX_BETWEEN_TOKENS = 64  # enough for labels such as "Title:" and "Published:"


class EncodedRow(NamedTuple):
    """The model's input for one row."""

    shared_ids: list[int]
    """Leading tokens of all rows: special tokens and the prompt without its last token."""
    own_ids: list[int]
    """The rest, never empty: the prompt's last token, article, pair, tail, special tokens."""
    num_article_tokens: int
    """Length of the article before truncation, with the text pair."""
    num_kept_tokens: int
    """Number of its tokens after truncation, in `own_ids`."""
    pair_start: int | None = None
    """Start of the second segment, for bases with token types."""

    @property
    def input_ids(self) -> list[int]:
        """The input, of at most `max_length` tokens."""
        return [*self.shared_ids, *self.own_ids]

    @property
    def num_tokens(self) -> int:
        """Length of the input."""
        return len(self.shared_ids) + len(self.own_ids)


class Piece(NamedTuple):
    """Consecutive tokens of one kind."""

    kind: Literal["special", "prompt", "article", "cut", "pair", "tail"]
    """`cut` tokens are those that truncation removes."""
    ids: list[int]


class _Frame(NamedTuple):
    """Special tokens around one or two sequences."""

    opening: list[int]
    between: list[int]
    closing: list[int]


class Encoder:
    """Encodes rows for one base, one prompt and one budget.

    Prompt, article and tail are tokenised separately, so the prompt's tokens are the same in every
    row, however the article begins. Text that spells a special token (`[SEP]`, `<|endoftext|>`) is
    encoded as ordinary text.

    A text pair follows the article. It is truncated only if it would take more than half of the
    room from an article that needs it.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        prompt: Prompt,
        fields: FieldsConfig,
        tokens: TokensConfig,
        has_segments: bool = False,
    ) -> None:
        """Tokenise the prompt and the tail once, since they are the same in every row.

        Args:
            tokenizer: Tokenizer of the base.
            prompt: The prompt, or the empty one.
            fields: Which fields make up the article.
            tokens: The budget, and what to keep of a long article.
            has_segments: Whether the base has token types for a second segment.
        """
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self.prompt = prompt
        self._fields, self._tokens = fields, tokens
        self._keeps_tail = tokens.article == "head_tail"
        self._has_segments = has_segments
        frame = _find_frame(tokenizer)
        if fields.text_pair is None:
            frame = frame._replace(between=[])
        elif not frame.between:
            frame = frame._replace(between=self._tokenize(["\n\n"])[0])
        self._frame = frame
        self._prompt_ids = self._tokenize([prompt.before])[0]
        # The last one counts as the row's own, so that no row is empty without the shared tokens.
        self.shared_ids = [*frame.opening, *self._prompt_ids][:-1]
        """Leading tokens of every input."""
        self._tail_ids = self._tokenize([prompt.after])[0]
        self.num_special_tokens = sum(map(len, frame))
        self.num_prompt_tokens = (
            self.num_special_tokens + len(self._prompt_ids) + len(self._tail_ids)
        )
        """Tokens of an input apart from the article: prompt, tail and special tokens."""
        self.num_between_tokens = len(self._tokenize([strip_fields(prompt, fields=fields)])[0])
        """Tokens of the prompt between its first and last placeholder, which count as article."""
        self.max_length = tokens.max_length

    def with_article_last(self) -> "Encoder":
        """Return an encoder that differs in this only: the article comes after the prompt."""
        return Encoder(
            self.tokenizer,
            prompt=move_article_last(self.prompt, fields=self._fields),
            fields=self._fields,
            tokens=self._tokens,
            has_segments=self._has_segments,
        )

    @property
    def has_prompt(self) -> bool:
        """Whether there are tokens around the article other than special ones."""
        return self.num_prompt_tokens > self.num_special_tokens

    @property
    def room(self) -> int:
        """Tokens left for the article; 0 or less if there is no room."""
        return self.max_length - self.num_prompt_tokens

    def compute_fingerprint(self) -> str:
        """Return a hash of everything that a row's ids depend on, except the row."""
        tokenizer = self.tokenizer
        vocabulary = (
            tokenizer.backend_tokenizer.to_str()
            if tokenizer.is_fast
            else sorted(tokenizer.get_vocab().items())
        )
        dependencies = [
            vocabulary, tokenizer.pad_token_id, self._frame, self.prompt, self.max_length,
            self._keeps_tail, self._has_segments, self._fields.model_dump(mode="json"),
            __version__, version("tokenizers"), version("transformers"),
        ]  # fmt: skip
        return hash_text(json.dumps(dependencies))

    def encode(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """Encode rows.

        Raises:
            RowFaultError: If a row has no text or lacks a field that the prompt names.
            UserError: If the prompt leaves no tokens for an article.
        """
        return [self._join(pieces) for pieces in self.dissect(rows)]

    def dissect(self, rows: Sequence[Row]) -> list[list[Piece]]:
        """Return the pieces of each row's input, in order, with those that truncation removes.

        Raises:
            RowFaultError: If a row has no text or lacks a field that the prompt names.
            UserError: If the prompt leaves no tokens for an article.
        """
        if self.room < 1:
            raise UserError(
                f"tokens.max_length: {self.max_length} leaves no tokens for the article: prompt, "
                f"tail and special tokens take {self.num_prompt_tokens}"
            )
        texts = [self.fill(row) for row in rows]
        articles = self._tokenize([text.article for text in texts])
        has_pair = self._fields.text_pair is not None
        pairs = self._tokenize([t.pair for t in texts]) if has_pair else [[] for _ in texts]
        return [self._cut(*ids) for ids in zip(articles, pairs, strict=True)]

    def fill(self, row: Row) -> RowText:
        """Return the text of a row's parts."""
        return fill_prompt(self.prompt, row, fields=self._fields)

    def _cut(self, article: list[int], pair: list[int]) -> list[Piece]:
        opening, between, closing = self._frame
        pair_room = max(self.room - len(article), self.room // 2)
        room = self.room - min(len(pair), pair_room)
        num_head = math.ceil(HEAD_FRACTION * room) if self._keeps_tail else room
        num_tail = room - num_head
        if len(article) <= room:
            num_head, num_tail = len(article), 0
        end = len(article) - num_tail
        return [
            Piece("special", opening),
            Piece("prompt", self._prompt_ids),
            Piece("article", article[:num_head]),
            Piece("cut", article[num_head:end]),
            Piece("article", article[end:]),
            Piece("special", between),
            Piece("pair", pair[:pair_room]),
            Piece("cut", pair[pair_room:]),
            Piece("tail", self._tail_ids),
            Piece("special", closing),
        ]

    def _join(self, pieces: list[Piece]) -> EncodedRow:
        input_ids: list[int] = []
        num_whole = num_kept = 0
        pair_start = None
        for kind, ids in pieces:
            if kind == "pair" and self._has_segments and self._fields.text_pair is not None:
                pair_start = len(input_ids)
            if kind in ("article", "pair", "cut"):
                num_whole += len(ids)
            if kind != "cut":
                input_ids += ids
                num_kept += len(ids) if kind in ("article", "pair") else 0
        # If the tokenizer drops all of a text, a base without special tokens would get no input.
        own_ids = input_ids[len(self.shared_ids) :] or [self.tokenizer.pad_token_id]
        return EncodedRow(self.shared_ids, own_ids, num_whole, num_kept, pair_start)

    def _tokenize(self, texts: Iterable[str]) -> list[list[int]]:
        batch = list(texts)
        ids: list[list[int]] = []
        for start in range(0, len(batch), _ROWS_PER_CALL):  # what a tokenizer returns is large
            with self._lock:  # its settings are changed by a call, which no other may read then
                encoded = self.tokenizer(
                    batch[start : start + _ROWS_PER_CALL],
                    add_special_tokens=False,
                    split_special_tokens=True,
                    return_attention_mask=False,
                    return_token_type_ids=False,
                    verbose=False,
                )
            ids += encoded["input_ids"]
        return ids


def _find_frame(tokenizer: Any) -> _Frame:
    """Return the special tokens before, between and after two sequences."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    single = tokenizer("a", add_special_tokens=True)["input_ids"]
    double = tokenizer("a", "a", add_special_tokens=True)["input_ids"]
    start = _find_sublist(plain, single)
    if start is None:
        raise UserError(
            "base.model: its tokenizer changes the text when it adds special tokens, which is not "
            "supported; choose another base"
        )
    opening, closing = single[:start], single[start + len(plain) :]
    rest = double[start + len(plain) :]
    between = _find_sublist(plain, rest)
    return _Frame(opening, rest[:between] if between else [], closing)


def _find_sublist(wanted: list[int], ids: list[int]) -> int | None:
    """Return the first position of a sublist in a list of ids; None if it is not there."""
    starts = range(len(ids) - len(wanted) + 1)
    return next((i for i in starts if ids[i : i + len(wanted)] == wanted), None)


class BudgetFindings(NamedTuple):
    """Refusals and warnings about a budget."""

    refusals: list[str]
    """Reasons not to train."""
    warnings: list[str]
    """Reasons to be careful, repeated in every report."""


def measure_budget(
    rows: Sequence[Row], encoded: Sequence[EncodedRow], *, encoder: Encoder
) -> TokenBudget:
    """Measure the budget of encoded rows; `encoded[i]` is the input of `rows[i]`."""
    lengths, kept, inputs = np.zeros(len(rows), int), np.zeros(len(rows), int), []
    texts_by_input: defaultdict[bytes, set[str]] = defaultdict(set)
    for i, (row, e) in enumerate(zip(rows, encoded, strict=True)):
        lengths[i], kept[i] = e.num_article_tokens, e.num_kept_tokens
        # Only a row's own ids can differ, and a digest takes less memory than ids.
        inputs.append(hashlib.sha256(array("i", e.own_ids).tobytes()).digest())
        texts_by_input[inputs[-1]].add(row["text"])
    collisions = {digest for digest, texts in texts_by_input.items() if len(texts) > 1}
    return TokenBudget(
        num_rows=len(rows),
        prompt_tokens=encoder.num_prompt_tokens - encoder.num_special_tokens,
        article_tokens_median=float(np.median(lengths)),
        article_tokens_p95=float(np.quantile(lengths, 0.95)),
        article_tokens_max=int(lengths.max()),
        num_cut=int((kept < lengths).sum()),
        fraction_kept=float(kept.sum() / max(1, lengths.sum())),
        fraction_kept_median=float(np.median(kept / np.maximum(1, lengths))),
        num_identical=sum(digest in collisions for digest in inputs),
    )


def list_prompt_refusals(encoder: Encoder, config: TokensConfig) -> list[str]:
    """Return why a prompt is refused, for any articles."""
    refusals = []
    if encoder.has_prompt and encoder.room < config.min_article:
        refusals.append(
            f"prompt and tail take {encoder.num_prompt_tokens} of tokens.max_length "
            f"{encoder.max_length}, which leaves {max(0, encoder.room)} tokens for the article; "
            f"tokens.min_article is {config.min_article}"
        )
    if encoder.num_between_tokens > _MAX_BETWEEN_TOKENS:
        refusals.append(
            f"{encoder.num_between_tokens} tokens of the prompt are between its first and last "
            "placeholder, where they would count as article and be truncated with it; at most "
            f"{_MAX_BETWEEN_TOKENS} are allowed there: move the placeholders together"
        )
    return refusals


def check_budget(
    budgets: dict[str, TokenBudget], *, encoder: Encoder, config: TokensConfig
) -> BudgetFindings:
    """Check how much truncation leaves of the articles (D1).

    A recipe is refused if its prompt leaves too few tokens for the article, or if the median row
    loses more than half of its article to a prompt or to a budget below `min_article`. Other
    truncation is a warning, if more than 1 % of all article tokens are lost.
    """
    refusals, warnings = list_prompt_refusals(encoder, config), []
    for name, budget in budgets.items():
        is_squeezed = encoder.has_prompt or encoder.room < config.min_article
        if is_squeezed and budget.fraction_kept_median < 0.5:
            refusals.append(
                f"{name}: the median row keeps {budget.fraction_kept_median:.0%} of its article; "
                f"prompt and tail take {budget.prompt_tokens} of tokens.max_length "
                f"{encoder.max_length}, the median article has {budget.article_tokens_median:.0f}"
            )
        elif budget.fraction_kept < ENOUGH_KEPT:
            warnings.append(
                f"{name}: {budget.num_cut} of {budget.num_rows} articles are truncated to "
                f"{encoder.room} tokens; {budget.fraction_kept:.1%} of all article tokens are kept"
            )
        if budget.num_identical:
            warnings.append(
                f"{name}: {budget.num_identical} rows with different texts have identical inputs"
            )
    return BudgetFindings(refusals, warnings)


def refuse_budget(refusals: list[str], *, waive: str | None) -> None:
    """Raise the refusals, unless the recipe waives them with a reason.

    Raises:
        UserError: With every reason.
    """
    if refusals and waive is None:
        raise UserError(
            "the token budget is refused, since truncation would remove most of the articles:\n  "
            + "\n  ".join(refusals)
            + "\n  Raise tokens.max_length, shorten the prompt, or give a reason in tokens.waive"
        )
