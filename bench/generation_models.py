"""Models of the shapes of T5-small, Whisper-tiny and GPT-2 with random weights, as transformers folders."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

PROMPT = 32
"""Tokens of a text."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model's folder, its task, samples to measure on, and one raw input."""

    folder: Path
    task: str
    samples: Path
    raw: dict[str, Any]
    transformers: Callable[[int], Callable[[], int]]
    """Returns, for a number of tokens, what generates them with transformers in eager FP32."""


def _t5() -> Any:
    config = transformers.T5Config(
        vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def _tiny() -> Any:
    config = transformers.T5Config(
        vocab_size=32128, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=None, initializer_factor=6.0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def _whisper() -> Any:
    config = transformers.WhisperConfig(
        vocab_size=51865, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, decoder_start_token_id=1, pad_token_id=0,
        bos_token_id=1, eos_token_id=None, suppress_tokens=None, begin_suppress_tokens=None, init_std=0.05,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def _gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(bos_token_id=1, eos_token_id=None))


SHAPES: dict[str, tuple[Callable[[], Any], str]] = {
    "t5-small": (_t5, "text2text-generation"),
    "whisper-tiny": (_whisper, "automatic-speech-recognition"),
    "gpt2": (_gpt2, "text-generation"),
    "tiny": (_tiny, "text2text-generation"),
}
"""For each shape, the function that makes its model, and its task; `tiny` is for trying the benchmark out."""


def make_folder(shape: str, folder: Path) -> Subject:
    """Return a model of this shape, saved in `folder` unless it is there."""
    make, task = SHAPES[shape]
    speech = task == "automatic-speech-recognition"
    samples = folder / ("sounds" if speech else "texts.txt")
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{index}" for index in rng.integers(2, 30_000, PROMPT)) for _ in range(4)]
    if not samples.exists():
        torch.manual_seed(0)
        model = make().eval()
        model.generation_config.eos_token_id = None
        model.save_pretrained(folder)
        _save_tokenizer(folder, model.config.vocab_size)
        if speech:
            transformers.WhisperFeatureExtractor().save_pretrained(folder)
            samples.mkdir()
            for index in range(4):
                (samples / f"{index}.wav").write_bytes(_sound(rng))
        else:
            samples.write_text("\n".join(texts))
    raw = {"audio": (samples / "0.wav").read_bytes()} if speech else {"text": texts[0]}
    return Subject(folder, task, samples, raw, lambda tokens: _generating(folder, task, raw, tokens))


def _generating(folder: Path, task: str, raw: dict[str, Any], tokens: int) -> Callable[[], int]:
    kind = {
        "text-generation": "AutoModelForCausalLM",
        "text2text-generation": "AutoModelForSeq2SeqLM",
        "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
    }[task]
    model = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager").eval()
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens}
    if task == "automatic-speech-recognition":
        extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)

        def transcribe() -> int:
            samples, rate = soundfile.read(io.BytesIO(raw["audio"]), dtype="float32")
            features = extractor(samples, sampling_rate=rate, return_tensors="pt")["input_features"]
            model.generate(features, **options)
            return tokens

        return transcribe
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def write() -> int:
        ids = tokenizer(raw["text"], return_tensors="pt")["input_ids"]
        model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options)
        return tokens

    return write


def _save_tokenizer(folder: Path, size: int) -> None:
    words = {"<pad>": 0, "<start>": 1} | {f"w{index}": index for index in range(2, size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    saved = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=512)
    saved.save_pretrained(folder)


def _sound(rng: np.random.Generator) -> bytes:
    """Return ten seconds of tones that rise and fall, as WAV."""
    times = np.arange(160_000) / 16_000
    pitch = 200 + 100 * np.sin(2 * np.pi * times * rng.uniform(0.2, 2))
    samples = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + rng.normal(0, 0.01, times.size)
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), 16_000, format="WAV", subtype="PCM_16")
    return file.getvalue()
