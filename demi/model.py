"""`demi.load`: a bundle as a function of arrays, and of texts, images or sounds where it takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import msgspec

from demi.arguments import require
from demi.errors import BundleError, InputError
from demi.runtime.base import Device, Session
from demi.runtime.options import RUNTIMES
from demi.tensors import Array, Feeds, TensorSpec, check_feeds

if TYPE_CHECKING:
    from demi.bundles.bundle import Bundle
    from demi.generation.generator import Generator
    from demi.plan import PrecisionPlan
    from demi.processing.processor import Processor
    from demi.runtime.onnxruntime.session import SessionSettings

PRECISIONS = ("auto", "half", "fp32")


class Model:
    """A bundle's model, loaded and warm: `model(x=array)` or `model.run({"x": array})`. Safe to call from several threads.

    Use it as a context manager, or call `close`, to free its memory at a certain time.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        precision: str,
        runtime: str = "onnxruntime",
        note: str = "",
        encoder: Session | None = None,
    ) -> None:
        self._bundle = bundle
        self._session: Session | None = session
        self._encoder = encoder
        self.precision = precision
        """Precision of the loaded model: `fp16`, `bf16` or `fp32`."""
        self.runtime = runtime
        """The runtime on a CPU: `onnxruntime` or `openvino`."""
        self.note = note
        """The reason that it does not run as exported, or the result of half's proof on this CPU; else empty."""

    @property
    def name(self) -> str:
        """The model's name, from the manifest."""
        return self._bundle.manifest.name

    @property
    def version(self) -> int:
        """The bundle's version."""
        return self._bundle.manifest.version

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return self._bundle.path

    @property
    def device(self) -> str:
        """The device that it runs on: `cpu` or `cuda:N`."""
        return str(self._open().device)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs: names, dtypes and shapes; a name in a shape is a free axis."""
        return self._open().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs, as `inputs`."""
        return self._open().outputs

    @cached_property
    def plan(self) -> PrecisionPlan:
        """The precision plan: for every float node half or FP32, and the reason."""
        from demi.bundles import manifest as manifests
        from demi.plan import read_plan

        return read_plan(self._bundle.path / manifests.PLAN)

    @cached_property
    def accuracy(self) -> Mapping[str, Any]:
        """The accuracy measured at export, as in `accuracy.json` (docs/bundle.md); BundleError when it cannot be read."""
        from demi.bundles import manifest as manifests

        try:
            found: dict[str, Any] = msgspec.json.decode((self._bundle.path / manifests.ACCURACY).read_bytes())
        except (OSError, ValueError) as error:
            raise BundleError(
                f"`{manifests.ACCURACY}` cannot be read: {error}",
                where=str(self._bundle.path),
                hint="export the model again",
            ) from error
        return found

    @cached_property
    def processor(self) -> Processor | None:
        """The processor of texts, images or sounds into inputs, and of outputs into answers; None for a bundle of tensors."""
        from demi.processing.processor import open_processor

        return open_processor(self._bundle)

    @cached_property
    def generator(self) -> Generator | None:
        """The generator of texts, token by token; None for a bundle that does not."""
        from demi.generation.generator import open_generator

        return open_generator(self._bundle)

    def generate(
        self,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        truncate: bool = False,
        language: str | None = None,
        **raw: Any,
    ) -> list[str]:
        """Return the texts that are generated greedily, one for each `text=` or `audio=`, which is one or a list.

        At most `max_tokens` new tokens each, 64 by default for a text that is continued; a text of `stop` ends it.
        `language` is the code of the language that speech is written in; without it, a model that has several detects it.
        Raises InputError for a bundle that does not generate, or for an input that cannot be read, and InferenceError when
        the runtime fails or logits are NaN or infinite.
        """
        from demi.generation.generator import Options
        from demi.generation.run import generate
        from demi.processing.rows import raw_rows

        session, generator = self._open(), self.generator
        if generator is None:
            raise InputError(f"`{self.name}` does not generate texts", hint="call the model with its inputs")
        rows = raw_rows(raw, generator.inputs, truncate=truncate)
        texts, options = [""] * len(rows), Options(max_tokens, tuple(stop), language)
        for place, piece in generate(generator, rows, session, self._encoder, options):
            texts[place] += piece.text
        return texts

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None, *, truncate: bool = False) -> Feeds:
        """Return the outputs (all, or those named) for one set of inputs.

        Inputs are arrays, lists or tensors; floats of another width are cast where nothing overflows. Raw inputs are
        texts, or the paths or bytes of images or sounds: one, or a list. Their outputs are by default the answers, such
        as `embedding`; with `truncate`, texts and sounds that are too long are cut.

        Raises TensorError, which names the input that does not fit, InputError for an output that the model does not
        have or a raw input that cannot be read, and InferenceError when the runtime fails.
        """
        session = self._open()
        require(feeds, Mapping, "feeds", "a {input name: array}")
        names = {spec.name for spec in session.inputs}
        processor = None if names >= feeds.keys() else self.processor
        if processor is not None and any(spec.name in feeds for spec in processor.inputs):
            return self._run_raw(processor, session, feeds, outputs, truncate=truncate)
        if processor is not None:
            unknown_input = next(name for name in feeds if name not in names)
            raise InputError(
                f"unknown input `{unknown_input}`",
                hint=f"the model takes {', '.join(spec.name for spec in processor.inputs)}, or {', '.join(sorted(names))}",
            )
        known = [spec.name for spec in session.outputs]
        if unknown := [name for name in outputs or () if name not in known]:
            raise InputError(f"the model has no output `{unknown[0]}`", hint="its outputs are " + ", ".join(known))
        floats = {spec.name for spec in session.inputs if spec.dtype.is_float}
        arrays = {str(name): _array(value, str(name), whole_too=name in floats) for name, value in feeds.items()}
        return session.run(check_feeds(session.inputs, arrays, cast_floats=True), outputs)

    def __call__(self, *, truncate: bool = False, **inputs: Any) -> Feeds:
        """Return all outputs for inputs given by name; `run` takes names that are not identifiers."""
        return self.run(inputs, truncate=truncate)

    def _run_raw(
        self,
        processor: Processor,
        session: Session,
        raw: Mapping[str, Any],
        outputs: Sequence[str] | None,
        *,
        truncate: bool,
    ) -> Feeds:
        from demi.processing.rows import raw_rows

        known = [spec.name for spec in (*processor.answers, *session.outputs)]
        if unknown := [name for name in outputs or () if name not in known]:
            raise InputError(f"the model has no output `{unknown[0]}`", hint="its outputs are " + ", ".join(known))
        names = list(outputs or [spec.name for spec in processor.answers or session.outputs])
        rows = raw_rows(raw, [spec.name for spec in processor.inputs], truncate=truncate)
        return processor.run(
            rows, names, lambda feeds, wanted: session.run(check_feeds(session.inputs, feeds, cast_floats=True), wanted)
        )

    def close(self) -> None:
        """Free the session; a later run raises InputError."""
        self._session = self._encoder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        where = str(self._session.device) if self._session else "closed"
        return f"Model({self.name!r}, version={self.version}, precision={self.precision!r}, device={where!r})"

    def _open(self) -> Session:
        if self._session is None:
            raise InputError(f"the model `{self.name}` was closed", hint="load it again with demi.load")
        return self._session


def load(
    path: str | Path, *, device: str = "cpu", runtime: str = "auto", precision: str = "auto", threads: int = 0
) -> Model:
    """Load a bundle, verified and warm, as `demi serve` would run it.

    Args:
        path: a bundle, or a model's folder, whose newest version is taken.
        device: `cpu`, `cuda` or `cuda:N`; an engine beside the bundle is used where it was built on this machine.
        runtime: what runs it on a CPU: `auto`, `onnxruntime` or `openvino`, as for `demi serve`.
        precision: `auto` is what `demi serve` would take on this device, on a CPU half only where it was proved to be right
            and faster there; `half` insists on half, and `fp32` is the bundle's reference.
        threads: CPU threads of one run; 0 is one per core.

    A model that ends the process that opens it is found in a process of its own, which raises CrashError here. Raises
    BundleError or DigestError for a bundle that is missing, damaged or without the requested model, and
    DeviceError for a device that cannot be used.
    """
    from demi.bundles.bundle import open_bundle

    require(path, (str, Path), "path", "the path of a bundle")
    require(threads, int, "threads", "a whole number")
    place = Device.parse(device)
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision `{precision}`", where="precision", hint="use auto, half or fp32")
    if runtime not in RUNTIMES:
        raise InputError(f"unknown runtime `{runtime}`", where="runtime", hint="use auto, onnxruntime or openvino")
    bundle = open_bundle(Path(path))
    if precision == "fp32":
        encoder = bundle.encoder()
        session = _open_reference(bundle, place, threads)
        return Model(bundle, session, "fp32", encoder=_open_reference(encoder, place, threads) if encoder else None)
    from demi.engines.key import key_path
    from demi.server.models.cpu_choice import prove_here
    from demi.server.models.loading import load_bundle
    from demi.server.settings import ServeSettings

    settings = ServeSettings(devices=(place,), threads=threads, engine_key=key_path())
    chosen = replace(settings, runtime=cast(Any, runtime), precision=cast(Any, precision))
    loaded = load_bundle(bundle.path, chosen, _open_tried, prove=prove_here, verify=False)  # it was, above
    encoding = loaded.encoder.session if loaded.encoder else None
    return Model(bundle, loaded.session, loaded.precision, loaded.runtime, loaded.note, encoding)


def _open_reference(bundle: Bundle, device: Device, threads: int) -> Session:
    from demi.runtime.onnxruntime.session import SessionSettings

    if bundle.reference_path is None:
        raise BundleError(
            "the bundle holds no FP32 reference", where=str(bundle.path), hint="export it without --no-reference"
        )
    return _open_tried(bundle.reference_path, device, SessionSettings(threads=threads))


def _open_tried(path: Path, device: Device, settings: SessionSettings) -> Session:
    from demi.runtime.onnxruntime.first_open import open_tried

    return open_tried(path, device, settings)


def _array(value: Any, name: str, *, whole_too: bool) -> Array:
    """Return what `value` holds; with `whole_too`, the whole numbers of a list are floats, as `[1, 2]` is meant."""
    from demi.arrays import as_array

    try:
        array = as_array(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"input `{name}` is not an array: {str(error).splitlines()[0]}", where=name) from error
    return array.astype(float) if whole_too and not hasattr(value, "dtype") and array.dtype.kind == "i" else array
