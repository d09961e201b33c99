"""The height and width of images: one number in a config for square ones, [height, width] for others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from diffpipe.errors import UserError

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

MAX_SIDE = 1 << 16
"""Pixels of the longest side."""


class Resolution(NamedTuple):
    """Height and width in pixels, or in places of latents.

    In a config and in JSON it is one number where both are equal, else [height, width].
    """

    height: int
    width: int

    in_words = "int ≥ 1 or [height, width]"  # its type in the reference of the config's keys

    @property
    def shorter(self) -> int:
        return min(self)

    @property
    def is_square(self) -> bool:
        return self.height == self.width

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def divisible_by(self, factor: int) -> bool:
        """Whether the factor divides height and width."""
        return self.height % factor == 0 and self.width % factor == 0

    def divided_by(self, factor: int) -> Resolution:
        """Height and width divided by the factor, rounded down."""
        return Resolution(self.height // factor, self.width // factor)

    def plain(self) -> int | list[int]:
        """The value in a config and in JSON."""
        return self.height if self.is_square else [*self]

    def __str__(self) -> str:
        """In messages and on the command line: 64, or 48x64 for a height of 48 and a width of 64."""
        return f"{self.height}" if self.is_square else f"{self.height}x{self.width}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema  # noqa: PLC0415 (commands start without pydantic)

        return core_schema.no_info_plain_validator_function(
            parse_resolution,
            serialization=core_schema.plain_serializer_function_ser_schema(cls.plain, when_used="json"),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        side = {"type": "integer", "minimum": 1, "maximum": MAX_SIDE}
        return {"anyOf": [side, {"type": "array", "items": side, "minItems": 2, "maxItems": 2}]}


def square(side: int) -> Resolution:
    """The resolution of square images."""
    return Resolution(side, side)


def parse_resolution(value: object) -> Resolution:
    """The resolution of a config's value: a side, or [height, width]. Raises UserError."""
    sides = [*value] if isinstance(value, (list, tuple)) else [value, value]
    integers = [side for side in map(_integer, sides) if side is not None and 1 <= side <= MAX_SIDE]
    if len(sides) != 2 or len(integers) != 2:
        raise UserError(
            f"give one side in pixels, such as 64, or [height, width], such as [48, 64], each from 1 to {MAX_SIDE}, "
            f"not {str(value)[:80]}"
        )
    return Resolution(*integers)


def _integer(side: object) -> int | None:
    """Also of a word or a float that is an integer, as other numbers of a config are read; None for anything else."""
    if (isinstance(side, str) and side.isdecimal()) or (isinstance(side, float) and side.is_integer()):
        side = int(side)
    return side if isinstance(side, int) and not isinstance(side, bool) else None
