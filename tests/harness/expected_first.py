"""The form of an assertion in this repository: `assert expected == actual`, the known value on the left."""

from __future__ import annotations

import ast

OF_KNOWN_VALUES = {"approx", "frozenset", "set"}  # calls that only give a form to what they are given


def wrong_way_round(source: str) -> list[int]:
    """Return the lines of assertions `actual == expected`, whose known value stands on the right.

    Known are literals, constants (by their capital letters) and what is made of these alone. Only the comparison that
    is asserted counts, also within `and`, `or` and `not`; not one inside a call or a comprehension.
    """
    asserted = [node.test for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    return sorted(
        found.lineno
        for test in asserted
        for found in _comparisons(test)
        if _is_known(found.comparators[0]) and not _is_known(found.left)
    )


def _comparisons(test: ast.expr) -> list[ast.Compare]:
    match test:
        case ast.Compare(ops=[ast.Eq()]):
            return [test]
        case ast.BoolOp(values=parts):
            return [found for part in parts for found in _comparisons(part)]
        case ast.UnaryOp(operand=part):
            return _comparisons(part)
    return []


def _is_known(value: ast.expr | None) -> bool:
    match value:
        case ast.Constant():
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.isupper()
        case ast.UnaryOp(operand=part):
            return _is_known(part)
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return all(map(_is_known, parts))
        case ast.Dict(keys=names, values=parts):
            return all(map(_is_known, [*names, *parts]))
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=parts):
            return name in OF_KNOWN_VALUES and all(map(_is_known, parts))
    return False
