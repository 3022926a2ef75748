"""What nodes cost on a device, measured: ONNX Runtime's profiler instead of the roofline.

The model runs twice with every node by itself, in FP32 and with everything in half that has half kernels. Fusion is
off, so that each node keeps its name; what a fused kernel would save is not seen.
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
"""What ONNX Runtime calls the casts that it puts around a node without a half kernel."""

COPIES = ("MemcpyFromHost", "MemcpyToHost")
"""The operators that it puts between nodes on the GPU and those on the CPU: no model's own, and no casts."""


@dataclass(frozen=True, slots=True)
class NodeTime:
    """Seconds of one node in a run, and whether it read half."""

    seconds: float
    in_half: bool
    bytes: int
    """What it read and wrote."""


Timer = Callable[[ir.Model, Feeds, Device], Mapping[str, NodeTime]]
"""What the nodes of a model take on a device, by name."""


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """Costs for the planner, and how far the device computes in half at all."""

    costs: DeviceCosts
    device: str
    wide: int
    """Nodes that half was asked of and that the runtime computed in FP32, between casts of its own."""
    half: int
    """Nodes that half was asked of."""


def measure_costs(
    prepared: ir.Model,
    samples: Samples,
    precision: str,
    device: Device,
    base: DeviceCosts,
    timer: Timer | None = None,
) -> MeasuredCosts:
    """The costs of every node on the largest of the samples, as they are; `base` is what is not measured.

    `timer` says what nodes take, in place of ONNX Runtime.

    A node that the runtime left out (a folded one) costs nothing. One whose half was not measured, or was computed in
    FP32 all the same, gains nothing. Raises InputError where the device has no kernels for the format at all.
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
    """The median time of every node that the runtime executes, by name."""
    with scratch() as folder:
        settings = SessionSettings(profile=str(folder / "profile"))
        with session_for(model, device, settings) as session:
            for _ in range(WARM_UPS + RUNS):
                session.run(feeds)
            return read_profile(session.end_profile().read_bytes(), WARM_UPS + RUNS)


def read_profile(profile: bytes, runs: int) -> dict[str, NodeTime]:
    """The nodes of ONNX Runtime's profile of so many runs: the median run of each, the first ones left out."""
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
    """The costs as a file that `--costs` reads."""
    return msgspec.json.format(msgspec.json.encode(measured.costs), indent=2) + b"\n"


def _node_time(durations: list[float], arguments: Mapping[str, Any], runs: int) -> NodeTime:
    """A node inside a loop runs several times in each run: these are summed."""
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
    # The times are those of the samples as they are: nothing is scaled to another batch size.
    costs = replace(base, bandwidth=bandwidth, rows=1, launch_s=0.0, seconds=seconds)
    return MeasuredCosts(costs, str(device), wide, len(asked))


def _cast_bandwidth(prepared: ir.Model, half: Mapping[str, NodeTime]) -> float | None:
    """Bytes per second of the casts between the precisions: those that the plan brought; None without any."""
    known = {node.name for node in prepared.graph.all_nodes()}
    casts = [each for name, each in half.items() if name not in known and not name.startswith(INSERTED)]
    total = sum(each.seconds for each in casts)
    return sum(each.bytes for each in casts) / total if total > 0 and any(each.bytes for each in casts) else None
