"""Measure node costs in TensorRT: build an engine, time its layers, and divide each time among the layer's nodes.

A layer is usually several nodes in one kernel. Its time is divided in proportion to their FLOPs, since the matrix
product dominates a kernel. The time of layers without nodes (copies into another format) is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from demi.bundles import manifest as manifests
from demi.bundles.drafts import scratch
from demi.calibration.profile import RangeProfile
from demi.calibration.sessions import save_model
from demi.engines.record import ShapeRange
from demi.exporter.planning.costs import Sizes, node_flops
from demi.exporter.planning.measured_costs import RUNS, NodeTime
from demi.exporter.tensorrt.build import require_builder
from demi.exporter.tensorrt.builder import EngineOptions, build_interruptibly
from demi.exporter.tensorrt.layers import Layer, read_layers
from demi.runtime.base import Device
from demi.runtime.tensorrt.session import open_engine, require_tensorrt
from demi.tensors import DType, Feeds, TensorSpec


def engine_node_times(model: ir.Model, feeds: Feeds, device: Device) -> dict[str, NodeTime]:
    """Return the time of every node in an engine of `model` for the shapes of `feeds`, by name.

    Raises DeviceError or PackageError without a GPU or TensorRT, and ConversionError, which names the node,
    for what TensorRT cannot build.
    """
    trt, options = require_tensorrt(), EngineOptions(device=device)
    ranges = {name: ShapeRange(array.shape, array.shape, array.shape) for name, array in feeds.items()}
    gpu = require_builder(device)
    with scratch() as folder:
        path = folder / manifests.MODEL
        save_model(model, path)
        engine_bytes = build_interruptibly(trt, path, ranges, options, gpu)
    session = open_engine(engine_bytes, (_specs(model.graph.inputs), _specs(model.graph.outputs)), device)
    text, times = session.time_layers(feeds, RUNS)
    sizes = Sizes(RangeProfile())
    work = {node.name or "": node_flops(node, sizes) for node in model.graph.all_nodes()}
    return share_times(read_layers(text, times), work)


def share_times(layers: Sequence[Layer], work: Mapping[str, float]) -> dict[str, NodeTime]:
    """Divide the layers' times among nodes in proportion to their work, or evenly where no work is known."""
    seconds: dict[str, float] = defaultdict(float)
    for layer in layers:
        total = sum(work.get(name, 0.0) for name in layer.nodes)
        for name in layer.nodes:
            share = work.get(name, 0.0) / total if total else 1 / len(layer.nodes)
            seconds[name] += (layer.mean_ms or 0.0) / 1e3 * share
    # The network is strongly typed: half nodes of the model are computed in half.
    return {name: NodeTime(each, in_half=True, bytes=0) for name, each in seconds.items()}


def _specs(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Return names and axes; the element types are a placeholder, since the engine has its own."""
    return tuple(
        TensorSpec(
            value.name or "", DType.FP32, tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape or ())
        )
        for value in values
    )
