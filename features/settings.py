"""The base of every configuration section.

A section is a frozen, keyword-only class beside the code that reads it. The docstring under a field is its help
text. Unknown keys are refused, so that a misspelt one cannot pass for a default.
"""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen, keyword-only, typed; refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
