"""The shapes as ONNX files: FP32 as PyTorch exports it, FP16 and BF16 as Demi converts it."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import onnx
import torch

from bench.gpu.setup import Setup
from bench.gpu.shapes import Shape

HALVES = ("fp16", "bf16")


def onnx_model(shape: Shape) -> onnx.ModelProto:
    """Return the shape in FP32 with a free batch axis."""
    feeds = {name: torch.from_numpy(array) for name, array in shape.inputs(2).items()}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            shape.module,
            (),
            kwargs=feeds,
            dynamic_shapes={name: {0: "batch"} for name in feeds},
            input_names=list(feeds),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def files(setup: Setup, shape: Shape) -> dict[str, Path]:
    """Return the files of a shape by precision, written once; by operator lists, since only speed matters."""
    from demi.exporter.api import convert

    stem = re.sub(r"\W+", "_", shape.name)
    found = {precision: setup.work / f"{stem}.{precision}.onnx" for precision in ("fp32", *HALVES)}
    if not found["fp32"].exists():
        onnx.save(onnx_model(shape), found["fp32"])
    for precision in HALVES:
        if not found[precision].exists():
            made = convert(onnx.load(found["fp32"]), precision=precision, calibrate=False, verify=False)
            onnx.save(made.model, found[precision])
    return found
