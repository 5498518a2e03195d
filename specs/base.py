"""What every spec object has in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SpecModel(BaseModel):
    """A frozen, strict piece of a spec: unknown keys and silent type coercions are refused.

    A field's docstring is its description in the JSON Schema and in ``docs/spec-reference.md``.
    """

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )
