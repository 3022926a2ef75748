"""Check the size expressions of a torch.export program: PyTorch evaluates them, so only arithmetic is allowed."""

from __future__ import annotations

import ast
import re

LONGEST = 20_000
"""Most characters of an expression; those that torch.export writes have tens, rarely hundreds."""

LARGEST_POWER = 64
"""Largest exponent: powers are evaluated at once, and towers of them would fill the memory. Sizes need 2 or 3."""

NAME, NUMBER, INPUT = re.compile(r"[A-Za-z_]\w*"), re.compile(r"-?[\d.]{1,40}(e[+-]?\d{1,3})?"), re.compile(r"[\w.]+")

FUNCTIONS = frozenset(
    "Integer Float Rational Add Mul Pow Mod Max Min Abs Not And Or Xor Eq Ne Lt Le Gt Ge ITE Piecewise ExprCondPair "
    "Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan Tuple floor ceiling "
    "FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow "
    "FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal ToFloat "
    "Identity OpaqueUnaryFn_sqrt OpaqueUnaryFn_log OpaqueUnaryFn_exp sqrt log exp abs max min int float bool round len".split()
)
"""Functions that an expression may call, besides `Symbol` and methods of SIZES."""

MODULES = frozenset({"math", "torch"})
"""Modules whose functions a guard may call, by the names in MODULE_FUNCTIONS."""

MODULE_FUNCTIONS = frozenset(
    "floor ceil trunc sqrt log exp pow fmod isinf isnan sym_int sym_float sym_not sym_max sym_min sym_sqrt sym_ite".split()
)

SIZES = frozenset({"size", "stride", "storage_offset", "dim", "numel", "is_integer"})
"""Methods of a tensor that a guard may call."""

_PLAIN = (
    ast.Expression, ast.Name, ast.UnaryOp, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple, ast.Load,
    ast.unaryop, ast.operator, ast.boolop, ast.cmpop,
)  # fmt: skip


def unsafe_part(text: str) -> str | None:
    """Return what in an expression is more than arithmetic on sizes; None where nothing is."""
    if len(text) > LONGEST:
        return f"an expression of {len(text):,} characters (at most {LONGEST:,})"
    try:
        tree = ast.parse(text.strip(), mode="eval")
        nodes = list(ast.walk(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "an expression that is not arithmetic"
    strings = {id(node) for parent in nodes for node in _named(parent)}
    for node in nodes:
        if not _is_arithmetic(node) and id(node) not in strings:
            return "an expression that is more than arithmetic"
    return None


def _named(node: ast.AST) -> list[ast.AST]:
    """Return the strings a node may hold: `s0` in `Symbol('s0')`, `1.5` in `Float('1.5')`, `x` in `L['x']`."""
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=words):
            return [word for word in words if _is_text(word, NAME)]
        case ast.Call(func=ast.Name(id="Float"), args=words):
            return [word for word in words if _is_text(word, NUMBER)]
        case ast.Subscript(slice=word):
            return [word] if _is_text(word, INPUT) else []
        case _:
            return []


def _is_text(node: ast.AST, pattern: re.Pattern[str]) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(pattern.fullmatch(node.value))


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Constant():
            return isinstance(node.value, int | float | None)
        case ast.Attribute():
            return not node.attr.startswith("_")
        case ast.Subscript():
            return isinstance(node.slice, ast.Constant)
        case ast.keyword():
            return node.arg is not None and isinstance(node.value, ast.Constant)
        case ast.Call():
            return _may_call(node.func) and _is_small_power(node.func, node.args)
        case ast.BinOp(op=ast.Pow()):
            return _is_small(node.right)
        case _:
            return isinstance(node, _PLAIN)


def _may_call(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in FUNCTIONS or function.id == "Symbol"
    if not isinstance(function, ast.Attribute):
        return False
    if isinstance(function.value, ast.Name) and function.value.id in MODULES:
        return function.attr in MODULE_FUNCTIONS
    return function.attr in SIZES


def _is_small_power(function: ast.expr, arguments: list[ast.expr]) -> bool:
    powers = {"Pow", "PowByNatural", "FloatPow", "LShift", "pow"}
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    return name not in powers or (len(arguments) >= 2 and _is_small(arguments[1]))


def _is_small(node: ast.expr) -> bool:
    """Return whether an exponent is a small number: `2`, `-1`, `Integer(2)` or `Rational(1, 2)`."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return abs(value) <= LARGEST_POWER
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _is_small(operand)
        case ast.Call(func=ast.Name(id="Integer" | "Rational" | "Float"), args=args):
            return bool(args) and all(map(_is_small, args))
        case _:
            return False
