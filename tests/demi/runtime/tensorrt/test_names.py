"""Every name of TensorRT that Demi uses exists in 10.13, 10.16, 11.0 and 11.4.

`tests/data/tensorrt_names.json` holds the members of the classes and enumerations involved, read from the real
bindings. The code is read by its syntax tree, so that also the lines no test reaches are checked.
"""

from __future__ import annotations

import ast
import json

import pytest

from tests.paths import ROOT

FILES = (
    "demi/runtime/tensorrt/session.py",
    "demi/runtime/tensorrt/log.py",
    "demi/runtime/tensorrt/contexts.py",
    "exporter/tensorrt/builder.py",
    "exporter/tensorrt/progress.py",
)
TABLE: dict[str, dict[str, set[str]]] = {
    version: {name: set(members.split()) for name, members in classes.items()}
    for version, classes in json.loads((ROOT / "tests/data/tensorrt_names.json").read_text()).items()
}

VARIABLES = {
    # Names of TensorRT's objects in the code, as a variable or as an attribute of `self`.
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "parser": "OnnxParser",
    "measured": "ITimingCache",
    "tensor": "ITensor",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}
PARSER_ERROR = "each"
"""The variable name of a parser error, in `_parse` only."""


def names_used(source: str) -> set[tuple[str, str]]:
    """Return (class, member) of every use of TensorRT in a source file; the module's members have an empty class."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.update(_uses(node))
        if isinstance(node, ast.FunctionDef) and node.name == "_parse":
            inner = [each for each in ast.walk(node) if isinstance(each, ast.Attribute)]
            found.update(("ParserError", each.attr) for each in inner if _name(each.value) == PARSER_ERROR)
        if isinstance(node, ast.ClassDef):
            found.update(("", base.attr) for base in node.bases if isinstance(base, ast.Attribute))
    return found


def _uses(node: ast.Attribute) -> list[tuple[str, str]]:
    owner = _name(node.value)
    if owner == "trt":
        return [("", node.attr)]
    if isinstance(node.value, ast.Attribute) and _name(node.value.value) == "trt":
        return [(node.value.attr, node.attr)]
    return [(VARIABLES[owner], node.attr)] if owner in VARIABLES else []


def _name(node: ast.expr) -> str:
    """Return `engine` for the variable and for `self._engine`, `context` for `self.context` and `runner.context`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "runner"):
        return node.attr.removeprefix("_")
    return node.id if isinstance(node, ast.Name) else ""


def unknown(source: str, version: str) -> list[str]:
    """Return the members that a source file uses and this version of TensorRT does not have."""
    classes = TABLE[version]
    return sorted(
        f"{owner or 'trt'}.{name}"
        for owner, name in names_used(source)
        if not _exists(owner, name, classes) and not name.startswith("__")
    )


def _exists(owner: str, name: str, classes: dict[str, set[str]]) -> bool:
    if owner == "":
        return name in classes
    return name in classes.get(owner, set()) or owner not in classes


@pytest.mark.parametrize("version", TABLE)
@pytest.mark.parametrize("file", FILES)
def test_every_name_exists(file, version):
    """Every used name exists in every supported version, whichever is installed here."""
    assert [] == unknown((ROOT / file).read_text(), version)


def test_every_class_is_checked():
    """The table is used, and so are the important classes."""
    used = {use for file in FILES for use in names_used((ROOT / file).read_text())}

    assert len(used) > 50
    assert {owner for owner, _ in used} >= {*VARIABLES.values(), "ParserError", "BuilderFlag", "MemoryPoolType", ""}


@pytest.mark.parametrize(
    "line",
    [
        "config.set_flag(trt.BuilderFlag.FP16)",
        "builder.platform_has_fast_fp16",
        "self._engine.device_memory_size",
        "self.context.all_shape_inputs_specified",
        "network.add_optimization_profile()",
        "trt.IInt8Calibrator()",
        "class C(trt.IAlgorithmSelector): pass",
        "runner.context.set_shape()",
        "def _parse(): each.message()",
    ],
)
def test_removed_names_are_found(line):
    """Names that TensorRT 11 removed, or that never existed, are found."""
    assert [] != unknown(line, "11.4.0")


def test_versions_are_distinguished():
    """Each version has its own list."""
    assert [] == unknown("trt.BuilderFlag.FP16", "10.16.1")
    assert ["BuilderFlag.FP16"] == unknown("trt.BuilderFlag.FP16", "11.0.0")


def test_names_that_are_chosen_at_run_time():
    """Members that the code picks by a string exist as well."""
    from demi.engines.record import HARDWARE
    from demi.runtime.tensorrt.session import _MODES, DTYPES

    for classes in TABLE.values():
        assert set(DTYPES) <= classes["DataType"]
        assert set(_MODES) <= classes["TensorIOMode"]
        assert set(HARDWARE.values()) <= classes["HardwareCompatibilityLevel"]
