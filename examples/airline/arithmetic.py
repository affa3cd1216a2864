"""Arithmetic for the airline's `calculate` tool. Evaluates numbers and operators, never code; standard library alone.

It stands by itself because the tool runs inside the sandbox and the service keeps the same behaviour outside it.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

ALLOWED = frozenset("0123456789+-*/(). ")
MAX_CHARACTERS = 2000

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def calculate(expression: str) -> str:
    """Return the value of an arithmetic expression, rounded to cents ("255.0"), or a sentence that starts "Error: "."""
    if not ALLOWED.issuperset(expression):
        return "Error: invalid characters in expression"
    if len(expression) > MAX_CHARACTERS:
        return f"Error: expression is longer than {MAX_CHARACTERS} characters"
    try:
        tree = ast.parse(expression.strip(), filename="<string>", mode="eval")
        return str(round(_value(tree.body), 2))
    except ZeroDivisionError:
        return "Error: division by zero"
    except OverflowError:
        return "Error: result too large"
    except (RecursionError, MemoryError):
        return "Error: expression is nested too deeply"
    except (SyntaxError, ValueError) as error:
        return f"Error: {error}"


def _value(node: ast.expr) -> float:
    # Everything is a float from the start: 9**9**9 then overflows at once instead of growing for minutes.
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value = float(node.value)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        value = _UNARY[type(node.op)](_value(node.operand))
    elif isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        value = _BINARY[type(node.op)](_value(node.left), _value(node.right))
    else:
        raise ValueError("expression is not arithmetic")
    if isinstance(value, complex):
        raise ValueError("result is not a real number")
    if value - value != 0:
        raise OverflowError
    return value
