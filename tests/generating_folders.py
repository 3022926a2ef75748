"""Tiny random transformers models that generate, saved as folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.raw_inputs import wav

SIZE = 64
"""Words in the vocabulary."""

PROMPTS = ["w5 w9 w11 w3", "w40", "w8 w8 w30 w31 w32 w33 w2"]


def save_words(folder: Path, *, ends: bool = False) -> None:
    """Save a tokenizer of the words w2 to w63, with `<pad>` and `<end>`; with `ends`, a text ends with `<end>`."""
    words = {"<pad>": 0, "<end>": 1} | {f"w{index}": index for index in range(2, SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 1)])
    saved = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", model_max_length=48
    )
    saved.save_pretrained(folder)


def gpt2(folder: Path) -> Path:
    """Save a GPT-2 of two layers, and prompts to measure on. Its weights are large, so that it does not repeat itself."""
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=SIZE, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1, initializer_range=0.3
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).eval().save_pretrained(folder)
    save_words(folder)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def continued(folder: Path, prompt: str, tokens: int) -> str:
    """Return what transformers generates greedily."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=0
    )
    return tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


def t5(folder: Path) -> Path:
    """Save a T5 of a layer on each side, and texts to measure on."""
    torch.manual_seed(1)
    config = transformers.T5Config(
        vocab_size=SIZE, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_decoder_layers=1, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, initializer_factor=6.0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).eval().save_pretrained(folder)
    save_words(folder, ends=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def answered(folder: Path, prompt: str, tokens: int) -> str:
    """Return what transformers' encoder-decoder generates greedily for a text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    found = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens)
    return tokenizer.decode(found[0], skip_special_tokens=True)


def whisper(folder: Path, **settings: object) -> Path:
    """Save a Whisper for sounds of one second, and sounds to measure on; `settings` are those of its generation."""
    torch.manual_seed(7)
    config = transformers.WhisperConfig(
        vocab_size=SIZE, num_mel_bins=16, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=50, max_target_positions=32,
        decoder_start_token_id=2, pad_token_id=0, bos_token_id=1, eos_token_id=1, init_std=0.4, suppress_tokens=None,
        begin_suppress_tokens=[5, 6],
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    if settings:
        model.generation_config._from_model_config = (
            False  # else it is made of the model's configuration when it is read
        )
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(folder)
    save_words(folder)
    sounds = folder / "sounds"
    sounds.mkdir()
    for index, sound in enumerate(SOUNDS):
        (sounds / f"{index}.wav").write_bytes(wav(sound, 16_000))
    return folder


MULTILINGUAL = {
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 3, "<|de|>": 4, "<|fr|>": 7},
    "task": "transcribe",
    "task_to_id": {"transcribe": 8, "translate": 9},
    "no_timestamps_token_id": SIZE - 1,
}
"""Settings of a Whisper that writes several languages."""

SOUNDS = [
    np.sin(2 * np.pi * 440 * np.arange(12_000, dtype=np.float32) / 16_000).astype(np.float32),
    np.random.default_rng(0).normal(0, 0.2, 16_000).astype(np.float32),
]


def transcribed(folder: Path, sound: np.ndarray, tokens: int, language: str | None = None) -> str:
    """Return what transformers' Whisper generates greedily for a sound, in a language or the one that it detects."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    features = extractor(sound, sampling_rate=16_000, return_tensors="pt")["input_features"]
    named = {"language": language} if language else {}
    found = model.generate(features, do_sample=False, max_new_tokens=tokens, **named)
    return tokenizer.decode(found[0], skip_special_tokens=True)
