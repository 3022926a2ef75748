"""PyTorch models to ONNX: the only module that imports torch.

A `.pt` file is untrusted. Weights are read with `weights_only`; a pickled module is code, and is read only when the
user says so. TorchScript archives hold no pickled Python, but PyTorch asks to trust their source as well.
"""

from __future__ import annotations

import importlib
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from calibration.samples import draw_samples
from calibration.sessions import session_for
from demi.compare import relative_l2
from demi.errors import SourceError, missing_package
from demi.tensors import Feeds, TensorSpec
from demi.user_code import current_folder_importable
from exporter import transformers_source
from exporter.passes.outputs import rename_axes, rename_inputs, rename_outputs
from exporter.source import Source, SourceOptions, check_options

EXPORT_TOLERANCE = 1e-4
"""Relative L2 allowed between PyTorch and the ONNX model made from it: float32 in another order of summation."""


_JIT: Any = torch.jit
"""TorchScript, whose functions carry no types."""


@dataclass(frozen=True, slots=True)
class Example:
    """A call of the model that shows the exporter its inputs."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any
    axes: dict[str, tuple[int | str, ...]]
    """For each input, the names of its free axes where the user gave them."""


def read(path: Path, options: SourceOptions) -> Source:
    """The ONNX model of a `.pt2`, TorchScript, pickled module or state_dict; SourceError when it cannot be had."""
    program, module, example = _load(path, options)
    onnx_program = _export(program, example, options, path)
    model = onnx_program.model
    if example.axes and len(example.axes) == len(model.graph.inputs):
        rename_inputs(model, list(example.axes))  # TorchScript's conversion calls them x_1
    feeds = _as_feeds(example, [value.name for value in model.graph.inputs], path)
    rename_axes(model, example.axes)
    rename_outputs(model, options.output_names or _output_names(module, example, len(model.graph.outputs)))
    error = _verify(model, module, example, feeds, path)
    drawn = example.dynamic_shapes is not None and not options.samples
    return Source(model, _kind(program), () if drawn else (feeds,), error)


# --- reading --------------------------------------------------------------------------------------------------------


def _load(path: Path, options: SourceOptions) -> tuple[Any, Any, Example]:
    """What to export, what to compare with, and an example call."""
    if path.is_dir():
        check_options(options, "a transformers folder", path)
        module = transformers_source.load_folder(path, options.task)
        specs = options.inputs or transformers_source.input_specs(module)
        return module, module, _example(_parameter_names(module), replace(options, inputs=specs), path)
    if _is_exported_program(path):
        check_options(options, "a torch.export program", path)
        program = _load_program(path)
        args, kwargs = program.example_inputs or ((), {})
        if not args and not kwargs:
            raise SourceError(
                "the exported program holds no example inputs",
                where=str(path),
                hint="save it with torch.export.save right after torch.export.export",
            )
        return program, program.module(), Example(tuple(args), dict(kwargs), None, {})
    if _is_torchscript(path):
        check_options(options, "a TorchScript archive", path)
        script = _quietly(lambda: _JIT.load(path, map_location="cpu"), path)
        example = _example(_parameter_names(script), options, path)
        return _program_of_script(script, example, path), script, example
    module = _load_module(path, options)
    example = _example(_parameter_names(module), options, path)
    return module, module, example


def _is_exported_program(path: Path) -> bool:
    return _has_entry(path, r"(^|/)(archive_format|serialized_exported_program\.json|models/.*\.json)$")


def _is_torchscript(path: Path) -> bool:
    return _has_entry(path, r"(^|/)constants\.pkl$")


def _has_entry(path: Path, pattern: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(re.search(pattern, name) for name in archive.namelist())


def _load_program(path: Path) -> Any:
    return _quietly(lambda: torch.export.load(path), path)


def _quietly(load: Any, path: Path) -> Any:
    try:
        return load()
    except Exception as error:
        raise SourceError(
            f"PyTorch cannot read the file: {_cause(error)}",
            where=str(path),
            hint="the file may be truncated, or written by a newer PyTorch",
        ) from error


def _load_module(path: Path, options: SourceOptions) -> torch.nn.Module:
    """A module from a pickle (when trusted), or from a factory and a state_dict."""
    if path.suffix == ".safetensors":
        check_options(options, "a file of tensors", path)
        return _with_state(_load_safetensors(path), options, path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise _unreadable(path, error) from error
        if not options.trust_pickle:
            raise SourceError(
                "this is a pickled module, and a pickle can run any code when it is loaded",
                where=str(path),
                hint="if you trust where it comes from, add --trust-pickle; better, save it with torch.export.save (.pt2)",
            ) from error
        loaded = _load_pickle(path)
    except Exception as error:
        raise _unreadable(path, error) from error
    if isinstance(loaded, torch.nn.Module):
        check_options(options, "a pickled module", path)
        return loaded.eval()
    check_options(
        replace(options, trust_pickle=False), "a file of tensors", path
    )  # it may have needed trust to be read
    return _with_state(loaded, options, path)


def _load_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise missing_package("safetensors", "examples") from error
    state: Mapping[str, torch.Tensor] = _quietly(lambda: load_file(path), path)
    return state


def _load_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ImportError) as error:
        raise SourceError(
            f"the pickle needs code that cannot be imported: {error}",
            where=str(path),
            hint="run where the model's class can be imported (PYTHONPATH), as it was when the file was written",
        ) from error
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"PyTorch cannot read the file: {_cause(error)}", where=str(path), hint="is it a .pt file, and whole?"
    )


def _with_state(loaded: Any, options: SourceOptions, path: Path) -> torch.nn.Module:
    state = _find_state(loaded)
    if state is None:
        keys = f" (it has {', '.join(map(str, list(loaded)[:6]))})" if isinstance(loaded, Mapping) and loaded else ""
        raise SourceError(
            f"the file holds a {type(loaded).__name__}, neither a module nor a state_dict{keys}",
            where=str(path),
            hint="save the weights alone: torch.save(module.state_dict(), path)",
        )
    if options.factory is None:
        raise SourceError(
            f"this is a bare state_dict ({len(state)} tensors): it holds weights, but not the module they belong to",
            where=str(path),
            hint="name what builds the module: --model package.module:factory",
        )
    module = _build(options.factory)
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise SourceError(
            f"the weights do not fit the module of `{options.factory}`: {_lines(error)}", where=str(path)
        ) from error
    return module.eval()


STATES = ("state_dict", "model_state_dict", "model", "module", "net", "ema")
"""Where training checkpoints keep the weights, the usual name first."""


def _find_state(loaded: Any) -> Mapping[str, torch.Tensor] | None:
    """The weights in what a file holds: all of it, or what a checkpoint has under one of its usual names."""
    if not isinstance(loaded, Mapping):
        return None
    candidates = [loaded[name] for name in STATES if isinstance(loaded.get(name), Mapping)] or [loaded]
    state = candidates[0]
    return state if all(isinstance(value, torch.Tensor) for value in state.values()) else None


def _build(factory: str) -> torch.nn.Module:
    """The module that `package.module:factory` builds; it is the user's own code, here or installed."""
    module_name, colon, attribute = factory.partition(":")
    try:
        if not colon:
            raise ValueError("there is no `:` in it")
        with current_folder_importable():
            built = getattr(importlib.import_module(module_name), attribute)()
    except Exception as error:
        raise SourceError(
            f"`{factory}` cannot build a module: {error}",
            where="--model",
            hint="write package.module:factory, from the current folder or installed; it is called without arguments",
        ) from error
    if not isinstance(built, torch.nn.Module):
        raise SourceError(f"`{factory}` returned a {type(built).__name__}, not a torch.nn.Module", where="--model")
    return built


# --- example inputs -------------------------------------------------------------------------------------------------


def _parameter_names(module: Any) -> list[str]:
    import inspect

    if isinstance(module, torch.jit.ScriptModule):
        method: Any = module.forward
        return [argument.name for argument in method.schema.arguments if argument.name != "self"]
    return [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _example(parameters: list[str], options: SourceOptions, path: Path) -> Example:
    """An example call from `--sample` and `--input`; a single unnamed input may go by any name."""
    specs = {spec.name: spec for spec in options.inputs}
    feeds = dict(options.samples[0]) if options.samples else {}
    if specs and not feeds:
        feeds = draw_samples(options.inputs, options.seed, sets=1, batch=2).feeds[0]
    if not feeds:
        raise SourceError(
            "the file holds a model but no example inputs, which the export needs",
            where=str(path),
            hint=f"give --sample inputs.npz, or --input for each of: {', '.join(parameters)} (e.g. --input {parameters[0] if parameters else 'x'}:float32[batch,784])",
        )
    known = {name: feeds[name] for name in parameters if name in feeds}
    if not known and len(feeds) == 1 and parameters:
        only = next(iter(feeds))
        known = {parameters[0]: feeds[only]}
        specs = {parameters[0]: specs[only]} if only in specs else {}
    if not known:
        raise SourceError(
            f"none of the inputs {', '.join(feeds)} is one the model takes",
            where=str(path),
            hint=f"the model takes {', '.join(parameters)}",
        )
    return _dynamic_example(known, specs)


def _dynamic_example(feeds: Feeds, specs: Mapping[str, TensorSpec]) -> Example:
    """Free the batch axis of every input (and the axes `--input` names); examples of one row become two.

    An axis of size 1 would be exported as a constant, so the exporter must see two rows.
    """
    shared_batch = len({array.shape[0] for array in feeds.values() if array.ndim}) == 1
    kwargs, shapes, axes = {}, {}, {}
    for name, array in feeds.items():
        spec = specs.get(name)
        dims: tuple[int | str, ...] = spec.shape if spec and len(spec.shape) == array.ndim else array.shape
        if not spec and array.ndim and shared_batch:
            dims = ("batch", *dims[1:])
        repeats = [2 if isinstance(dim, str) and size == 1 else 1 for dim, size in zip(dims, array.shape, strict=True)]
        kwargs[name] = torch.from_numpy(np.tile(array, repeats) if array.ndim else array.copy())
        shapes[name] = {axis: torch.export.Dim.AUTO for axis, dim in enumerate(dims) if isinstance(dim, str)}
        axes[name] = dims
    return Example((), kwargs, shapes, axes)


def _as_feeds(example: Example, names: list[str | None], path: Path) -> Feeds:
    """The example's tensors by ONNX input name, in order."""
    flat = [
        leaf
        for leaf in torch.utils._pytree.tree_leaves((example.args, example.kwargs))
        if isinstance(leaf, torch.Tensor)
    ]
    if len(flat) != len(names):
        raise SourceError(
            f"the model takes {len(flat)} tensors, but {len(names)} became ONNX inputs",
            where=str(path),
            hint="inputs that are not tensors, or that the model does not use, cannot be exported",
        )
    return {str(name): tensor.detach().cpu().numpy() for name, tensor in zip(names, flat, strict=True)}


# --- exporting ------------------------------------------------------------------------------------------------------


def _program_of_script(script: Any, example: Example, path: Path) -> Any:
    """A torch.export program of a TorchScript module, which the exporter no longer takes itself."""
    from torch._export.converter import TS2EPConverter

    try:
        with _quiet():
            return TS2EPConverter(script, tuple(example.kwargs.values()), {}).convert()
    except Exception as error:
        raise SourceError(
            f"PyTorch cannot turn the TorchScript into a torch.export program: {_cause(error)}",
            where=str(path),
            hint="export the original module with torch.export.save instead",
        ) from error


def _export(program: Any, example: Example, options: SourceOptions, path: Path) -> Any:
    """The ONNX program; where the exporter fails on fused attention, the model's eager attention is tried as well."""
    try:
        return _exported(program, example, options, path)
    except SourceError:
        if not transformers_source.use_eager_attention(program):
            raise
        return _exported(program, example, options, path)


def _exported(program: Any, example: Example, options: SourceOptions, path: Path) -> Any:
    """`torch.onnx.export(dynamo=True)`; names of outputs are given later, in `rename_outputs`."""
    is_program = isinstance(program, torch.export.ExportedProgram)
    try:
        with _quiet():
            result = torch.onnx.export(
                program,
                () if is_program else example.args,
                kwargs=None if is_program else example.kwargs,
                dynamic_shapes=None if is_program else example.dynamic_shapes,
                opset_version=options.opset,
                dynamo=True,
                verbose=False,
                optimize=True,
            )
    except Exception as error:
        raise SourceError(
            f"PyTorch cannot export the model to ONNX: {_cause(error)}",
            where=str(path),
            hint=_export_hint(error),
        ) from error
    if result is None:
        raise SourceError("PyTorch's exporter returned nothing", where=str(path))
    return result


def _export_hint(error: BaseException | None) -> str:
    """What may help: attention that the exporter knows, else PyTorch's own words."""
    while error is not None:
        if "scaled_dot_product" in str(error):
            return "write attention without scaled_dot_product_attention (transformers: attn_implementation='eager')"
        error = error.__cause__
    return "run with --verbose for PyTorch's full trace; give representative inputs with --sample"


def _verify(model: ir.Model, module: Any, example: Example, feeds: Feeds, path: Path) -> float:
    """The largest relative L2 of an output between ONNX and PyTorch; SourceError beyond `EXPORT_TOLERANCE`."""
    with torch.no_grad():
        expected = module(*example.args, **example.kwargs)
    leaves = [
        leaf.detach().cpu().numpy()
        for leaf in torch.utils._pytree.tree_leaves(expected)
        if isinstance(leaf, torch.Tensor)
    ]
    onnx.checker.check_model(ir.to_proto(model)) if _fits_protobuf(model) else None
    with session_for(model) as session:
        got = list(session.run(feeds).values())
    if len(leaves) != len(got):
        raise SourceError(f"PyTorch returns {len(leaves)} tensors, the ONNX model {len(got)}", where=str(path))
    errors = [relative_l2(want, have) for want, have in zip(leaves, got, strict=True)]
    worst = max(errors, default=0.0)
    if not worst <= EXPORT_TOLERANCE:
        name = model.graph.outputs[errors.index(worst)].name
        raise SourceError(
            f"the exported ONNX model differs from PyTorch: output `{name}` by {worst:.2g} relative L2 (at most {EXPORT_TOLERANCE:g})",
            where=str(path),
            hint="is the model in eval mode, and free of randomness?",
        )
    return worst


def _fits_protobuf(model: ir.Model) -> bool:
    from calibration.sessions import PROTOBUF_LIMIT, weight_bytes

    return weight_bytes(model) <= PROTOBUF_LIMIT


def _output_names(module: Any, example: Example, count: int) -> tuple[str, ...]:
    """Names people expect: the keys of a dict, else `output`, or `output_0`, `output_1`..."""
    with torch.no_grad():
        expected = module(*example.args, **example.kwargs)
    if isinstance(expected, Mapping) and len(expected) == count:
        return tuple(str(key) for key in expected)
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))


def _kind(program: Any) -> str:
    return "torch.export program" if isinstance(program, torch.export.ExportedProgram) else "PyTorch module"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the screen; what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """The first cause of an exporter's error in one line: the end of the chain says what really went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _lines(error, 1)


def _lines(error: BaseException, count: int = 3) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count]) or type(error).__name__
