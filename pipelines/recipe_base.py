"""What the slots of a recipe are made of: strict groups, named choices, and values as text."""

from __future__ import annotations

import ast
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


class RecipeError(ValueError):
    """A recipe, or a change to one, that makes no sense. The message says what to do."""


class Strict(BaseModel):
    """A group of fields that knows no others and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Choice(BaseModel):
    """A named part with its options, flat: ``{"name": "sgd", "learning_rate": 0.1}``.

    The options are the keyword arguments of the function or class that the name stands for;
    :func:`epochal.pipelines.choices.check` holds them against its signature.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        value = parse_choice(value) if isinstance(value, str) else value
        if isinstance(value, Choice):
            return value
        if not isinstance(value, dict):
            raise ValueError("expected a name, or an object with `name` and options")
        # JSON has no tuples: a recipe equals itself after a round trip.
        return {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def __str__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.options.items())
        return f"{self.name}({arguments})" if arguments else self.name


def parse_choice(text: str) -> dict[str, Any]:
    """``"sgd(learning_rate=0.1)"`` -> ``{"name": "sgd", "learning_rate": 0.1}``; literals only."""
    name, parenthesis, rest = text.strip().partition("(")
    if not name or (parenthesis and not rest.endswith(")")):
        raise RecipeError(f"Cannot read {text!r}. Write a name, or name(option=value, ...).")
    try:
        call = ast.parse(f"_({rest[:-1]})" if parenthesis else "_()", mode="eval").body
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("options are given by name")
        options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise RecipeError(
            f"Cannot read the options of {text!r} ({error}). Write name(option=value, ...) with "
            "numbers, quoted strings, lists, True, False or None as values."
        ) from None
    return {"name": name.strip(), **options}


def literal(value: Any) -> Any:
    """Text from a command line as a Python literal where it is one: "0.1" -> 0.1, "relu" stays."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.capitalize() if value in ("true", "false", "none") else value)
    except (ValueError, SyntaxError):
        return value


def split_values(text: str) -> list[str]:
    """Splits at commas outside of brackets and quotes: "sgd(a=1, b=2),adam" -> two values."""
    parts, depth, quote, start = [], 0, "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and not depth:
            parts.append(text[start:place])
            start = place + 1
    return [*parts, text[start:]]
