"""Kinds: `kind` selects a config class, of the package or of a plug-in, and an unknown one is named."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from diffpipe import plugins
from diffpipe.config import Config
from diffpipe.config.kinds import UNKNOWN, Kinds, Names, kinds_of, models_in


class Square(Config):
    """A shape."""

    kind: Literal["square", "box"] = "square"
    side: int = 1


class Circle(Config):
    """Another shape."""

    kind: Literal["circle"]
    radius: int = 1


class Star(Config):
    """A shape of a plug-in."""

    kind: Literal["star"]
    points: int = 5


class Drawing(Config):
    """A config with a shape of any kind, and one with a default kind."""

    shape: Annotated[
        Annotated[Square | Circle, Field(discriminator="kind")],
        Kinds("networks"),
    ] = Square()
    plain: Annotated[Square, Kinds("networks")] = Square()
    name: Annotated[str, Names("samplers", ("ddim", "heun"))] = "ddim"


@pytest.fixture
def star(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in that adds the network `star` and the sampler `own`."""
    parts: dict[tuple[str, str], Any] = {("networks", "star"): Star, ("samplers", "own"): object()}
    monkeypatch.setattr(plugins, "find", lambda group, name: parts.get((group, name)))
    monkeypatch.setattr(plugins, "names", lambda group: [name for place, name in parts if place == group])


def test_the_kind_selects_the_class() -> None:
    drawing = Drawing.model_validate({"shape": {"kind": "circle", "radius": 2}, "plain": {"kind": "box"}})
    assert drawing.shape == Circle(kind="circle", radius=2)
    assert drawing.plain == Square(kind="box")
    assert Drawing.model_validate({"plain": {"side": 3}}).plain == Square(side=3)


def test_the_class_whose_kind_has_a_default_is_taken_where_none_is_named() -> None:
    assert Drawing.model_validate({"shape": {"side": 3}}).shape == Square(side=3)
    with pytest.raises(ValidationError, match="radius"):
        Drawing.model_validate({"shape": {"radius": 3}})


@pytest.mark.usefixtures("star")
def test_a_plugins_kind_is_validated_by_its_own_class_and_dumped_whole() -> None:
    values = {"shape": {"kind": "star", "points": 6}, "plain": {"kind": "star"}, "name": "own"}
    drawing = Drawing.model_validate(values)
    assert drawing.shape == Star(kind="star", points=6)
    assert drawing.model_dump()["shape"] == values["shape"]
    assert Drawing.model_validate(drawing.model_dump()) == drawing
    with pytest.raises(ValidationError, match="points"):
        Drawing.model_validate({"shape": {"kind": "star", "points": "many"}})


@pytest.mark.usefixtures("star")
def test_an_unknown_kind_is_named_with_those_that_exist() -> None:
    for values, known in (
        ({"shape": {"kind": "cube"}}, "'square', 'box', 'circle', 'star'"),
        ({"plain": {"kind": "cube"}}, "'square', 'box', 'star'"),
        ({"name": "cube"}, "'ddim', 'heun', 'own'"),
    ):
        with pytest.raises(ValidationError) as caught:
            Drawing.model_validate(values)
        (error,) = caught.value.errors()
        assert (error["type"], error.get("ctx")) == (UNKNOWN, {"tag": "cube", "expected_tags": known})


def test_the_classes_in_an_annotation_and_their_kinds() -> None:
    assert models_in(Annotated[Square | Circle, "words"]) == [Square, Circle]
    assert models_in(Square | None) == [Square]
    assert models_in(int | str) == []
    assert (kinds_of(Square), kinds_of(Circle)) == (("square", "box"), ("circle",))
