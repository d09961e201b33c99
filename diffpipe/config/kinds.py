"""Fields of a config whose kinds plug-ins may add to: `Annotated[UNetConfig, Kinds("networks")]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from diffpipe import plugins


@dataclass(frozen=True)
class Kinds:
    """Lets a section be of a kind that a plug-in has: `kind` selects its config class.

    The annotated type is a config class, or a union of some. The one whose `kind` has a default is taken where the
    section names none.
    """

    group: plugins.Group

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        known = models_in(source)
        defaults = [kind.default for kind in (model.model_fields["kind"] for model in known) if not kind.is_required()]
        assert len(defaults) <= 1, f"two of {known} are the default"

        def validate(value: Any, inner: Callable[[Any], Any]) -> Any:
            if isinstance(value, BaseModel):
                other = not isinstance(value, tuple(known)) and isinstance(value, tuple(self.models()))
                return value if other else inner(value)
            if isinstance(value, dict) and defaults:
                value = {"kind": defaults[0], **value}
            if isinstance(value, dict) and "kind" in value:
                kind = value["kind"]
                if kind not in [tag for model in known for tag in kinds_of(model)]:
                    model = self.find(kind, known)
                    union: Any = Annotated[Union[(*known, model)], Field(discriminator="kind")]
                    return TypeAdapter(union).validate_python(value)
            return inner(value)

        return core_schema.no_info_wrap_validator_function(
            validate,
            handler(source),
            # A plug-in's class is none of the annotated ones: what is dumped is what the value has.
            serialization=core_schema.wrap_serializer_function_ser_schema(
                lambda value, dump: dump(value), schema=core_schema.any_schema()
            ),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The built-in classes, and those of the plug-ins that are known now."""
        union = handler(schema)
        union["oneOf"] += [handler(model.__pydantic_core_schema__) for model in self.models()]
        return union

    def find(self, kind: Any, known: list[type[BaseModel]]) -> type[BaseModel]:
        """The plug-in's config class of this kind."""
        model = plugins.find(self.group, kind) if isinstance(kind, str) else None
        if model is None:
            tags = [tag for known_model in known for tag in kinds_of(known_model)]
            raise unknown(kind, [*tags, *plugins.names(self.group)])
        is_config = isinstance(model, type) and issubclass(model, BaseModel)
        if not is_config or "kind" not in model.model_fields or kind not in kinds_of(model):
            raise ValueError(f"the plug-in's {kind} must be a config class with the field `kind: Literal[{kind!r}]`")
        return model

    def models(self) -> list[type[BaseModel]]:
        """The config classes of all plug-ins."""
        found = [plugins.find(self.group, name) for name in plugins.names(self.group)]
        return [model for model in found if model is not None]


@dataclass(frozen=True)
class Names:
    """Restricts a string to known names and those that plug-ins have."""

    group: plugins.Group
    known: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(name: str) -> str:
            if name not in self.known and name not in plugins.names(self.group):
                raise unknown(name, self.all())
            return name

        return core_schema.no_info_after_validator_function(validate, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": self.all()}

    def all(self) -> list[str]:
        """The known names, and those of plug-ins."""
        return [*self.known, *plugins.names(self.group)]


def default_kind(kind: str) -> BeforeValidator:
    """Annotates a union that `kind` tells apart: a section that names no kind is of this one."""
    return BeforeValidator(lambda value: {"kind": kind, **value} if isinstance(value, dict) else value)


UNKNOWN = "unknown_kind"


def unknown(kind: Any, known: list[str]) -> PydanticCustomError:
    """The complaint about a kind that nothing here has."""
    expected = ", ".join(map(repr, known))
    return PydanticCustomError(UNKNOWN, "unknown kind", {"tag": kind, "expected_tags": expected})


def kinds_of(model: type[BaseModel]) -> tuple[Any, ...]:
    """The values of `kind` that select this class among others."""
    return get_args(model.model_fields["kind"].annotation)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The config classes in a type annotation, members of unions included."""
    if get_origin(annotation) is Annotated:
        return models_in(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [model for member in get_args(annotation) for model in models_in(member)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
