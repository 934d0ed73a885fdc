"""What a task file may say."""

import pytest

from llmft.config.task import ClassConfig, load_task
from llmft.errors import UserError
from tests.config.examples import CLASS_TASK, MULTILABEL_TASK, SCORES_TASK


def test_one_text_field_needs_no_list(write) -> None:
    task = load_task(write("task.yaml", CLASS_TASK + "fields: {text: body}\n"))
    assert task.fields.text == ["body"]


def test_numbered_classes_are_text_on_both_sides(write) -> None:
    text = CLASS_TASK.replace("mood}", "mood, map: {0: no, 01: 1, -1: 2.5}}")
    labels = load_task(write("task.yaml", text)).labels
    assert isinstance(labels, ClassConfig)
    assert labels.map == {"0": "no", "01": "1", "-1": "2.5"}


@pytest.mark.parametrize(
    ("found", "instead", "complaint"),
    [
        ("[risk, calm]", "[risk, risk]", "task.yaml:3: labels: dimensions: a name is repeated"),
        ("[risk, calm]", "[]", "labels.dimensions: found [], but"),
        ("[0, 10]", "[10, 0]", "labels: range: the first must be below the second"),
        ("[0, 10]", "[5, 5]", "labels: range: the first must be below the second"),
        ("[0, 10]", "[0]", "labels.range: found [0], but"),
        ("[0, 10]", "[0, .inf]", "labels.range.1: found inf, but expected a finite number"),
        ("[0, 10]", "[.nan, 1]", "labels.range.0: found nan, but expected a finite number"),
        ("[0, 10]", "[0, 1e300]", "labels.range.1: found 1e+300, but"),
        (
            "[0, 10]}",
            "[0, 10], weights: {rsk: 1}}",
            "'rsk' is not among the dimensions. Did you mea",
        ),
        ("[0, 10]}", "[0, 10], weights: {risk: 0}}", "weights: at least one must be above 0"),
        ("[0, 10]}", "[0, 10], weights: {risk: -1}}", "labels.weights.risk: found -1, but"),
        ("[0, 10]}", "[0, 10], tiers: {low: 0}}", "labels.tiers: found {'low': 0}, but"),
        ("[0, 10]}", "[0, 10], tiers: {a: 0, b: 7, c: 5}}", "tiers: the lower bounds must rise"),
        ("[0, 10]}", "[0, 10], tiers: {a: 0, b: 5, c: 5}}", "tiers: the lower bounds must rise"),
        ("[0, 10]}", "[0, 10], tiers: {a: 3, b: 5}}", "the first must begin at the lowest score 0"),
        ("[0, 10]}", "[0, 10], tiers: {a: -5, b: 0}}", "the first must begin at the lowest score"),
        ("name: risk", "name: a/b", "task.yaml:1: name: found 'a/b', allowed: letters, digits"),
        ("name: risk", "name: 7", "name: found 7, but expected a valid string"),
    ],
)
def test_scores_that_make_no_sense(write, found: str, instead: str, complaint: str) -> None:
    assert SCORES_TASK.count(found) == 1
    with pytest.raises(UserError) as caught:
        load_task(write("task.yaml", SCORES_TASK.replace(found, instead)))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("split: {train: 0.9}", "task.yaml:5: split: train + val + test must be 1, found 1.1"),
        ("split: {train: 1.0, val: 0, test: 0}", "split.val: found 0, but"),
        ("split: {train: 1.2, val: -0.1, test: -0.1}", "split.train: found 1.2, but"),
        ("clean: {near_duplicates: 0}", "clean.near_duplicates: found 0, but"),
        ("clean: {near_duplicates: 1.1}", "clean.near_duplicates: found 1.1, but"),
        ("fields: {text: []}", "fields.text: found [], but"),
        ("fields: {text: 5}", "fields.text: found 5, but"),
        ("fields: {text: [title, text]}", "prepared rows hold the joined text under this name"),
        ("fields: {text: labels}", "fields: 'labels' cannot be among them"),
        ("fields: {keep: [labels]}", "fields: 'labels' cannot be among them"),
        ("fields: {id: uid, keep: [id]}", "fields: 'id' cannot be among them"),
        ("fields: {text: body, keep: [text]}", "fields: 'text' cannot be among them"),
        ("fields: {group: group, text: group}", "fields: 'group' cannot be among them"),
        ("fields: {text: body, text_pair: body}", "fields: text_pair: 'body' is taken"),
        ("fields: {text: body, text_pair: labels}", "fields: text_pair: 'labels' is taken"),
        ("filters: [{field: x}]", "filters.0: a filter on 'x' needs a condition: min, max, in"),
        ("filters: [{field: x, min: null}]", "filters.0: a filter on 'x' needs a condition"),
        ("filters: [{field: x, min: 2, max: 1}]", "filters.0: min 2 is above max 1"),
        ("filters: [{field: x, in: []}]", "filters.0.in: found [], but"),
        (
            "filters: [{field: x, matches: '('}]",
            "filters.0.matches: '(' is not a valid regular expression",
        ),
        ("filters: [{feld: x, min: 1}]", "filters.0.feld: unknown key. Did you mean `field`?"),
        ("clean: {min_chars: 0}", "clean.min_chars: found 0, but"),
        ("balance: {reduce_majority_to: 0.5}", "balance.reduce_majority_to: found 0.5, but"),
        ("balance: {oversample: 1.5}", "balance.oversample: found 1.5, but"),
    ],
)
def test_sections_that_make_no_sense(write, section: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_task(write("task.yaml", f"{CLASS_TASK}{section}\n"))
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "section",
    [
        "split: {train: 0.7, val: 0.2, test: 0.1}",
        "clean: {near_duplicates: 1}",
        "fields: {id: id, text: text, keep: [id, text]}",
        "fields: {group: group, keep: [group]}",
        "fields: {id: text, text: text}",
        "fields: {text: body, text_pair: motive, keep: [motive]}",
        "filters: [{field: x, empty: false}, {field: y, in: [1, a, true]}]",
        "split: {by: published_date}",
        "balance: {reduce_majority_to: 2, oversample: 0.5}",
        "balance: {}",
    ],
)
def test_sections_that_make_sense(write, section: str) -> None:
    assert load_task(write("task.yaml", f"{CLASS_TASK}{section}\n"))


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ("{type: class, from: mood, otherwise: none}", "otherwise: only for a list of fields"),
        ("{type: class, from: [a, a]}", "labels: from: a name is repeated"),
        ("{type: class, from: []}", "labels.from: found [], but"),
        ("{type: class, from: [a, b], map: {c: x}}", "map: 'c' is not among the fields of `from`"),
        ("{type: class, from: mood, order: [a, a]}", "labels: order: a name is repeated"),
        ("{type: class, from: mood, order: [a]}", "labels.order: found ['a'], but"),
        ("{type: class, from: mood, order: [a, b], exclude: [b]}", "'b' is in `order` as well"),
        ("{type: class, from: mood, order: [a, b], map: {x: c}}", "order: lacks the class 'c'"),
        ("{type: class, from: [x], order: [a, b], otherwise: c}", "order: lacks the class 'c'"),
        ("{type: multilabel, from: [a], names: [b]}", "names: only for one field"),
        ("{type: multilabel, from: a, names: [b, b]}", "names: a name is repeated"),
        ("{type: class, from: a, order: [true, b]}", "labels.order: found true, which is a bool"),
        ("{type: class, from: a, map: {x: false}}", "labels.map: found false, which is a bool"),
        ("{type: multilabel, from: [a, b], map: {c: x}}", "map: 'c' is not among the fields"),
        ("{type: multilabel, from: [a, b], map: {a: b}}", "map: a name is repeated"),
        ("{type: multilabel, from: [a], range: [0, 1]}", "labels.range: unknown key. Allowed: ty"),
    ],
)
def test_classes_that_make_no_sense(write, labels: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_task(write("task.yaml", CLASS_TASK.replace("{type: class, from: mood}", labels)))
    assert complaint in str(caught.value)
    assert "str]" not in str(caught.value), "no names of our own types"


def test_numbered_classes_are_put_in_order_and_left_out(write) -> None:
    text = CLASS_TASK.replace("mood}", "mood, order: [0, 1], exclude: [2]}")
    labels = load_task(write("task.yaml", text)).labels
    assert isinstance(labels, ClassConfig)
    assert (labels.order, labels.exclude) == (["0", "1"], ["2"])


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ("[]", "sources: found [], but"),
        ("[{path: ''}]", "sources.0.path: found '', but"),
        ("[{path: a.csv, encoding: latin-l}]", "sources.0.encoding: found 'latin-l', which is no"),
        ("[{path: a.csv, split: dev}]", "split: found 'dev', allowed: train, val, test"),
        ("[{path: a.csv, rows: train}]", "sources.0: subset and rows are for hf:// sources only"),
        ("[{path: a.csv, subset: en}]", "sources.0: subset and rows are for hf:// sources only"),
        ("[a.csv]", "sources.0: found 'a.csv', but expected keys and values"),
    ],
)
def test_sources_that_make_no_sense(write, sources: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_task(write("task.yaml", CLASS_TASK.replace("[{path: rows.jsonl}]", sources)))
    assert complaint in str(caught.value)


def test_several_labels_have_no_majority_to_balance(write) -> None:
    text = MULTILABEL_TASK + "balance: {oversample: 1}\n"
    with pytest.raises(UserError, match="balance: needs labels of type class, or scores with tie"):
        load_task(write("task.yaml", text))
