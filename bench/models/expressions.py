"""Reads the small arithmetic of the architecture files, such as `2 * num_hidden_layers`.

Only whole numbers, the names of configuration fields, `+ - * //` and parentheses exist. The text
is parsed into a syntax tree and walked; it is never evaluated as Python.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from bench.errors import BenchError, check_known

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_LONGEST = 500


def evaluate(expression: str | int, fields: Mapping[str, Any], where: str = "expression") -> int:
    """The value of `expression`, names standing for the whole numbers in `fields`.

    Raises BenchError, naming `where`, on any other syntax, on an unknown name, on a field that is
    not a whole number, on a division by zero or one that leaves a remainder.
    """
    text = str(expression)
    if len(text) > _LONGEST:
        raise BenchError(f"{where}: an expression is at most {_LONGEST} characters long")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise BenchError(f"{where}: cannot read the expression {text!r}") from None
    return _walk(tree, fields, f"{where}: {text!r}")


def _walk(node: ast.expr, fields: Mapping[str, Any], where: str) -> int:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            check_known(f"configuration field in {where}:", name, fields)
            value = fields[name]
            if isinstance(value, bool) or not isinstance(value, int):
                raise BenchError(f"{where}: field {name} is {value!r}, not a whole number")
            return value
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _walk(left, fields, where), _walk(right, fields, where)
            if isinstance(op, ast.FloorDiv) and (b == 0 or a % b):
                raise BenchError(f"{where}: {a} // {b} is not a whole number")
            return _OPERATORS[type(op)](a, b)
    raise BenchError(f"{where}: only whole numbers, field names, + - * // and () may stand here")
