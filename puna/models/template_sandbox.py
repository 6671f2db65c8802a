"""The environment in which chat templates run: Jinja's immutable sandbox, with a bound on what a template can cost.

Jinja's sandbox keeps a template away from Python's internals; it does not keep it from looping for hours or from
building a string of a terabyte. Here every loop pass, call and output is charged to a `Budget`, every value that a
template builds is weighed, and what multiplies sizes in one operation ("x" * n, padding, replacing) is weighed before
it happens. Filters and methods are those on a list; what a chat template has no use for is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from puna.models.template_budget import MAX_INTEGER_BITS, Budget

BUDGET = "puna budget"  # the variable that carries the budget; a name that no template can spell

_STRING_METHODS = frozenset(
    [
        *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii"),
        *("isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "lower"),
        *("lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit"),
        *("rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
    ]
)
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, _STRING_METHODS),
    (bytes, frozenset()),
    (int, frozenset()),
    (float, frozenset()),
    (list, frozenset({"copy", "count", "index"})),
    (tuple, frozenset({"count", "index"})),
    (dict, frozenset({"copy", "get", "items", "keys", "values"})),
    (set, frozenset()),
    (frozenset, frozenset()),
    (range, frozenset({"count", "index"})),
)
_FILTERS = (
    *("abs", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape"),
    *("first", "float", "forceescape", "format", "groupby", "indent", "int", "items", "join"),
    *("last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr"),
    *("replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string"),
    *("sum", "title", "trim", "unique", "upper", "wordcount"),
)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Renderings pass their `Budget` as the variable named `BUDGET`."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_finalize, optimized=False, **options)
        self.filters = {name: _bounded_filter(name, FILTERS[name]) for name in _FILTERS}
        self.globals.pop("lipsum", None)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, methods in _METHODS:
            if isinstance(obj, kind):
                return attr in methods
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:  # noqa: ARG002
        """`str.format` can pad to any width; it is left out like other methods that are not on the list."""
        return

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.step()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            _check_growth(budget, obj.__name__, owner, args)
        result = super().call(context, obj, *args, **kwargs)
        budget.weigh(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = budget_of(context)
        budget.step()
        if operator == "*":
            _check_product(budget, left, right)
        elif operator == "%" and isinstance(left, str):
            _check_percent(budget, left, right)
        elif operator == "**":
            _check_power(left, right)
        result = super().call_binop(context, operator, left, right)
        budget.weigh(result)
        return result

    def tick(self, context: Context, characters: int) -> None:
        """Charged on every pass through a loop's or a macro's body, with the literal text in it."""
        budget_of(context).step(characters)

    def concatenated(self, context: Context, *parts: Any) -> str:
        budget = budget_of(context)
        texts = [_text(budget, part) for part in parts]
        budget.reserve(sum(map(len, texts)))
        return "".join(texts)

    def built(self, context: Context, value: Any) -> Any:
        """A list, tuple or dict that was written out in the template."""
        budget_of(context).weigh(value)
        return value


class GenerationBlocks(Extension):
    """`{% generation %}` marks what the assistant wrote, for training; for serving it means nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Charges(NodeTransformer):
    """Puts the charges into a parsed template."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _environment_call("concatenated", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _environment_call("built", [node], node.lineno)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _environment_call("built", [node], node.lineno)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _environment_call("built", [node], node.lineno) if node.ctx == "load" else node

    def _with_tick(self, node: nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block) -> nodes.Node:
        literals = sum(len(data.data) for part in node.body for data in _literals(part))
        self.generic_visit(node)
        tick = _environment_call("tick", [nodes.Const(literals)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node


def add_charges(tree: nodes.Template, environment: BoundedEnvironment) -> nodes.Template:
    """Rewrites a parsed template so that it pays for what it does."""
    _Charges().visit(tree)
    tree.set_environment(environment)
    return tree


def budget_of(context: Context) -> Budget:
    budget: Budget = context.parent[BUDGET]
    return budget


def _literals(node: nodes.Node) -> list[nodes.TemplateData]:
    found = [node] if isinstance(node, nodes.TemplateData) else []
    return found + list(node.find_all(nodes.TemplateData))


def _environment_call(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    everything = [nodes.ContextReference(), *arguments]
    return nodes.Call(nodes.EnvironmentAttribute(method), everything, [], None, None, lineno=line)


@pass_context
def _finalize(context: Context, value: Any) -> Any:
    budget_of(context).weigh(value)
    return value


def _text(budget: Budget, value: Any) -> str:
    if isinstance(value, str):
        return value
    budget.weigh(value)
    return str(value)


def _check_product(budget: Budget, left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, str | bytes | list | tuple) and isinstance(times, int):
            budget.reserve(len(value) * max(0, times))


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and right > 0 and left.bit_length() * right > MAX_INTEGER_BITS:
        raise SecurityError(f"the template computes an integer of more than {MAX_INTEGER_BITS} bits")


def _check_percent(budget: Budget, pattern: str, values: Any) -> None:
    if re.search(r"%[^%a-zA-Z]*(\d{4}|\*)", pattern):
        raise SecurityError("the template formats a value with a width of more than 999")
    budget.reserve(len(pattern) + pattern.count("%") * 1000)
    budget.weigh(values)


def _check_growth(budget: Budget, method: str, owner: str, args: Sequence[Any]) -> None:
    """Methods whose result can be larger than all that goes in."""
    if method == "replace" and len(args) > 1 and all(isinstance(text, str) for text in args[:2]):
        old, new = args[:2]
        budget.reserve(len(owner) + owner.count(old) * max(0, len(new) - len(old)))
    elif method == "join" and args:
        if not isinstance(args[0], list | tuple | str):
            raise SecurityError("join takes a list here; put `| list` behind what makes the items")
        budget.reserve(len(owner) * len(args[0]) + sum(len(item) for item in args[0] if isinstance(item, str)))


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passes = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = budget_of(context)
        budget.step()
        value = _prepared(budget, name, value, args, kwargs)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        extra = (first[passes],) if passes is not None else ()
        result = function(*extra, value, *args, **kwargs)
        budget.weigh(result)
        return result

    return bounded


def _prepared(budget: Budget, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Weighs beforehand what a filter will write out, and refuses arguments that multiply."""
    given = [*args, *kwargs.values()]
    if name in ("batch", "slice", "indent", "round") and any(isinstance(n, int) and n > 1000 for n in given):
        raise SecurityError(f"the filter {name} takes numbers up to 1000 here")
    if name == "indent":
        widths = [len(text) if isinstance(text, str) else 1000 for text in given]
        budget.reserve(len(str(value)) + str(value).count("\n") * max(widths, default=4))
    elif name == "replace":
        _check_growth(budget, "replace", _text(budget, value), [_text(budget, argument) for argument in given])
    elif name == "format":
        _check_percent(budget, str(value), list(given))
    elif name in ("join", "sum"):
        value = list(value) if not isinstance(value, str) else value
        budget.weigh(value)
        separator = max((len(text) for text in given if isinstance(text, str)), default=0)
        budget.reserve(separator * len(value))
    elif name in ("string", "escape", "e", "forceescape", "title", "upper", "lower", "trim", "capitalize", "wordcount"):
        budget.weigh(value)
    return value
