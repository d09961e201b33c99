"""The base of every config class: unknown keys, booleans for numbers and later mutation are errors."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Config(BaseModel):
    """A frozen pydantic model that forbids unknown keys. Each component declares its own, beside its code."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    renamed: ClassVar[dict[str, str]] = {}
    """Keys of earlier versions and what they are called now: a config with an old key is refused with the new name."""

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, data: Any) -> Any:
        # pydantic's lax mode reads `true` as 1, so `train.steps: true` would train one step; a word it refuses. A
        # validator of the fields themselves would bar `kind` from telling the members of a union apart.
        if not isinstance(data, dict):
            return data
        numbers = {name for name, field in cls.model_fields.items() if field.annotation in (int, float)}
        return {k: str(v).lower() if k in numbers and isinstance(v, bool) else v for k, v in data.items()}
