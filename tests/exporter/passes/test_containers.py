"""Sequences, optionals and maps at a model's border, as the tensors that are in them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.cli.main import main
from demi.errors import SourceError
from demi.exporter import convert, convert_file
from demi.exporter.passes.containers import expose_tensors, read_proto, require_tensors
from demi.exporter.passes.prepare import prepare
from tests.models import check, run

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'
X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
W = "float[6, 6] w = {" + ", ".join(f"{v:.2f}" for v in np.random.default_rng(1).standard_normal(36)) + "}"
SPLIT = f"m (float[n, 6] x) => (seq(float[n, k]) y) <{W}, int64 four = {{4}}> {{ z = MatMul(x, w) y = SplitToSequence <axis = 1> (z, four) }}"
SINGLES = f"m (float[n, 6] x) => (seq(float[n]) y) <{W}> {{ z = MatMul(x, w) y = SplitToSequence <axis = 1, keepdims = 0> (z) }}"
CONSTRUCTED = f"m (float[n, 6] x) => (seq(float[n, 6]) y) <{W}> {{ z = MatMul(x, w) a = Relu(z) s = SequenceConstruct(z, a) y = Identity(s) }}"
ROWS = f"m (float[n, 6] x) => (seq(float[6]) y) <{W}> {{ z = MatMul(x, w) y = SplitToSequence <axis = 0, keepdims = 0> (z) }}"
IN = f"m (float[n, 6] x, seq(float[n, 6]) s) => (float[n, 6] y) <{W}> {{ z = MatMul(x, w) c = ConcatFromSequence <axis = 0> (s) y = Add(z, c) }}"


def proto(text: str) -> onnx.ModelProto:
    """A model in text."""
    return onnx.parser.parse_model(HEADER + text)


def product(x: np.ndarray) -> np.ndarray:
    """Compute the tensor that the models above put into a container."""
    return x @ np.array([float(v) for v in W.split("{")[1].strip("}").split(",")], np.float32).reshape(6, 6)


def zipped() -> onnx.ModelProto:
    """A classifier as sklearn's converter writes it: its probabilities are a sequence of maps."""
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    maps = onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, onnx.helper.make_tensor_type_proto(1, []))
    nodes = [
        node("MatMul", ["x", "w"], ["s"]),
        node("Softmax", ["s"], ["p"]),
        node("ArgMax", ["s"], ["label"], axis=1, keepdims=0),
        node("ZipMap", ["p"], ["prob"], domain="ai.onnx.ml", classlabels_int64s=[3, 5, 7]),
    ]
    prob = onnx.ValueInfoProto(name="prob", type=onnx.helper.make_sequence_type_proto(maps))
    w = onnx.numpy_helper.from_array(np.random.default_rng(2).standard_normal((6, 3)).astype(np.float32), "w")
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, [None, 6])], [info("label", 7, [None]), prob], [w])
    opsets = [onnx.helper.make_opsetid("", 15), onnx.helper.make_opsetid("ai.onnx.ml", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def optional(there: bool) -> onnx.ModelProto:
    """A bias that may come in, or an answer that may be missing."""
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info

    def maybe(name):
        kind = onnx.helper.make_optional_type_proto(onnx.helper.make_tensor_type_proto(1, [6]))
        return onnx.ValueInfoProto(name=name, type=kind)

    taken = onnx.helper.make_graph([node("OptionalGetElement", ["bias"], ["t"])], "t", [], [info("t", 1, None)])
    zeros = onnx.numpy_helper.from_array(np.zeros(6, np.float32))
    none = onnx.helper.make_graph([node("Constant", [], ["e"], value=zeros)], "e", [], [info("e", 1, None)])
    w = onnx.numpy_helper.from_array(np.eye(6, dtype=np.float32), "w")
    nodes = [
        node("OptionalHasElement", ["bias"], ["has"]),
        node("If", ["has"], ["b"], then_branch=taken, else_branch=none),
        node("MatMul", ["x", "w"], ["z"]),
        node("Add", ["z", "b"], ["y"]),
    ]
    outputs = [info("y", 1, ["n", 6])]
    if there:
        nodes, outputs = (
            [*nodes, node("ReduceSum", ["y"], ["total"], keepdims=0), node("Optional", ["total"], ["o"])],
            [
                *outputs,
                onnx.ValueInfoProto(
                    name="o", type=onnx.helper.make_optional_type_proto(onnx.helper.make_tensor_type_proto(1, []))
                ),
            ],
        )
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, ["n", 6]), maybe("bias")], outputs, [w])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)


class TestSequences:
    """Sequences that go out."""

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (SPLIT, [np.s_[:, :4], np.s_[:, 4:]]),
            (SINGLES, [np.s_[:, i] for i in range(6)]),
        ],
        ids=["pieces of four", "single columns"],
    )
    def test_pieces_of_known_number(self, text, expected):
        """A split axis of a known size gives so many tensors, under the sequence's name and their places."""
        model = prepare(expose_tensors(ir.from_proto(proto(text))).model)
        got = run(model, {"x": X})

        check(model)
        assert [f"y_{index}" for index in range(len(expected))] == list(got)
        for index, part in enumerate(expected):
            np.testing.assert_allclose(product(X)[part], got[f"y_{index}"], rtol=1e-5)

    def test_constructed(self):
        """A sequence that is put together is its parts."""
        got = run(prepare(expose_tensors(ir.from_proto(proto(CONSTRUCTED))).model), {"x": X})

        np.testing.assert_allclose(product(X), got["y_0"], rtol=1e-5)
        np.testing.assert_allclose(np.maximum(product(X), 0), got["y_1"], rtol=1e-5)

    @pytest.mark.parametrize("rows", [4, 1])
    def test_any_length(self, rows):
        """Elements of unknown number are concatenated, with a second tensor of their shapes."""
        exposed = expose_tensors(ir.from_proto(proto(ROWS)))
        model = prepare(exposed.model)
        got = run(model, {"x": X[:rows]})

        check(model)
        np.testing.assert_allclose(product(X[:rows]).ravel(), got["y_values"], rtol=1e-5)
        assert [[6]] * rows == got["y_shapes"].tolist()
        assert "sequence of any length" in exposed.notes[0]

    @pytest.mark.parametrize("text", [SPLIT, CONSTRUCTED, ROWS])
    @pytest.mark.parametrize("precision", ["fp16", "bf16"])
    def test_convert(self, text, precision):
        """Half is measured element by element, and the product computes in it."""
        converted = convert(proto(text), [{"x": X}], precision=precision, force_half="MatMul")

        onnx.checker.check_model(converted.model, full_check=True)
        assert converted.comparison
        assert 0 < converted.comparison.worst.relative_l2 < 0.01

    def test_one_that_comes_in(self):
        """It is refused with a hint."""
        with pytest.raises(SourceError, match="input `s` is a sequence") as caught:
            convert(proto(IN), [{"x": X}])

        assert "return the tensors in it" in caught.value.hint


class TestMaps:
    """The outputs of sklearn's classifiers."""

    def test_the_table(self, tmp_path):
        """The probabilities as they were before they became maps, a column for each class."""
        exposed = read_proto(zipped())
        model = prepare(exposed.model)
        got = run(model, {"x": X})

        check(model)
        assert ["label", "prob"] == list(got)
        assert (4, 3) == got["prob"].shape
        np.testing.assert_allclose(np.ones(4), got["prob"].sum(axis=1), rtol=1e-5)
        assert "a column for each of the classes 3, 5, 7" in exposed.notes[0]

    def test_every_road(self, tmp_path):
        """The Python API with and without running, and files of any size."""
        onnx.save(zipped(), tmp_path / "m.onnx")
        convert_file(tmp_path / "m.onnx", tmp_path / "half.onnx")

        for model in (
            convert(zipped(), [{"x": X}]).model,
            convert(zipped(), verify=False).model,
            onnx.load(tmp_path / "half.onnx"),
        ):
            onnx.checker.check_model(model, full_check=True)
            assert ["label", "prob"] == [value.name for value in model.graph.output]


class TestOptionals:
    """Optional inputs and outputs."""

    def test_an_input_that_samples_have(self):
        """It becomes a required tensor."""
        model = prepare(expose_tensors(ir.from_proto(optional(there=False)), {"x", "bias"}).model)
        check(model)

        np.testing.assert_allclose(X + 2, run(model, {"x": X, "bias": np.full(6, 2, np.float32)})["y"])

    def test_an_input_that_samples_lack(self):
        """It is removed, and the model computes as without it."""
        exposed = expose_tensors(ir.from_proto(optional(there=False)), {"x"})
        model = prepare(exposed.model)
        check(model)

        assert ["x"] == [value.name for value in model.graph.inputs]
        np.testing.assert_allclose(X, run(model, {"x": X})["y"])
        assert "the bundle leaves it out" in exposed.notes[0]

    def test_an_output(self):
        """An optional output that is always present becomes a tensor."""
        model = prepare(expose_tensors(ir.from_proto(optional(there=True))).model)
        check(model)

        np.testing.assert_allclose(X.sum(), run(model, {"x": X, "bias": np.zeros(6, np.float32)})["o"], rtol=1e-4)


def test_models_of_tensors_are_handed_back():
    """Nothing is copied for nothing."""
    model = ir.from_proto(
        proto(
            "m (float[n] x) => (float[n] y) { s = SequenceConstruct(x) i = Constant <value = int64 {0}> () y = SequenceAt(s, i) }"
        )
    )

    assert model is expose_tensors(model).model
    require_tensors(model)


def test_the_commands(tmp_path, monkeypatch, capsys):
    """Exported with notes, and checked and explained like any other bundle."""
    monkeypatch.chdir(tmp_path)
    np.savez("s.npz", x=X)
    for name, model in (("zip", zipped()), ("rows", proto(ROWS))):
        onnx.save(model, f"{name}.onnx")
        assert 0 == main(["export", "--fp16", f"{name}.onnx", "--sample", "s.npz", "--no-report"])
        assert 0 == main(["check", f"models/{name}"])
        assert 0 == main(["explain", f"models/{name}"])
    err = capsys.readouterr().err

    assert "note: `prob` is a sequence of maps in the source" in err
    assert "note: `y` is a sequence of any length in the source" in err
