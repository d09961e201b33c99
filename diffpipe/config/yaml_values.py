"""Plain values from YAML text, with a bounded message for whatever is wrong with it."""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_CHARACTERS = 1 << 20
_MAX_DEPTH = 50
_MAX_NODES = 100_000
_MAX_INT = 2**64
_MAX_MESSAGE = 300
_MAX_NUMBER = 400  # characters; PyYAML takes the square of the length for minutes such as 1:59:59
_NO_TEXT = re.compile(r"[\0\ud800-\udc7f\udd00-\udfff]")  # the other surrogates stand for bytes of a path
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_SPECIAL_KEYS = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")  # << and =


class YamlError(ValueError):
    """The text is not YAML that a config can have. The message is one line of at most a few hundred characters."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises YamlError.

    Refused beyond what YAML itself refuses: a key that comes twice in a mapping, a value that its tag or form does not
    fit (an impossible date), an integer above 2⁶⁴, more than 50 levels, and more than 100,000 values, aliases
    expanded.
    """
    return _parse(text)[0]


def parse_override(text: str) -> Any:
    """The value of `key=text` on the command line. Raises YamlError.

    A list in brackets, a mapping in braces or a quoted word is read as YAML. Anything else is one plain word, as typed:
    a `#` begins no comment, and `a: b` is no mapping.
    """
    text = text.strip()
    if text[:1] in {"[", "{", '"', "'"}:
        value, end = _parse(text)
        if end < len(text):
            raise YamlError(f"{shortened(text[end:].strip())!r} comes after the value's end")
        return value
    loader = _Loader("")
    try:
        node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
        return loader.construct_object(node)
    except yaml.YAMLError as error:
        raise YamlError(_message(error)) from error
    finally:
        loader.dispose()


def one_line(value: Any) -> str:
    """A plain value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def _parse(text: str) -> tuple[Any, int]:
    """The value, and the index of the character after it."""
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"it is longer than {MAX_CHARACTERS} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, len(text)
            return loader.construct_document(node), node.end_mark.index
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise YamlError(_message(error)) from error
    except (ValueError, OverflowError) as error:  # PyYAML passes any number of an escape to `chr`
        raise YamlError("an escape in it is the number of no character") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, which takes the last of two equal keys and has no limits."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = 0
        self._checked: set[int] = set()  # the mappings whose keys are known to be distinct, by id
        self._sizes: dict[int, int] = {}  # values in a node, aliases expanded, by the node's id

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(
                problem=f"more than {_MAX_DEPTH} levels", problem_mark=self.peek_event().start_mark
            )
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and id(node) not in self._sizes:
            if alias:
                raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=node.start_mark)
            self._sizes[id(node)] = self._size(node)
        return node

    def _size(self, node: yaml.Node) -> int:
        children = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        size = 1 + sum(self._sizes[id(child)] for child in children)
        if size > _MAX_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {_MAX_NODES} values", problem_mark=node.start_mark)
        return size

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) not in self._checked:  # later calls see keys that were merged in
            self._checked.add(id(node))
            self._require_distinct(node)
        super().flatten_mapping(node)
        # PyYAML leaves merged keys beside those that replace them, and takes the wrong one where this is merged in turn
        pairs = {(key.tag, str(key.value)): (key, value) for key, value in node.value}
        node.value = list(pairs.values())

    def _require_distinct(self, node: yaml.MappingNode) -> None:
        keys: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused as a key
            value = key.value if key.tag in _SPECIAL_KEYS else self.construct_object(key)
            if value in keys:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {shortened(key.value)!r} comes twice in one section; keep one",
                    problem_mark=key.start_mark,
                )
            keys.add(value)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            if node.tag in _NUMBERS and len(node.value) > _MAX_NUMBER:
                raise ValueError
            value = super().construct_object(node, deep)
            if isinstance(value, int) and abs(value) > _MAX_INT:
                raise OverflowError
            if isinstance(value, str) and _NO_TEXT.search(value):
                raise ValueError
            return value
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
            # PyYAML converts numbers, dates and the like without a check
            kind, value = node.tag.rpartition(":")[2], shortened(str(node.value))
            raise yaml.MarkedYAMLError(
                problem=f"{value!r} is no valid {kind}; correct it, or quote it where it is a word",
                problem_mark=node.start_mark,
            ) from error


def _message(error: yaml.YAMLError) -> str:
    """The problem and its place, without the lines of the text that PyYAML quotes."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return shortened(" ".join(str(error).split()), _MAX_MESSAGE)
    words = [word for word in (error.context, error.problem) if word]
    mark = error.problem_mark or error.context_mark
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    return shortened(" ".join(", ".join(words).split()), _MAX_MESSAGE) + place


def shortened(text: str, length: int = 60) -> str:
    """The text for a message, on one line, cut where it is longer."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
