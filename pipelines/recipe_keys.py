"""The dotted keys of a recipe: which there are, and what to say of those that are wrong."""

from __future__ import annotations

import difflib
from typing import Literal, get_origin

from pydantic import BaseModel, ValidationError

from .recipe_base import Choice


def group_of(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The class of a field that is a group of fields or a choice; None of others."""
    if field not in model.model_fields:
        return None
    annotation = model.model_fields[field].annotation
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def is_optional(model: type[BaseModel], field: str) -> bool:
    """Whether a field can be None."""
    return type(None) in getattr(model.model_fields[field].annotation, "__args__", ())


def keys_of(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[str, str]]:
    """Every dotted key -> (type, docstring)."""
    found = {}
    for name, field in model.model_fields.items():
        group = group_of(model, name)
        kind = "choice" if group is Choice else _type_name(field)
        if group is None or group is Choice or is_optional(model, name):
            found[prefix + name] = (kind, " ".join((field.description or "").split()))
        if group not in (None, Choice):
            found |= keys_of(group, f"{prefix}{name}.")
    return found


def _type_name(field) -> str:
    def words(annotation) -> str:
        arguments = [a for a in getattr(annotation, "__args__", ()) if a is not type(None)]
        if getattr(annotation, "__metadata__", None):  # Annotated
            return words(annotation.__origin__)
        if get_origin(annotation) is Literal:
            return "|".join(arguments)
        if get_origin(annotation) is tuple:
            return "names, separated by commas"
        if arguments:  # X | None
            return " or ".join([*map(words, arguments), "none"])
        return annotation.__name__

    return words(field.annotation)


_ALL_KEYS = "`epochal show RECIPE --keys` lists all keys."


def unknown_key(model: type[BaseModel], key: str) -> str:
    """The message for a key that there is not; names the nearest that there is."""
    known = list(keys_of(model))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:  # `--epochs` for `--algorithm.epochs`
        near = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]][:1]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"A recipe has no key {key!r}.{hint} {_ALL_KEYS}"


def explain(model: type[BaseModel], error: ValidationError, name: str) -> str:
    """What pydantic found wrong with the recipe of that name, each field by its dotted key."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "recipe"
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            lines.append(unknown_key(model, where).removesuffix(_ALL_KEYS).strip())
        elif item["type"] == "missing":
            lines.append(f"`{where}` is missing.")
        else:
            given = item.get("input")
            shown = "" if isinstance(given, dict) else f" (given: {given!r})"
            lines.append(f"`{where}`: {what}{shown}.")
    if any(item["type"] == "extra_forbidden" for item in error.errors()):
        lines.append(_ALL_KEYS)
    return f"Recipe {name!r} is not valid. " + " ".join(lines)
