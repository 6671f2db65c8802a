"""JSON schemas that nobody wrote by hand: as many as wanted, from a seed, of all the kinds that can be enforced.

A schema is an object of a few fields, with what schemas in use have: bounds, patterns, formats, enums, unions, tagged
alternatives, references (into themselves, too), tuples, maps, nesting. Strings mostly have a longest length, as where
somebody thought of the end of an answer; some have none. Knows JSON Schema; knows no engine and no grammar.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_NAMES = (
    *(
        "name",
        "title",
        "city",
        "email",
        "count",
        "price",
        "tags",
        "items",
        "status",
        "kind",
        "owner",
        "notes",
        "rating",
    ),
    *("start", "end", "unit", "color", "size", "weight", "active", "code", "ratio", "level", "path", "parts", "größe"),
)
_WORDS = ("red", "green", "blue", "small", "large", "open", "closed", "low", "high", "new", "old", "draft", "né", 'a"b')
_PATTERNS = (
    *(r"^[A-Z]{2}-[0-9]{4}$", r"^[a-z]{1,8}(-[a-z]{1,8}){0,2}$", r"^#[0-9a-f]{6}$", r"^(GET|POST|PUT) /[a-z/]{1,20}$"),
    *(
        r"^\+?[0-9]{6,12}$",
        r"^v[0-9]{1,3}\.[0-9]{1,3}(\.[0-9]{1,3})?$",
        r"^[^@ ]{1,10}@[a-z]{2,8}\.(com|org)$",
        r"^\d{3}-\w{2,5}$",
    ),
)
_FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email", "duration")
MAX_DEPTH = 3
RECURSIVE = 0.005  # of nested values: small models go on and on in them


def schemas(count: int, seed: int = 0) -> list[Schema]:
    """The first `count` of the seed's; each depends on the seed and its number alone."""
    return [_Maker(random.Random(f"{seed}:{number}")).whole() for number in range(count)]


class _Maker:
    """Makes one schema."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._definitions: dict[str, Schema] = {}

    def whole(self) -> Schema:
        schema = self._object(0)
        if self._definitions:
            schema["$defs"] = self._definitions
        return schema

    def _any(self, depth: int) -> Schema:
        chance = self._chance
        leaves: list[Callable[[], Schema]] = [self._string, self._integer, self._number, self._choice, self._boolean]
        if depth >= MAX_DEPTH or chance.random() < 0.55:
            return chance.choice(leaves)()
        nested: list[Callable[[int], Schema]] = [
            *(self._object, self._array, self._tuple, self._union, self._tagged),
            *(self._reference, self._both, self._nullable, lambda _: self._map()),
        ]
        if chance.random() < RECURSIVE:
            return self._recursive()
        return chance.choice(nested)(depth + 1)

    def _string(self) -> Schema:
        chance = self._chance
        kind = chance.random()
        if kind < 0.25:
            return {"type": "string", "pattern": chance.choice(_PATTERNS)}
        if kind < 0.4:
            return {"type": "string", "format": chance.choice(_FORMATS)}
        if kind < 0.42:
            return {"type": "string"}
        longest = chance.choice((4, 8, 16, 32, 64))
        bounds = {"maxLength": longest}
        if chance.random() < 0.4:
            bounds["minLength"] = chance.randint(1, longest)
        return {"type": "string", **bounds}

    def _integer(self) -> Schema:
        chance = self._chance
        low = chance.choice((-1000, -5, 0, 1, 7))
        high = low + chance.choice((0, 3, 10, 99, 12345))
        return {"type": "integer"} | chance.choice(
            (
                {"minimum": low, "maximum": high},
                {"exclusiveMinimum": low, "exclusiveMaximum": high + 2},
                {"minimum": 0, "maximum": 500, "multipleOf": chance.choice((2, 5, 10))},
            )
        )

    def _number(self) -> Schema:
        chance = self._chance
        low = chance.choice((-10.0, 0, 0.5, 2.25))
        bounds = ({"minimum": low, "maximum": low + 7.5}, {"exclusiveMinimum": low, "maximum": low + 100})
        quarters = {"multipleOf": 0.25} if chance.random() < 0.8 else {}  # without, as many digits as the model likes
        return {"type": "number"} | chance.choice(bounds) | quarters

    def _boolean(self) -> Schema:
        return self._chance.choice(({"type": "boolean"}, {"type": ["boolean", "null"]}, {"const": True}))

    def _choice(self) -> Schema:
        chance = self._chance
        if chance.random() < 0.2:
            return {"enum": chance.sample([1, 2.5, "one", None, True, "zwei", -3], 4)}
        words = chance.sample(_WORDS, chance.randint(1, 5))
        return {"enum": words} if chance.random() < 0.5 else {"type": "string", "enum": words}

    def _object(self, depth: int) -> Schema:
        chance = self._chance
        names = chance.sample(_NAMES, chance.randint(1, 5 if depth == 0 else 3))
        schema: Schema = {"type": "object", "properties": {name: self._any(depth) for name in names}}
        schema["required"] = [name for name in names if chance.random() < 0.75]
        schema["additionalProperties"] = False
        return schema

    def _array(self, depth: int) -> Schema:
        least = self._chance.randint(0, 2)
        return {
            "type": "array",
            "items": self._any(depth + 1),
            "minItems": least,
            "maxItems": least + self._chance.randint(1, 3),
        }

    def _tuple(self, depth: int) -> Schema:
        first = [self._any(depth + 1) for _ in range(self._chance.randint(1, 3))]
        return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}

    def _map(self) -> Schema:
        values = self._any(MAX_DEPTH)
        if self._chance.random() < 0.8:
            return {"type": "object", "patternProperties": {"^[a-z]{1,6}$": values}, "additionalProperties": False}
        return {"type": "object", "additionalProperties": values, "maxProperties": self._chance.randint(1, 3)}

    def _union(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth) for _ in range(self._chance.randint(2, 3))]}

    def _nullable(self, depth: int) -> Schema:
        return {"anyOf": [self._any(depth), {"type": "null"}]}

    def _tagged(self, depth: int) -> Schema:
        """Alternatives of which a field tells which it is."""
        alternatives = []
        for tag in self._chance.sample(_WORDS[:12], self._chance.randint(2, 3)):
            fields = {"type": {"const": tag}, "value": self._any(depth)}
            alternatives.append(
                {"type": "object", "properties": fields, "required": ["type", "value"], "additionalProperties": False}
            )
        return {"oneOf": alternatives}

    def _reference(self, depth: int) -> Schema:
        name = f"d{len(self._definitions)}"
        self._definitions[name] = {}  # its place, before those that it needs
        self._definitions[name] = self._any(depth)
        return {"$ref": f"#/$defs/{name}"}

    def _recursive(self) -> Schema:
        """A list in links, or a tree of few branches."""
        name = f"d{len(self._definitions)}"
        itself = {"$ref": f"#/$defs/{name}"}
        more: Schema = {"anyOf": [{"type": "null"}, itself]}
        if self._chance.random() < 0.5:
            more = {"type": "array", "items": itself, "maxItems": 2}
        self._definitions[name] = {}
        value = self._any(MAX_DEPTH)
        fields = {"value": value, "next": more}
        self._definitions[name] = {
            "type": "object",
            "properties": fields,
            "required": ["value", "next"],
            "additionalProperties": False,
        }
        return itself

    def _both(self, depth: int) -> Schema:
        first, second = self._chance.sample(_NAMES, 2)
        fields = {first: self._any(depth + 1), second: {"type": "string", "maxLength": 24}}
        return {
            "allOf": [
                {"type": "object", "properties": fields, "additionalProperties": False},
                {"properties": {second: {"minLength": 3}}, "required": [first, second]},
            ]
        }
