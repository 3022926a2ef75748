"""Measure node costs on a device with ONNX Runtime's profiler, instead of the roofline estimate.

The model runs twice with each node separate, in FP32 and with everything in half that has half kernels. Fusion is off,
so that each node keeps its name; savings of fused kernels are not measured.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import onnx_ir as ir

from demi.bundles.drafts import scratch
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.errors import InputError
from demi.exporter.passes.lower import apply_plan
from demi.exporter.planning.costs import DeviceCosts
from demi.exporter.planning.op_list import op_list_plan
from demi.float16 import half_format
from demi.plan import PrecisionPlan
from demi.runtime.base import Device
from demi.runtime.options import SessionSettings
from demi.tensors import Feeds

WARM_UPS = 2
RUNS = 10

INSERTED = "InsertedPrecisionFreeCast_"
"""Prefix of the casts that ONNX Runtime inserts around a node without a half kernel."""

COPIES = ("MemcpyFromHost", "MemcpyToHost")
"""Operators that it inserts between nodes on the GPU and on the CPU; neither part of a model nor casts."""


@dataclass(frozen=True, slots=True)
class NodeTime:
    """Time of one node in a run, in seconds, and whether it read half."""

    seconds: float
    in_half: bool
    bytes: int
    """Bytes read and written."""


Timer = Callable[[ir.Model, Feeds, Device], Mapping[str, NodeTime]]
"""Measures the nodes of a model on a device; returns times by node name."""


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """Costs for the planner, and how many half nodes the device computes in half."""

    costs: DeviceCosts
    device: str
    wide: int
    """Half nodes that the runtime computed in FP32, between casts that it inserted."""
    half: int
    """Half nodes of the measured plan."""


def measure_costs(
    prepared: ir.Model,
    samples: Samples,
    precision: str,
    device: Device,
    base: DeviceCosts,
    timer: Timer | None = None,
) -> MeasuredCosts:
    """Measure every node on the largest set of samples; `base` supplies costs that are not measured.

    `timer` measures instead of ONNX Runtime. A node that the runtime left out (a folded one) costs nothing. A node
    whose half was not measured, or was computed in FP32 anyway, gains nothing. Raises InputError where the device has
    no kernels for the format at all.
    """
    if precision == "bf16" and device.kind == "cpu":
        raise InputError(
            "ONNX Runtime has no bfloat16 kernels on the CPU to measure", hint="add --device cuda, or use --fp16"
        )
    feeds = max(samples.feeds, key=lambda each: sum(array.size for array in each.values()))
    plan = op_list_plan(prepared, half_format(precision))
    timed = timer or node_times
    single = timed(prepared, feeds, device)
    half = timed(apply_plan(prepared, plan).model, feeds, device)
    return _costs(prepared, plan, single, half, device, base)


def node_times(model: ir.Model, feeds: Feeds, device: Device) -> dict[str, NodeTime]:
    """Return the median time of every node that the runtime executes, by name."""
    with scratch() as folder:
        settings = SessionSettings(profile=str(folder / "profile"))
        with session_for(model, device, settings) as session:
            for _ in range(WARM_UPS + RUNS):
                session.run(feeds)
            return read_profile(session.end_profile().read_bytes(), WARM_UPS + RUNS)


def read_profile(profile: bytes, runs: int) -> dict[str, NodeTime]:
    """Read the nodes of ONNX Runtime's profile of `runs` runs: the median of each, without the warm-up runs."""
    durations: dict[str, list[float]] = defaultdict(list)
    last: dict[str, dict[str, Any]] = {}
    for event in msgspec.json.decode(profile):
        arguments = event.get("args", {})
        if event.get("cat") != "Node" or arguments.get("op_name") in COPIES:
            continue
        if event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            durations[name].append(event["dur"] / 1e6)
            last[name] = arguments
    return {name: _node_time(each, last[name], runs) for name, each in durations.items()}


def costs_json(measured: MeasuredCosts) -> bytes:
    """Return the costs as a file for `--costs`."""
    return msgspec.json.format(msgspec.json.encode(measured.costs), indent=2) + b"\n"


def _node_time(durations: list[float], arguments: Mapping[str, Any], runs: int) -> NodeTime:
    """Return the time of one node; the iterations of a node inside a loop are summed."""
    often = max(1, len(durations) // runs)
    sums = [sum(durations[start : start + often]) for start in range(0, len(durations) - often + 1, often)]
    kept = sums[WARM_UPS:] or sums
    types = {kind for each in arguments.get("input_type_shape", []) for kind in each}
    size = sum(int(arguments.get(key, 0)) for key in ("activation_size", "parameter_size", "output_size"))
    return NodeTime(statistics.median(kept), bool(types & {"float16", "bfloat16"}), size)


def _costs(
    prepared: ir.Model,
    plan: PrecisionPlan,
    single: Mapping[str, NodeTime],
    half: Mapping[str, NodeTime],
    device: Device,
    base: DeviceCosts,
) -> MeasuredCosts:
    seconds, wide = {}, 0
    asked = [decision.node for decision in plan.computing if decision.is_half and decision.node in half]
    for node in prepared.graph.all_nodes():
        name = node.name or ""
        one = single[name].seconds if name in single else 0.0
        other = half[name].seconds if name in asked else one
        if name in asked and not half[name].in_half:
            wide, other = wide + 1, max(one, other)
        seconds[name] = (other, one)
    bandwidth = _cast_bandwidth(prepared, half) or base.bandwidth
    # The times are those of the samples: nothing is scaled to another batch size.
    costs = replace(base, bandwidth=bandwidth, rows=1, launch_s=0.0, seconds=seconds)
    return MeasuredCosts(costs, str(device), wide, len(asked))


def _cast_bandwidth(prepared: ir.Model, half: Mapping[str, NodeTime]) -> float | None:
    """Return the bandwidth of the plan's casts in bytes per second; None without any."""
    known = {node.name for node in prepared.graph.all_nodes()}
    casts = [each for name, each in half.items() if name not in known and not name.startswith(INSERTED)]
    total = sum(each.seconds for each in casts)
    return sum(each.bytes for each in casts) / total if total > 0 and any(each.bytes for each in casts) else None
