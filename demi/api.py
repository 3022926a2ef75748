"""The Python API: the commands as functions. `import demi` offers them; `demi/model.py` has `demi.load`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demi.accuracy.budget import Budget, parse_budget
from demi.arguments import require
from demi.errors import InputError
from demi.tensors import Feeds, TensorSpec, parse_spec
from demi.testing import check

if TYPE_CHECKING:
    from demi.exporter.processing.found import ProcessingOptions
    from demi.exporter.request import Exported
    from demi.plan import PrecisionPlan
    from demi.remote.address import Address
    from demi.server.settings import ServeSettings

__all__ = ["check", "export", "serve"]

Samples = str | Path | Sequence[Mapping[str, Any]]
"""Sample inputs: an `.npz` file or a folder of them, `package.module:function`, or a list of {input name: array}; for a
source of raw inputs also a file of texts, or a folder of images or sounds."""

Step = Callable[[str], AbstractContextManager[Any]]
"""A function of a step's name that returns a context manager, entered while the step runs."""


def export(
    source: str | Path,
    output: str | Path | None = None,
    *,
    precision: str = "fp16",
    samples: Samples | None = None,
    inputs: Sequence[str | TensorSpec] = (),
    budget: str | Sequence[str] | Budget = (),
    version: int | None = None,
    force: bool = False,
    plan: str | Path | PrecisionPlan | None = None,
    keep_fp32: str | Sequence[str] = (),
    force_half: str | Sequence[str] = (),
    half_io: bool = False,
    calibrate: bool = True,
    optimize: bool = True,
    rescale: bool = True,
    reference: bool = True,
    report: bool = True,
    max_batch: int = 32,
    search_seconds: float = 60.0,
    output_names: Sequence[str] = (),
    factory: str | None = None,
    task: str | None = None,
    processing: ProcessingOptions | None = None,
    trust_pickle: bool = False,
    opset: int | None = None,
    seed: int = 0,
    step: Step | None = None,
    warn: Callable[[str], None] | None = None,
) -> Exported:
    """Convert a model file to a half-precision bundle, as `demi export` does, and return what was written.

    Args:
        source: a `.pt2`, TorchScript, pickled module, state_dict, `.safetensors` or `.onnx` file, or a transformers folder.
        output: the model's folder; the bundle goes to `output/version`. Default: `models/NAME`.
        version: default: the one after the newest in that folder.
        force: replace a bundle: that of `version`, or else the newest.
        precision: `fp16` or `bf16`.
        samples: real inputs; ranges and accuracy are measured on them. Without them inputs are drawn with `seed`, and
            both are guesses.
        inputs: input specs such as `input_ids:int64[batch,seq]`; names are free axes.
        budget: `relative_l2=1e-2`, one or several such texts, or a Budget.
        plan: a precision plan, or its file, to carry out instead of searching for one.
        keep_fp32, force_half: node names, globs or operator types.
        half_io: make float inputs and outputs half, too.
        rescale: multiply constants by powers of two where ranges leave FP16; no FP32 answer changes.
        factory: `package.module:factory`, which builds the module that a state_dict belongs to.
        task: what a transformers folder is for, e.g. `text-classification`.
        processing: the tokenizer, image processor or labels of a source that takes texts, images or sounds
            (`demi.exporter.processing.found.ProcessingOptions`); a transformers folder with a task has its own.
        trust_pickle: load a file that holds code; this runs the code.
        step: called with the name of each step; `warn` with what speaks against the conversion.

    Raises SourceError, SampleError, InputError, ConversionError or BundleError where the input is wrong, and
    OverBudgetError, which names the outputs, when the half model is not within the budget. Nothing is written then.
    """
    from demi.bundles.find import version_to_write
    from demi.bundles.manifest import name_of_file
    from demi.calibration.raw_data import is_raw
    from demi.exporter.arguments import patterns, require_number, require_switches, sample_sets
    from demi.exporter.pipeline import export_bundle
    from demi.exporter.planning.find_plan import PlanSettings
    from demi.exporter.processing.found import ProcessingOptions
    from demi.exporter.request import ExportRequest
    from demi.exporter.sources.options import SourceOptions
    from demi.progress import silent

    path = _path(source, "source", "the path of a model")
    require_switches(
        force=force,
        half_io=half_io,
        rescale=rescale,
        calibrate=calibrate,
        optimize=optimize,
        reference=reference,
        report=report,
        trust_pickle=trust_pickle,
    )
    if version is not None:
        require_number(version, "version", 1, whole=True)
    require_number(max_batch, "max_batch", 1, whole=True)
    require_number(search_seconds, "search_seconds", 0.0)
    require_number(seed, "seed", 0, whole=True)
    _require_precision(precision, half_io=half_io)
    settings = PlanSettings(
        precision=precision,
        budget=_budget(budget),
        calibrate=calibrate,
        keep_fp32=patterns(keep_fp32, "keep_fp32"),
        force_half=patterns(force_half, "force_half"),
        search_seconds=search_seconds,
        half_io=half_io,
        rescale=rescale,
    )
    raw = isinstance(samples, str | Path) and is_raw(samples)
    options = SourceOptions(
        samples=() if raw else tuple(_samples(samples, sample_sets)),
        raw_samples=str(samples) if raw else None,
        processing=processing or ProcessingOptions(),
        inputs=tuple(spec if isinstance(spec, TensorSpec) else parse_spec(spec) for spec in inputs),
        output_names=tuple(output_names),
        factory=factory,
        trust_pickle=trust_pickle,
        task=task,
        opset=opset,
        seed=seed,
    )
    folder = Path("models") / name_of_file(path.stem) if output is None else _path(output, "output", "a folder")
    request = ExportRequest(
        source=path,
        output=folder,
        settings=settings,
        plan=_plan(plan),
        version=version_to_write(folder, version, force=force),
        options=options,
        optimize=optimize,
        reference=reference,
        report=report,
        max_batch=max_batch,
        force=force,
        samples_origin=str(samples) if isinstance(samples, str | Path) else "the samples given",
    )
    return export_bundle(request, step or silent, warn)


def serve(models: str | Path, **settings: Any) -> int:
    """Serve a folder of bundles, or one bundle, over HTTP and gRPC until SIGTERM or SIGINT, and return the exit code.

    `settings` are those of `demi serve` by their names in docs/settings.md (`port`, `max_batch`, ...): as text, spelled
    as on the command line, or as the value itself. Call it from the main thread, which receives the signals.

    Raises InputError for a setting that does not exist or has no such value, and the DemiError that says why there is
    nothing to serve.
    """
    require(models, (str, Path), "models", "a folder of bundles, or its address")
    from demi.remote.address import models_argument
    from demi.server.settings import named_settings

    return serve_tried(models_argument(models) if isinstance(models, str) else models, named_settings(settings))


def serve_tried(models: Path | Address, settings: ServeSettings) -> int:
    """Serve the bundles at a path or an address, each loaded in a trial process first; return the exit code."""
    from demi.remote.follow import local_models
    from demi.server.models.trial_loads import TrialLoads

    with (
        TrialLoads(settings) as trials,  # its process starts while the server's packages are imported
        local_models(models, settings.watch_s, say=_to_stderr) as path,
    ):
        trials.begin(path)
        from demi.server.run import serve

        return serve(path, settings, trials)


def _to_stderr(text: str) -> None:
    """Tell about a download: the server's log is not open yet."""
    print(text, file=sys.stderr, flush=True)


def _path(value: Any, name: str, wanted: str) -> Path:
    require(value, (str, Path), name, wanted)
    return Path(value)


def _require_precision(precision: Any, *, half_io: bool) -> None:
    from demi.float16 import half_format

    require(precision, str, "precision", "fp16 or bf16")
    half_format(precision)
    if precision == "bf16" and half_io:
        raise InputError("half_io needs fp16: NumPy and most clients have no bfloat16", hint="leave half_io out")


def _budget(budget: Any) -> Budget:
    if isinstance(budget, Budget):
        return budget
    require(budget, (str, list, tuple), "budget", "`relative_l2=1e-2`, a list of such texts, or a Budget")
    return parse_budget([budget] if isinstance(budget, str) else list(budget))


def _plan(plan: Any) -> PrecisionPlan | None:
    from demi.plan import PrecisionPlan, read_plan

    require(plan, (str, Path, PrecisionPlan, type(None)), "plan", "a PrecisionPlan or the path of one")
    return read_plan(Path(plan)) if isinstance(plan, str | Path) else plan


def _samples(samples: Any, sample_sets: Callable[[Any], list[Feeds]]) -> list[Feeds]:
    from demi.calibration.samples import load_arrays

    return load_arrays(samples) if isinstance(samples, str | Path) else sample_sets(samples)
