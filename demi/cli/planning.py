"""Options that `demi export` and `demi calibrate` share: the source model and how it is planned."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.accuracy.budget import parse_budget
from demi.cli.options import add_budget, not_negative, positive, seconds
from demi.errors import InputError
from demi.tensors import parse_spec

if TYPE_CHECKING:
    from demi.exporter.planning.find_plan import PlanSettings
    from demi.exporter.processing.found import ProcessingOptions
    from demi.exporter.sources.options import SourceOptions


DEFAULT_PRECISION = "fp16"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model: a file or folder, or `--hf` for a transformers folder."""
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL",
        help=".pt2 (torch.export), .pt (TorchScript, module or state_dict), .safetensors, .onnx or a transformers folder",
    )
    parser.add_argument(
        "--hf",
        type=Path,
        metavar="DIR",
        help="a folder written by transformers' save_pretrained, instead of MODEL; see --task",
    )


def model_path(args: argparse.Namespace) -> Path:
    """Return the path of the model; raise InputError when it is given twice or not at all."""
    path: Path | None = args.model or args.hf
    if path is None:
        raise InputError("no model was given", hint="name a model file, or a transformers folder with --hf DIR")
    if args.model and args.hf:
        raise InputError(
            "both a model and --hf were given", where=f"{args.model}, --hf {args.hf}", hint="give only one of them"
        )
    if args.hf and not args.hf.is_dir():
        raise InputError("--hf takes a folder", where=str(args.hf), hint="name a model file without --hf")
    return path


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for everything that a model file leaves open."""
    group = parser.add_argument_group("the source")
    group.add_argument(
        "--sample",
        "--data",
        dest="sample",
        metavar="NPZ",
        help="real inputs, on which ranges and accuracy are measured: an .npz file with arrays by name, a folder of them, or package.module:function that yields them; with raw inputs also a .txt, .csv or .jsonl of texts, or a folder of images or sounds",
    )
    group.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SPEC",
        help="an input as name:dtype[dims], e.g. input_ids:int64[batch,seq]; a name stands for an axis of any size; repeatable",
    )
    group.add_argument("--output-names", default="", metavar="A,B", help="names for the outputs, in order")
    group.add_argument(
        "--model", dest="factory", metavar="PKG.MOD:FACTORY", help="function that builds the module for a state_dict"
    )
    group.add_argument("--task", metavar="TASK", help="task of a transformers model, e.g. text-classification")
    group.add_argument(
        "--trust-pickle",
        action="store_true",
        help="load a file that contains code, such as a pickled module, and run that code",
    )
    _add_raw_inputs(parser)
    group.add_argument("--opset", type=positive, metavar="N", help="ONNX opset for exporting PyTorch models")
    group.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="seed for randomly drawn inputs (default: 0)"
    )


def _add_raw_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the options for models that take texts, images or sounds; a transformers folder with --task has it all."""
    group = parser.add_argument_group("raw inputs (docs/raw-inputs.md)")
    group.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json, or a folder with it: the bundle takes texts"
    )
    group.add_argument(
        "--image-processor",
        type=Path,
        metavar="FILE",
        help="preprocessor_config.json of an image processor, or a folder with it: the bundle takes images",
    )
    group.add_argument(
        "--feature-extractor",
        type=Path,
        metavar="FILE",
        help="preprocessor_config.json for sound, or a folder with it: the bundle takes WAV and FLAC",
    )
    group.add_argument(
        "--labels", type=Path, metavar="FILE", help="names of the classes, one a line, or JSON with id2label"
    )
    group.add_argument("--max-tokens", type=positive, metavar="N", help="most tokens of a text that the model takes")
    group.add_argument(
        "--pooling",
        choices=("mean", "cls", "last", "max"),
        help="from the vectors of tokens to that of a text (default: mean)",
    )
    group.add_argument("--normalize", action="store_true", help="scale the vectors of texts to length 1")


def _processing_options(args: argparse.Namespace) -> ProcessingOptions:
    from demi.exporter.processing.found import ProcessingOptions

    return ProcessingOptions(
        tokenizer=args.tokenizer,
        image_processor=args.image_processor,
        feature_extractor=args.feature_extractor,
        labels=args.labels,
        max_tokens=args.max_tokens,
        pooling=args.pooling,
        normalize=args.normalize,
    )


def source_options(args: argparse.Namespace) -> SourceOptions:
    """Return those options, with the samples read."""
    from demi.calibration.raw_data import is_raw
    from demi.calibration.samples import load_arrays
    from demi.exporter.sources.options import SourceOptions

    raw = args.sample is not None and is_raw(args.sample)
    return SourceOptions(
        samples=tuple(load_arrays(args.sample)) if args.sample is not None and not raw else (),
        raw_samples=args.sample if raw else None,
        processing=_processing_options(args),
        inputs=tuple(parse_spec(text) for text in args.input),
        output_names=tuple(name.strip() for name in args.output_names.split(",") if name.strip()),
        factory=args.factory,
        trust_pickle=args.trust_pickle,
        task=args.task,
        opset=args.opset,
        seed=args.seed,
    )


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide a plan."""
    group = parser.add_argument_group("the precision plan")
    half = group.add_mutually_exclusive_group()
    half.add_argument(
        "--fp16", action="store_const", dest="precision", const="fp16", help="IEEE half precision (default)"
    )
    half.add_argument(
        "--bf16",
        action="store_const",
        dest="precision",
        const="bf16",
        help="bfloat16: the range of FP32 with fewer digits",
    )
    parser.set_defaults(precision=None)
    add_budget(group, "relative_l2=1e-2")
    group.add_argument(
        "--keep-fp32",
        action="append",
        default=[],
        metavar="NODE",
        help="node name, glob or operator type to keep in FP32; repeatable",
    )
    group.add_argument(
        "--force-half",
        action="append",
        default=[],
        metavar="NODE",
        help="node name, glob or operator type to force to half, overriding measurements; repeatable",
    )
    group.add_argument(
        "--no-optimize", action="store_true", help="plan the graph as it is: do not fold constants or fuse operators"
    )
    group.add_argument(
        "--no-rescale",
        action="store_true",
        help="leave constants as they are where ranges leave FP16, instead of multiplying them by powers of two that cancel",
    )
    group.add_argument(
        "--no-calibrate",
        action="store_true",
        help="decide by operator lists alone: faster, but without regard to values",
    )
    group.add_argument(
        "--search-seconds",
        type=seconds,
        default=60.0,
        metavar="S",
        help="time limit for the plan search (default: 60)",
    )
    group.add_argument(
        "--costs",
        type=Path,
        metavar="JSON",
        help="cost table of the target device: bandwidth, half_flops, single_flops, launch_s, rows",
    )


def plan_settings(args: argparse.Namespace) -> PlanSettings:
    """Return the settings that those options describe."""
    from demi.exporter.planning.costs import DeviceCosts, read_costs
    from demi.exporter.planning.find_plan import PlanSettings

    return PlanSettings(
        precision=args.precision or DEFAULT_PRECISION,
        budget=parse_budget(args.budget),
        calibrate=not args.no_calibrate,
        keep_fp32=tuple(args.keep_fp32),
        force_half=tuple(args.force_half),
        search_seconds=args.search_seconds,
        device=read_costs(args.costs) if args.costs else DeviceCosts(),
        half_io=getattr(args, "half_io", False),
        rescale=not args.no_rescale,
    )
