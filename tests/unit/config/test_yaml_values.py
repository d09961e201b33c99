"""YAML in configs: what PyYAML would take without a word, or end in another error for, is refused in one short line."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from diffpipe.config.yaml_values import MAX_CHARACTERS, YamlError, parse_override, parse_yaml

LEVELS = ["x: &0 [" + ",".join("x" * 9) + "]", *(f"y{i}: &{i + 1} [{','.join([f'*{i}'] * 9)}]" for i in range(8))]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            "optimizer: {lr: 1}\noptimizer: {lr: 2}",
            "'optimizer' comes twice in one section; keep one (line 2, column 1)",
        ),
        ("a: {b: 1, 'b': 2}", "'b' comes twice"),
        ("on: 1\nyes: 2", "'yes' comes twice"),
        ("a: !!set {x, x}", "'x' comes twice"),
        ("x: &a {p: 1}\ny: {p: 2, <<: *a, p: 3}", "'p' comes twice"),
        ("a: 2024-02-31", "'2024-02-31' is no valid timestamp"),
        ("a: !!timestamp x", "no valid timestamp"),
        ("a: !!int abc", "'abc' is no valid int; correct it, or quote it"),
        ("a: 1" + ":59" * 300_000, "is no valid int; correct it, or quote it"),
        ("a: !!int ''", "no valid int"),
        ("a: !!float x", "no valid float"),
        ("a: !!bool x", "no valid bool"),
        ("a: " + "9" * 5000, "no valid int"),
        ("a: 0x" + "f" * 5000, "no valid int"),
        ("[" * 5000, "more than 50 levels"),
        ("a: " * 1 + "{a: " * 3000, "more than 50 levels"),
        ("\n".join(LEVELS), "more than 100000 values"),
        ("a: &x [*x]", "contains itself"),
        ("a: &x {b: {c: *x}}", "contains itself"),
        ("? [1]\n: 2", "unhashable"),
        ("a: !!python/object/apply:os.system [ls]", "tag"),
        ("--- 1\n--- 2", "a single document"),
        ("a: \0", "unacceptable character"),
        ('a: "b\\0c"', "no valid str"),
        ('a: "\\ud800"', "no valid str"),
        ('a: "\\UFFFFFFFF"', "an escape in it is the number of no character"),
        ('a: "\\U00110000"', "an escape in it is the number of no character"),
        ("a" * (MAX_CHARACTERS + 1), "longer than"),
        ("k" * 200_000 + ": [", ""),
    ],
)
def test_a_text_that_no_config_can_have_is_refused_in_a_short_line(text: str, part: str) -> None:
    with pytest.raises(YamlError) as error:
        parse_yaml(text)
    assert part in str(error.value)
    assert len(str(error.value)) < 350
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            "x: &a {p: 1, q: 0}\ny: &b {<<: *a, p: 2}\nz: {<<: *b}",
            {"x": {"p": 1, "q": 0}, "y": {"p": 2, "q": 0}, "z": {"p": 2, "q": 0}},
        ),
        ("y: {<<: [{a: 1}, {a: 2}]}", {"y": {"a": 1}}),
        ("a: [1, 2.5, true, null, x]", {"a": [1, 2.5, True, None, "x"]}),
        ('a: "\\udcff"', {"a": chr(0xDCFF)}),  # a byte of a path that is not UTF-8
        ("a: 2024-02-29", {"a": datetime.date(2024, 2, 29)}),
        ("", None),
    ],
)
def test_other_yaml_means_what_it_does_elsewhere(text: str, value: Any) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("1.5", 1.5),
        ("true", True),
        ("null", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("'a #b'", "a #b"),
        ("100 #2", "100 #2"),
        ("a: b", "a: b"),
        ("- a", "- a"),
        ("*a", "*a"),
        ("!!int 3", "!!int 3"),
    ],
)
def test_an_override_is_a_plain_word_unless_it_is_a_list_a_mapping_or_quoted(text: str, value: Any) -> None:
    assert parse_override(text) == value


@pytest.mark.parametrize("text", ["[1, 2] #x", "[1, 2", "{a: 1, a: 2}", "'a' b", "2024-02-31", "9" * 5000])
def test_an_override_that_would_lose_a_part_is_refused(text: str) -> None:
    with pytest.raises(YamlError):
        parse_override(text)
