"""TensorRT engines of `demi export --tensorrt`: for the bundle just written, or for one that is there."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console
from demi.cli.engine_options import engine_document, print_engine
from demi.errors import DemiError, InputError

if TYPE_CHECKING:
    from demi.exporter.tensorrt.build import BuiltEngine
    from demi.exporter.tensorrt.builder import EngineOptions


def require_builder(engine: EngineOptions) -> None:
    """Raise MissingError before the long part when no engine can be built here."""
    from demi.exporter.tensorrt import build

    build.require_builder(engine.device)


def is_bundle(path: Path) -> bool:
    """Return whether a model's path is that of a bundle, or of a folder of bundles."""
    from demi.bundles.find import bundles_at

    return bool(bundles_at(path))


def add_engine(args: argparse.Namespace, engine: EngineOptions | None, console: Console) -> int:
    """Build an engine for an existing bundle."""
    if engine is None:
        raise InputError(
            "this is already a bundle, or a folder of bundles",
            where=str(args.model),
            hint="add --tensorrt to build an engine for it",
        )
    built = _build(args.model, engine, console)
    if args.json:
        console.json(engine_document(built))
    else:
        print_engine(built, console)
    return 0


def _build(path: Path, engine: EngineOptions, console: Console) -> BuiltEngine:
    from demi.bundles.bundle import open_bundle
    from demi.exporter.tensorrt.build import build_engine

    with console.quiet():
        return build_engine(open_bundle(path), engine, console.step)


def build_beside(path: Path, engine: EngineOptions, console: Console) -> BuiltEngine:
    """Build an engine for the bundle just written, which stays even when the build fails."""
    try:
        return _build(path, engine, console)
    except DemiError:
        console.note(f"note: the bundle was written without an engine: {path}")
        raise
