"""Load modules from pickles, and from weights with a factory.

A `.pt` file is untrusted. Weights are read with `weights_only`; a pickled module is code, and is read only when the
user trusts it.
"""

from __future__ import annotations

import importlib
import pickle
import pickletools
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from demi.errors import SourceError, missing_package
from demi.exporter.pytorch.errors import cause, first_lines, load_or_raise
from demi.exporter.sources.options import SourceKind, SourceOptions, check_options
from demi.user_code import current_folder_importable

STATES = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params"),
    *("ema", "ema_state_dict", "model_ema"),
)
"""Keys under which training checkpoints keep the weights, the most common first."""

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""Prefixes that DataParallel, torch.compile and trainers add to the names of a module's weights."""

NAMES_SHOWN = 3
"""Parameters that a message names of those that do not fit a module."""


def load_safetensors(path: Path, options: SourceOptions) -> torch.nn.Module:
    """Load weights from a `.safetensors` file into the module that the factory builds."""
    return _with_state(_load_safetensors(path), options, path)


def load_pickle(path: Path, options: SourceOptions) -> torch.nn.Module:
    """Load a module from a pickle (when trusted), or weights from one into the module that the factory builds."""
    loaded = _unpickle(path, trusted=options.trust_pickle)
    if (module := _find_module(loaded)) is not None:
        check_options(options, SourceKind.PICKLED_MODULE, path)
        return module.eval()
    return _with_state(loaded, options, path)


def _unpickle(path: Path, *, trusted: bool) -> Any:
    """Read what `torch.save` wrote: tensors alone, or any object where the file is trusted."""
    if not zipfile.is_zipfile(path) and not _is_pickle(path):
        raise SourceError(
            "PyTorch cannot read the file: it is neither an archive nor a complete pickle, as torch.save writes them",
            where=str(path),
            hint="is it a .pt file, and complete?",
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise _unreadable(path, error) from error
        if not trusted:
            raise SourceError(
                f"this is a pickled module or other object{_refused_global(error)}, and a pickle can run any code when it is loaded",
                where=str(path),
                hint="if you trust where it comes from, add --trust-pickle; better, save it with torch.export.save (.pt2)",
            ) from error
    except Exception as error:
        raise _unreadable(path, error) from error
    with current_folder_importable():  # as when running a script
        return _load_any(path)


def _load_safetensors(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise missing_package("safetensors", "examples") from error
    state: Mapping[str, torch.Tensor] = load_or_raise(lambda: load_file(path), path)
    return state


def _refused_global(error: BaseException) -> str:
    """Return the class that PyTorch refused to load, in parentheses; empty where it names none."""
    found = re.search(r"Unsupported (?:global|class|operand)[^:]*:? ?(?:GLOBAL )?([\w.]+\.\w+)", str(error))
    return f" (`{found[1]}`)" if found else ""


def _load_any(path: Path) -> Any:
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


def _is_pickle(path: Path) -> bool:
    """Return whether a file starts with a complete pickle; the pickle is parsed, not run."""
    try:
        with path.open("rb") as file:
            return all(True for _ in pickletools.genops(file))
    except Exception:  # any error means that the bytes are not a pickle
        return False


def _unreadable(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"PyTorch cannot read the file: {cause(error)}", where=str(path), hint="is it a .pt file, and complete?"
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
            f"this is {_kind_of(loaded)} ({len(state)} tensors): it holds weights, but not the module they belong to",
            where=str(path),
            hint="name what builds the module: --model package.module:factory",
        )
    module = _build(options.factory)
    try:
        module.load_state_dict(_unwrapped(state, module.state_dict().keys()))
    except RuntimeError as error:
        why = _shortened(first_lines(error))
        raise SourceError(
            f"the weights do not fit the module of `{options.factory}`: {why}", where=str(path)
        ) from error
    return module.eval()


def _kind_of(loaded: Mapping[Any, Any]) -> str:
    """Return what a file of weights is: a bare state_dict, or a training checkpoint with the weights under a key."""
    for name in STATES:
        if isinstance(inner := loaded.get(name), Mapping) and _find_state(inner) is not None:
            return f"a training checkpoint with weights under `{name}`"
    return "a bare state_dict"


def _shortened(message: str) -> str:
    """Return PyTorch's message with the first names of each long list of parameters, and their number."""

    def shorten(found: re.Match[str]) -> str:
        names = found[0].split(", ")
        return f"{', '.join(names[:NAMES_SHOWN])} and {len(names) - NAMES_SHOWN} more"

    return re.sub(rf'(?:"[^"]*", ){{{NAMES_SHOWN},}}"[^"]*"', shorten, message)


def _find_module(loaded: Any) -> torch.nn.Module | None:
    """Return the module in a trusted pickle: the whole object, or the value under one of the usual keys."""
    held = [loaded, *(loaded.get(name) for name in STATES)] if isinstance(loaded, Mapping) else [loaded]
    return next((each for each in held if isinstance(each, torch.nn.Module)), None)


def _find_state(loaded: Any) -> Mapping[str, torch.Tensor] | None:
    """Return the weights in a loaded object: the whole object, or the value under one of the usual keys, also nested."""
    if not isinstance(loaded, Mapping):
        return None
    for name in STATES:
        if isinstance(inner := loaded.get(name), Mapping) and (state := _find_state(inner)) is not None:
            return state
    tensors = all(isinstance(value, torch.Tensor) for name, value in loaded.items() if not _is_extra(name))
    return {name: value for name, value in loaded.items() if isinstance(name, str)} if loaded and tensors else None


def _is_extra(name: Any) -> bool:
    """Return whether a key of a state_dict is extra state that modules keep next to their tensors."""
    return isinstance(name, str) and name.endswith("_extra_state")


def _unwrapped(state: Mapping[str, torch.Tensor], wanted: Collection[str]) -> dict[str, torch.Tensor]:
    """Return the weights under the module's own names, without the prefixes of wrappers."""
    names = set(wanted)
    while not names & state.keys():
        prefix = next((each for each in WRAPPERS if state and all(name.startswith(each) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return dict(state)


def _build(factory: str) -> torch.nn.Module:
    """Build the module with the user's `package.module:factory`, from the current folder or installed."""
    module_name, colon, attribute = factory.partition(":")
    try:
        if not colon:
            raise ValueError("it has no `:`")
        with current_folder_importable():
            built = getattr(importlib.import_module(module_name), attribute)()
    except (Exception, SystemExit) as error:  # user code may call exit: it must not look like success
        raise SourceError(
            f"`{factory}` cannot build a module: {type(error).__name__}: {error}",
            where="--model",
            hint="write package.module:factory, from the current folder or installed; it is called without arguments",
        ) from error
    if not isinstance(built, torch.nn.Module):
        raise SourceError(f"`{factory}` returned a {type(built).__name__}, not a torch.nn.Module", where="--model")
    return built
