"""Whether a JSON schema has a value that ends, or needs itself in every value: a node whose `child` is required, say.

It looks at references inside the schema, required properties, needed items and alternatives; what it does not know of
it takes for fine. It compiles nothing.
"""

from __future__ import annotations

from typing import Any


def is_endless(schema: dict[str, Any]) -> bool:
    """The targets of references that end are found round by round, from those that need no other."""
    waiting = {ref: target for ref in _references(schema) if (target := _target(schema, ref)) is not None}
    ending: set[str] = set()
    while found := [ref for ref, target in waiting.items() if _ends(target, ending, set(waiting))]:
        ending.update(found)
        for ref in found:
            del waiting[ref]
    return not _ends(schema, ending, set(waiting))


def _ends(schema: Any, ending: set[str], open_refs: set[str]) -> bool:
    if not isinstance(schema, dict) or "enum" in schema or "const" in schema:
        return True
    ref = schema.get("$ref")
    if isinstance(ref, str) and ref in open_refs and ref not in ending:
        return False
    for name in ("anyOf", "oneOf"):
        ways = schema.get(name)
        if isinstance(ways, list) and ways and not any(_ends(way, ending, open_refs) for way in ways):
            return False
    every = schema.get("allOf")
    if isinstance(every, list) and not all(_ends(part, ending, open_refs) for part in every):
        return False
    properties, required = schema.get("properties"), schema.get("required")
    if schema.get("type") == "object" and isinstance(properties, dict) and isinstance(required, list):
        needed = [properties[name] for name in required if isinstance(name, str) and name in properties]
        return all(_ends(value, ending, open_refs) for value in needed)
    least = schema.get("minItems")
    if schema.get("type") == "array" and isinstance(least, int) and least > 0:
        return _ends(schema.get("items"), ending, open_refs)
    return True


def _references(schema: Any) -> set[str]:
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(ref := value.get("$ref"), str):
                found.add(ref)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found


def _target(schema: Any, ref: str) -> Any:
    """What a reference inside the schema names; None where there is nothing, or it leads elsewhere."""
    if not ref.startswith("#"):
        return None
    for part in ref[1:].split("/")[1:]:
        schema = schema.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(schema, dict) else None
    return schema
