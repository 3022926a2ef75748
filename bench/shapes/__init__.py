"""Network shapes of the field with random weights, as ONNX files: for planning, conversion and speed, not for accuracy
of answers. The configurations are transformers' own classes with fewer and narrower layers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

from bench.shapes.audio import wav2vec2, whisper, whisper_decoder
from bench.shapes.base import Feeds, First, Shape
from bench.shapes.graphs import Graph, contrib, detector, functions, loops, quantized
from bench.shapes.recurrent import gru, lstm
from bench.shapes.text import bert, gpt2, llama, t5, t5_decoder
from bench.shapes.vision import clip, convnext, detr, resnet, segformer, swin, unet, vit
from demi.exporter.passes.public_names import rename_axes

__all__ = ["GRAPHS", "SHAPES", "Feeds", "First", "Graph", "Shape", "export_shape"]

_TEXT = (bert, gpt2, t5, t5_decoder, llama)
_VISION = (vit, swin, convnext, resnet, detr, segformer, unet, clip)
_SOUND = (whisper, whisper_decoder, wav2vec2)
_RECURRENT = (lstm, gru)

SHAPES: dict[str, Callable[[], Shape]] = {shape.__name__: shape for shape in (*_TEXT, *_VISION, *_SOUND, *_RECURRENT)}
"""Torch modules, by name."""

GRAPHS: dict[str, Callable[[], Graph]] = {
    graph.__name__: graph for graph in (loops, detector, quantized, functions, contrib)
}
"""Graphs that are written in ONNX, by name."""


def export_shape(name: str, folder: Path, seed: int = 0) -> tuple[Path, list[Feeds]]:
    """Export a shape or graph to `folder` unless it is there, and draw four sets of inputs for it."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    shape = GRAPHS[name]() if name in GRAPHS else SHAPES[name]()
    sets = [shape.draw(rng) for _ in range(4)]
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(shape, Graph):
            onnx.save(shape.build(rng), path)
        else:
            _export(shape.module, sets[0], path)
    return path, sets


def _export(module: torch.nn.Module, feeds: Feeds, path: Path) -> None:
    args = tuple(torch.from_numpy(array) for array in feeds.values())
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module.eval(), args, dynamo=True, verbose=False, input_names=list(feeds))
    assert program is not None
    rename_axes(program.model, {})
    onnx.checker.check_model(program.model_proto)
    program.save(path)
