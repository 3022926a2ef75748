"""The layers of an engine, parsed from the inspectors of TensorRT 10.x and 11.x."""

import json

from demi.exporter.tensorrt.layers import Layer, layers_json, read_layers
from demi.plan import Decision, Precision, Reason, make_plan

PLAN = make_plan(
    "fp16",
    [
        Decision("/mm", "MatMul", Precision.HALF, Reason.SAFE),
        Decision("/add", "Add", Precision.HALF, Reason.SAFE),
        Decision("/pow", "Pow", Precision.SINGLE, Reason.EXPONENTIAL),
    ],
)
TEN = {
    "Layers": [
        {
            "Name": "/mm + /add",
            "LayerType": "gemm",
            "Inputs": [{"Name": "x", "Dimensions": [8, 4], "Format/Datatype": "Row major linear FP16 format"}],
            "Outputs": [{"Name": "y", "Dimensions": [8, 4], "Format/Datatype": "Half"}],
            "TacticName": "sm90_xmma_gemm",
            "Metadata": "[ONNX Layer: /mm]\x1e[ONNX Layer: /add]",
        }
    ],
    "Bindings": ["x", "y"],
}
ELEVEN = {
    "Layers": [
        {
            "Name": "fused",
            "LayerType": "kgen",
            "Inputs": [{"Name": "x", "DataType": "Half", "Format": "Linear"}],
            "Outputs": [{"Name": "y", "Datatype": "Float"}, {"Name": "z", "DataType": "Int64"}],
            "Metadata": "[ONNX Layer: /mm]\x1e[ONNX Layer: /pow]",
        }
    ],
    "I/O Tensors": [{"Name": "x"}],
}


def test_the_spelling_of_10():
    """Nodes, types, tactic and time of a fused layer, and what the plan says of its nodes."""
    (layer,) = read_layers(json.dumps(TEN), {"/mm + /add": 0.25}, PLAN)

    assert Layer("/mm + /add", "gemm", ("/mm", "/add"), ("fp16",), ("fp16",), "sm90_xmma_gemm", 0.25, "half") == layer


def test_the_spelling_of_11():
    """Types have another name there; a layer that holds nodes of both kinds is mixed."""
    (layer,) = read_layers(json.dumps(ELEVEN), {}, PLAN)

    assert (("fp16",), ("fp32", "int64"), "mixed", None) == (layer.reads, layer.writes, layer.planned, layer.mean_ms)


def test_names_alone():
    """At the lowest verbosity layers are plain strings."""
    assert [Layer("a", mean_ms=1.0), Layer("b")] == read_layers('{"Layers": ["a", "b"]}', {"a": 1.0})


def test_what_is_missing_is_empty():
    """No field is required."""
    assert [Layer("")] == read_layers('{"Layers": [{}]}', {}, PLAN)
    assert [] == read_layers("{}", {})


def test_types_of_another_kind_are_kept():
    """A type that is not known here is shown as TensorRT wrote it."""
    raw = {"Layers": [{"Name": "a", "Outputs": [{"Format/Datatype": "Row major FP8 format"}]}]}

    assert ("Row major FP8 format",) == read_layers(json.dumps(raw), {})[0].writes


def test_the_document():
    """`layers.json` sums up the times and counts what is written in which type."""
    layers = [*read_layers(json.dumps(TEN), {"/mm + /add": 0.25}), *read_layers(json.dumps(ELEVEN), {"fused": 0.5})]
    document = json.loads(layers_json(layers, "11.4.0", "H100", {"x": (8, 4)}))

    assert (0.75, {"fp16": 1, "fp32": 1, "int64": 1}) == (document["total_ms"], document["written_types"])
    assert ({"x": [8, 4]}, 2) == (document["timed_shapes"], len(document["layers"]))
