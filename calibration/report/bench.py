"""HTML report of a benchmark: latency, throughput, size and memory of FP32 and half, and the accuracy budget."""

from __future__ import annotations

from demi.calibration.benchmark.bench import Benchmark
from demi.calibration.report.budget_use import budget_chart
from demi.calibration.report.charts import grouped
from demi.calibration.report.page import render


def bench_report(result: Benchmark) -> str:
    """Return the page of a benchmark. Raises PackageError when matplotlib or Jinja is missing."""
    groups = [str(timed.half.batch) for timed in result.batches]
    sides = {"fp32": result.fp32, result.precision: result.half}
    charts = {
        "latency": grouped(
            "Median latency",
            groups,
            {
                "fp32": [t.fp32.p50_ms for t in result.batches],
                result.precision: [t.half.p50_ms for t in result.batches],
            },
            unit="ms",
        ),
        "throughput": grouped(
            "Rows per second",
            groups,
            {
                "fp32": [t.fp32.rows_per_s for t in result.batches],
                result.precision: [t.half.rows_per_s for t in result.batches],
            },
            unit="rows/s",
        ),
        "memory": grouped(
            "Size and memory",
            ["model file", "once loaded", "at its peak"],
            {
                name: [
                    (count or 0) / 2**20
                    for count in (side.file_bytes, side.memory.loaded_bytes, side.memory.peak_bytes)
                ]
                for name, side in sides.items()
            },
            unit="MiB",
        ),
        "budget": budget_chart(result.comparison),
    }
    return render(
        "bench.html",
        charts,
        name=result.name,
        version=result.version,
        precision=result.precision,
        device=result.device,
        machine=result.machine,
        batches=result.batches,
        fp32=result.fp32,
        half=result.half,
        comparison=result.comparison,
        measured_by=result.measured_by,
    )
