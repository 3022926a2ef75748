"""Declared shapes: where a file contradicts its own nodes, the nodes are right."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.calibration.sessions import session_for
from demi.cli.main import main
from demi.exporter import convert
from demi.exporter.passes.declared_shapes import correct_shapes
from demi.exporter.passes.prepare import prepare

TEXT = """<ir_version: 8, opset_import: ["" : OPSET]>
m (float[n, 4] x) => (float[OUTPUT] y) <float[4, 3] w = {1.0, -1.0, 0.5, 0.25, 2.0, 1.5, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6}>
{ a = MatMul(x, w) b = Sigmoid(a) y = UNSQUEEZE }"""
X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def model(output: str, inner: dict[str, list[int | str]] | None = None, opset: int = 12) -> onnx.ModelProto:
    """A model that answers [n, 1, 3], whatever it says of its shapes."""
    text = TEXT.replace("OPSET", str(opset)).replace("OUTPUT", output)
    made = onnx.parser.parse_model(text.replace("UNSQUEEZE", "Unsqueeze <axes = [1]> (b)"))
    made.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, 1, dims) for name, dims in (inner or {}).items()
    )
    return made


def corrected(made: onnx.ModelProto) -> tuple[ir.Model, tuple[str, ...]]:
    """The prepared model after its correction, and what was said."""
    prepared = prepare(ir.from_proto(made))
    with session_for(prepared) as session:
        references = [session.run({"x": X})]
    return prepared, correct_shapes(prepared, references)


def shapes(prepared: ir.Model) -> dict[str | None, list[int | str | None]]:
    """The declared shapes of what the nodes make."""
    made = (value for node in prepared.graph for value in node.outputs)
    return {value.name: [d if isinstance(d, int) else d.value for d in value.shape] for value in made}


WRONG = [
    ("n, 3", {}),
    ("n, 1, 7", {}),
    ("1, 1, 3", {}),
    ("n, 1, 3", {"a": ["n", 2, 3]}),
    ("n, 1, 3", {"a": ["n", 7]}),
    ("n, 3", {"b": ["n", 3, 3]}),
]
NAMES = ["rank", "size", "a free axis", "inner rank", "inner size", "both"]


@pytest.mark.parametrize(("output", "inner"), WRONG, ids=NAMES)
def test_the_nodes_are_right(output, inner):
    """For any declared shapes, the nodes' own shapes are used, the free axis included."""
    prepared, words = corrected(model(output, inner))

    assert {"a": ["n", 3], "b": ["n", 3], "y": ["n", 1, 3]} == shapes(prepared)
    assert words[0].startswith("the file's own shapes are wrong, and were corrected: ")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("output", "inner"), WRONG, ids=NAMES)
def test_convert(output, inner, precision):
    """The converted model passes the checker, in its opset or in a newer one."""
    converted = convert(model(output, inner), [{"x": X}], precision=precision, force_half="*")

    onnx.checker.check_model(converted.model, full_check=True)
    assert [0, 1, 3] == [dim.dim_value for dim in converted.model.graph.output[0].type.tensor_type.shape.dim]


def test_right_declarations_stay():
    """There are no warnings, and names of axes are kept, even where inference is more precise than the file."""
    prepared, words = corrected(model("rows, 1, 3", {"a": ["rows", 3]}))

    assert () == words
    assert ["rows", 1, 3] == shapes(prepared)["y"]


def test_what_no_inference_tells():
    """Behind an operator without a schema the answers say the rank, and the axes are free."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
    m (float[n, 4] x) => (float[n, 2] y) { y = com.microsoft.Gelu(x) }"""
    prepared, words = corrected(onnx.parser.parse_model(text))

    assert ["y_axis0", "y_axis1"] == shapes(prepared)["y"]
    assert "`y` is declared as [n, 2] and is [y_axis0, y_axis1]" in words[0]


def test_many_are_not_all_named():
    """A warning names three."""
    _, words = corrected(model("n, 3", {"a": ["n", 2, 3], "b": ["n", 9]}))
    text = TEXT.replace("OPSET", "12").replace("OUTPUT", "n, 9")
    chain = text.replace("UNSQUEEZE", "Neg(c)").replace("b = Sigmoid(a)", "b = Sigmoid(a) c = Neg(b)")
    many = onnx.parser.parse_model(chain)
    many.graph.value_info.extend(onnx.helper.make_tensor_value_info(name, 1, ["n", 9]) for name in "abc")

    assert 2 <= words[0].count("is declared as") <= 3
    assert "and 1 other tensors likewise" in corrected(many)[1][0]


def test_the_command_warns(tmp_path, monkeypatch, capsys):
    """`demi export` warns of the correction, and the bundle has the real shape."""
    monkeypatch.chdir(tmp_path)
    onnx.save(model("n, 3"), "m.onnx")
    np.savez("s.npz", x=X)

    code = main(["export", "--bf16", "m.onnx", "--sample", "s.npz", "--no-report"])
    err = capsys.readouterr().err

    assert 0 == code
    assert (
        "warning: the file's own shapes are wrong, and were corrected: `y` is declared as [n, 3] and is [n, 1, 3]"
        in err
    )
    assert 0 == main(["check", "models/m"])
