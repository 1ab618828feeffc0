# SPDX-License-Identifier: Apache-2.0
"""As much of JSON Schema 2020-12 as the schemas in docs/ use; an unknown keyword is an error, not a pass."""

import re
from collections.abc import Iterator
from typing import Any

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
SILENT = {"$schema", "$id", "$defs", "title", "description"}
KNOWN = {"$ref", "type", "const", "enum", "anyOf", "required", "properties", "additionalProperties", "items"}
KNOWN |= {"pattern", "minimum", "maximum", "exclusiveMinimum"}


def faults(value: Any, schema: Any, *, root: Any = None, at: str = "") -> Iterator[str]:
    """Say where a value breaks a schema."""
    root = schema if root is None else root
    if unknown := schema.keys() - SILENT - KNOWN:
        raise ValueError(f"unknown keywords {unknown}; write them into this checker first")
    if "$ref" in schema:
        yield from faults(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root=root, at=at)
    if "type" in schema and not any(_is(value, name) for name in _listed(schema["type"])):
        yield f"{at}: {value!r} is no {schema['type']}"
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        yield f"{at}: {value!r} is not allowed"
    if "anyOf" in schema and all(list(faults(value, one, root=root, at=at)) for one in schema["anyOf"]):
        yield f"{at}: {value!r} fits none of the alternatives"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{at}: {value!r} doesn't match {schema['pattern']}"
    if _is(value, "number"):
        yield from _bounds(value, schema, at)
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from faults(one, schema.get("items", {}), root=root, at=f"{at}[{index}]")
    if isinstance(value, dict):
        yield from _members(value, schema, root, at)


def _members(value: dict[str, Any], schema: Any, root: Any, at: str) -> Iterator[str]:
    yield from (f"{at}: {name} is missing" for name in schema.get("required", []) if name not in value)
    others = schema.get("additionalProperties", True)
    for name, one in value.items():
        wanted = schema.get("properties", {}).get(name, others)
        if wanted is False:
            yield f"{at}: {name} is unknown"
        elif wanted is not True:
            yield from faults(one, wanted, root=root, at=f"{at}.{name}")


def _bounds(value: float, schema: Any, at: str) -> Iterator[str]:
    low, high, above = (schema.get(name) for name in ("minimum", "maximum", "exclusiveMinimum"))
    if (low is not None and value < low) or (high is not None and value > high):
        yield f"{at}: {value} is out of bounds"
    if above is not None and value <= above:
        yield f"{at}: {value} is not above {above}"


def _is(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _listed(found: Any) -> list[str]:
    return found if isinstance(found, list) else [found]
