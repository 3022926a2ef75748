"""The emulator compared with PyTorch's own half precision on trained models."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.fx.experimental.optimization import fuse

from demi.accuracy.compare import relative_l2
from demi.bundles.bundle import open_bundle
from demi.calibration.emulation.widen import rounding_casts
from demi.calibration.samples import Samples
from demi.exporter.conversion import emulate
from demi.exporter.operators.schemas import half_operands, opset_version, touches_float
from demi.exporter.passes.lower import apply_plan
from demi.exporter.passes.prepare import prepare
from demi.plan import Decision, Precision, Reason, make_plan

pytestmark = pytest.mark.slow


def all_half(model: ir.Model) -> ir.Model:
    """Return the model with every possible node in half."""
    nodes = [
        node
        for node in model.graph.all_nodes()
        if touches_float(node) and half_operands(node, opset_version(node, model), ir.DataType.FLOAT16)
    ]
    plan = make_plan("fp16", [Decision(n.name or "", n.op_type, Precision.HALF, Reason.SAFE) for n in nodes])
    return apply_plan(model, plan).model


def test_digits_in_half(tour):
    """The digit classifier's error under the emulator is within a quarter of `model.half()`'s.

    Batch normalization is folded into the convolutions on both sides, as the export does: PyTorch would round once more
    behind each of them.
    """
    from examples.digits import build

    bundle = open_bundle(tour.made("models/digits"))
    module = build()
    module.load_state_dict(torch.load(tour.made("work/digits/model.pt"), weights_only=True))
    module.eval()
    (name,) = bundle.golden().inputs[0]
    feeds = tuple(bundle.golden().inputs)
    images = torch.from_numpy(np.concatenate([sample[name] for sample in feeds]))
    mixed = all_half(prepare(ir.load(bundle.reference_path)))

    with torch.no_grad():
        exact = module(images)["logits"].numpy()
        native = fuse(module).half()(images.half())["logits"].float().numpy()
    emulated = np.concatenate([next(iter(out.values())) for out in emulate(mixed, Samples(feeds, "golden"))])

    assert rounding_casts(mixed) > 0
    assert relative_l2(exact, emulated) == pytest.approx(relative_l2(exact, native), rel=0.25)


def test_sentences_in_half(tour):
    """MiniLM's error under the emulator is within a quarter of `model.half()`'s."""
    from examples.minilm import SENTENCES, build, embed, tokenize

    sentences = SENTENCES[:8]
    feeds = tokenize(sentences)
    native_model = build().half()
    with torch.no_grad():
        native = native_model(**{key: torch.from_numpy(array) for key, array in feeds.items()})["embedding"]
    mixed = all_half(prepare(ir.load(open_bundle(tour.made("models/minilm")).reference_path)))
    (emulated,) = emulate(mixed, Samples((feeds,), "sentences"))
    exact = embed(sentences)

    error = relative_l2(exact, emulated["embedding"])
    assert error == pytest.approx(relative_l2(exact, native.float().numpy()), rel=0.25)


@pytest.mark.parametrize("name", ["minilm", "digits"])
def test_prediction_is_near_what_was_measured(tour, name):
    """The error that the plan predicts is within a quarter of the emulated one."""
    found = json.loads((open_bundle(tour.made(f"models/{name}")).path / "accuracy.json").read_text())

    for output in found["outputs"]:
        assert output["relative_l2"] == pytest.approx(found["predicted_relative_l2"][output["output"]], rel=0.25)
