"""The result of an export: its tables, and the same for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demi.cli.console import Console, mebibytes, significant
from demi.cli.plan_tables import explain_plan, plan_rows, predicted_text

if TYPE_CHECKING:
    from demi.accuracy.token_agreement import TokenAgreement
    from demi.exporter.request import Exported
    from demi.exporter.rescaling.rescale import Rescaling


def print_result(result: Exported, console: Console) -> None:
    """Print one table (nodes by precision and reason, sizes, error against budget, path) and then the reasons."""
    from demi.accuracy.matching import describe_changes

    manifest, planned, lowered = result.manifest, result.conversion.planned, result.conversion.lowered
    share = result.half_bytes / result.fp32_bytes if result.fp32_bytes else 1.0
    source = " and ".join(result.floats) or "integers"
    rows = [
        *plan_rows(planned),
        *rescaling_rows(result.conversion.rescaling),
        *(["rewritten", str(len(form.nodes)), f"nodes: {form}"] for form in result.conversion.forms),
        ["casts", str(lowered.casts), "where the plan crosses from one precision to the other"],
        ["weights", mebibytes(result.half_bytes), f"{share:.0%} of the {mebibytes(result.fp32_bytes)} in {source}"],
    ]
    for diff in result.conversion.comparison.outputs:
        if diff.limits.agree is not None and diff.agree is not None and not diff.found:
            rows.append([f"choices of {diff.output}", f"{diff.agree:.4f}", f"share that agrees; budget: {diff.limits}"])
            continue
        details = f"relative L2{predicted_text(planned, diff.output)}; budget: {diff.limits}; max abs {significant(diff.max_abs)}"
        if diff.unmeasured:
            details += f"; {diff.unmeasured:,} of {diff.elements:,} not comparable"
        rows.append([f"error of {diff.output}", significant(diff.relative_l2), details])
        if diff.found:
            rows.append(
                [
                    f"boxes of {diff.output}",
                    significant(diff.boxes or 0.0),
                    describe_changes(diff.changes, diff.found, diff.changed),
                ]
            )
    rows += token_rows(result.conversion.tokens)
    if result.export_error is not None:
        types = "" if result.half_types else ", both in FP32"
        rows.append(["ONNX against PyTorch", significant(result.export_error), f"relative L2{types}"])
    rows.append(
        [
            "measured on",
            str(len(result.samples)),
            f"{'set' if len(result.samples) == 1 else 'sets'} of inputs: {result.samples.origin}",
        ]
    )
    rows.append(["bundle", f"v{manifest.version}", str(result.path)])
    console.table(headline(result), ["", "value", "details "], rows)
    explain_plan(planned, console)


def token_rows(tokens: TokenAgreement | None) -> list[list[str]]:
    """Return a table row for the tokens that half generates as FP32 does; none for a model that does not generate."""
    if tokens is None:
        return []
    first, last = tokens.by_step[0], tokens.by_step[-1]
    errors = f"error of the logits {significant(first.relative_l2)} at step {first.first}, {significant(last.relative_l2)} at step {last.last}"
    return [
        [
            "tokens like FP32",
            f"{tokens.same:.2%}",
            f"of {tokens.tokens}; {tokens.whole_texts} of {tokens.texts} texts throughout; {errors}",
        ]
    ]


def rescaling_rows(rescaling: Rescaling | None) -> list[list[str]]:
    """Return a table row for what was multiplied by powers of two, and what that spares; none if nothing was."""
    if rescaling is None or (certificate := rescaling.certificate) is None:
        return []
    spared = f"for their range, {certificate.before.nodes} -> {certificate.after.nodes} nodes stay FP32"
    count = len(certificate.constants) + len(certificate.numbers)
    return [["rescaled", str(count), f"constants x 2^k, same FP32 answers to the last bit; {spared}"]]


def headline(result: Exported) -> str:
    """Return the title: `m: FP32 -> mixed fp16, 98% of the FLOPs in half`, or that the model is unchanged."""
    name, source = result.manifest.name, " and ".join(result.half_types or result.floats) or "only integers"
    planned, precision = result.conversion.planned, result.manifest.precision
    if not planned.plan.half_nodes:
        return f"{name}: {source}, unchanged"
    if planned.fp32_share is None:
        return f"{name}: {source} -> mixed {precision}"
    if result.gain is not None and result.gain.objection:
        return f"{name}: {source}, {1 - planned.fp32_share.flops:.1%} of the FLOPs in {precision}"
    return f"{name}: {source} -> mixed {precision}, {1 - planned.fp32_share.flops:.0%} of the FLOPs in half"


def document(result: Exported) -> dict[str, object]:
    """Return the result for JSON."""
    planned = result.conversion.planned
    return {
        "bundle": str(result.path),
        "precision": result.manifest.precision,
        "nodes": [
            {"precision": decision.precision.value, "reason": decision.reason.value, "count": count}
            for decision, count in planned.plan.counts()
        ],
        "rescaled": _rescaled(result.conversion.rescaling),
        "stable_forms": result.conversion.forms,
        "casts": result.conversion.lowered.casts,
        "fp32_share": planned.fp32_share,
        "weight_bytes": {"fp32": result.fp32_bytes, "half": result.half_bytes},
        "file_bytes": {name: entry.bytes for name, entry in result.manifest.files.items()},
        "outputs": result.conversion.comparison.outputs,
        "predicted_relative_l2": planned.predicted,
        "source_floats": [*result.half_types, *result.floats],
        "within_budget": bool(result.conversion.comparison),
        "generation": result.conversion.tokens,
        "batch": result.manifest.batch,
        "varying": result.manifest.varying,
        "fails_on_cpu": result.fails_here or None,
        "onnx_against_pytorch_relative_l2": result.export_error,
        "samples": {"origin": result.samples.origin, "drawn": result.samples.drawn, "sets": len(result.samples)},
    }


def _rescaled(rescaling: Rescaling | None) -> object:
    """Return the certificate's account of what was rescaled, for JSON; None if nothing was."""
    if rescaling is None or (certificate := rescaling.certificate) is None:
        return None
    return {
        "constants": len(certificate.constants),
        "numbers": len(certificate.numbers),
        "before": certificate.before,
        "after": certificate.after,
    }
