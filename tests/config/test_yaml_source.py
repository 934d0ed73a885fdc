"""YAML as people mean it, with the line of every value."""

from pathlib import Path
from typing import Any

import pytest

from llmft.config.loading import merge, parse_overrides, read_yaml
from llmft.errors import UserError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-4", 0.0001),
        ("2.5E+3", 2500.0),
        (".5", 0.5),
        ("-7", -7),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("2024-01-31", "2024-01-31"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("'010'", "010"),
        ("[1, b]", [1, "b"]),
        ("{a: 1.0}", {"a": 1.0}),
    ],
)
def test_scalars_follow_yaml_1_2(written: str, meant: Any) -> None:
    found = parse_overrides([f"train.x={written}"])["train.x"]
    assert found == meant
    assert type(found) is type(meant)


def test_keys_are_always_text(write) -> None:
    path = write("a.yaml", "map: {0: calm, 010: tense, true: sure, 1e3: many}\n")
    assert list(read_yaml(path).data["map"]) == ["0", "010", "true", "1e3"]


def test_every_value_knows_its_line(write) -> None:
    path = write("a.yaml", "one: 1\n\n# a comment\ntwo:\n  three:\n    - x\n    - y\n")
    values = read_yaml(path)
    assert str(values.find_origin(("one",))) == "a.yaml:1"
    assert str(values.find_origin(("two", "three"))) == "a.yaml:5"
    assert str(values.find_origin(("two", "three", 1))) == "a.yaml:7"
    assert str(values.find_origin(("two", "missing"))) == "a.yaml:4", "the nearest parent"


def test_merging_keeps_what_the_upper_file_leaves_alone(write) -> None:
    base = read_yaml(write("base.yaml", "train: {epochs: 3, seed: 1}\nkeep: [a, b, c]\n"))
    top = read_yaml(write("top.yaml", "\ntrain: {seed: 2}\nkeep: [d]\n"))
    both = merge(base, top)
    assert both.data == {"train": {"epochs": 3, "seed": 2}, "keep": ["d"]}
    assert str(both.find_origin(("train", "epochs"))) == "base.yaml:1"
    assert str(both.find_origin(("train", "seed"))) == "top.yaml:2"
    assert str(both.find_origin(("keep", 2))) == "top.yaml:3"
    assert base.data["train"]["seed"] == 1, "the lower file is unchanged"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3\n", "bad.yaml:3: the key `a` is repeated (first on line 1)"),
        ("a:\n  b: 1\n  b: 2\n", "bad.yaml:3: the key `b` is repeated (first on line 2)"),
        ("a: 1\nb: [1, 2\nc: 3\n", "bad.yaml:3: not valid YAML"),
        ("a:\n\tb: 1\n", "bad.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "bad.yaml:2: not valid YAML"),
        ("- a\n- b\n", "bad.yaml:1: expected keys and values at the top, found a list"),
        ("just text\n", "bad.yaml:1: expected keys and values at the top, found a single value"),
        ("a: 1\n? [b]\n: c\n", "bad.yaml:2: a key must be plain text"),
        ("a: 1\0\n", "bad.yaml: holds NUL bytes"),
        ('a: 1\nb: "x\\0y"\n', "bad.yaml:2: a NUL byte"),
        ('a: 1\nb: "\\ud800"\n', "bad.yaml:2: a NUL byte or a lone surrogate"),
        ("a: 1\nb: \x07\n", "bad.yaml:2: not valid YAML: the control character '\\x07'"),
        ("a: !!python/object:os.system x\n", "bad.yaml:1: not valid YAML"),
        ("a: !!bool x\n", "bad.yaml: not valid YAML: a value cannot be read"),
        ("a: !!int [1]\n", "bad.yaml: not valid YAML: a value cannot be read"),
        ("a: &a {b: *a}\n", "bad.yaml: not valid YAML: nested too deeply"),
        ("a: " + "[" * 1200, "bad.yaml: not valid YAML: nested too deeply"),
        ("a: " + "9" * 5000, "bad.yaml: not valid YAML: a value cannot be read"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(write, text: str, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        read_yaml(write("bad.yaml", text))
    assert complaint in str(caught.value)


def test_a_bomb_of_aliases_is_refused_before_it_unfolds(write) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(UserError, match="more than 20,000 values; remove aliases"):
        read_yaml(write("bomb.yaml", "\n".join(lines)))


def test_an_honest_alias_works(write) -> None:
    path = write("a.yaml", "one: &shared {x: 1}\ntwo: *shared\n")
    assert read_yaml(path).data == {"one": {"x": 1}, "two": {"x": 1}}


def test_a_byte_order_mark_is_no_part_of_the_first_key(workspace: Path) -> None:
    Path("a.yaml").write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_yaml(Path("a.yaml")).data == {"name": "x"}


def test_other_encodings_are_refused_with_the_line(workspace: Path) -> None:
    Path("a.yaml").write_bytes("name: x\ntitle: Stra\xdfe\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.yaml:2: not UTF-8"):
        read_yaml(Path("a.yaml"))


@pytest.mark.parametrize("name", ["nowhere.yaml", ".", "x" * 5000])
def test_a_file_that_cannot_be_opened_is_no_traceback(workspace: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(Path(name))


def test_an_empty_file_holds_nothing(write) -> None:
    assert read_yaml(write("a.yaml", "# only a comment\n")).data == {}


@pytest.mark.parametrize("assignment", ["train.epochs", "=1", ".=1", "train..epochs=1", ""])
def test_an_override_without_key_or_value_shows_how_it_is_written(assignment: str) -> None:
    with pytest.raises(UserError, match=r"expected KEY=VALUE, for example train\.epochs=1"):
        parse_overrides([assignment])


def test_an_override_that_is_no_yaml_is_quoted_in_full() -> None:
    with pytest.raises(UserError, match=r"--set keep=\[a:1: not valid YAML"):
        parse_overrides(["keep=[a"])
