"""Network shapes of the field with random weights, as ONNX files: for planning, conversion and speed, not for accuracy
of answers. The configurations are transformers' own classes with fewer and narrower layers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers

from exporter.passes.outputs import rename_axes

Feeds = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A module in eval mode, and how to draw its inputs."""

    module: torch.nn.Module
    draw: Callable[[np.random.Generator], Feeds]
    """Keyword arguments as NumPy arrays, with two rows or more."""


class First(torch.nn.Module):
    """A transformers model that returns its first output alone, and keeps no cache."""

    def __init__(self, model: torch.nn.Module, *names: str, **fixed: Any) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model, names, fixed

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        """The model's first output for the named inputs."""
        return self.model(**dict(zip(self.names, args, strict=True)), **self.fixed, return_dict=False)[0]


def tokens(vocabulary: int, length: int, mask: bool = False) -> Callable[[np.random.Generator], Feeds]:
    """Token ids, and a mask that ends one row early."""

    def draw(rng: np.random.Generator) -> Feeds:
        feeds: Feeds = {"input_ids": rng.integers(1, vocabulary, (4, length))}
        if mask:
            feeds["attention_mask"] = (np.arange(length) < rng.integers(length // 2, length + 1, (4, 1))).astype(
                np.int64
            )
        return feeds

    return draw


def floats(name: str, *shape: int) -> Callable[[np.random.Generator], Feeds]:
    """Standard normal floats."""
    return lambda rng: {name: rng.standard_normal(shape).astype(np.float32)}


def bert(layers: int = 4, width: int = 256, length: int = 32) -> Shape:
    """A BERT encoder."""
    config = transformers.BertConfig(
        vocab_size=2000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    return Shape(First(transformers.BertModel(config), "input_ids", "attention_mask"), tokens(2000, length, mask=True))


def gpt2(layers: int = 4, width: int = 256, length: int = 32) -> Shape:
    """A GPT-2 decoder with its language head."""
    config = transformers.GPT2Config(vocab_size=2000, n_embd=width, n_layer=layers, n_head=width // 64, n_positions=256)
    return Shape(First(transformers.GPT2LMHeadModel(config), "input_ids", use_cache=False), tokens(2000, length))


def t5(layers: int = 4, width: int = 256, length: int = 32) -> Shape:
    """A T5 encoder: RMS normalization and relative positions."""
    config = transformers.T5Config(
        vocab_size=2000, d_model=width, d_ff=4 * width, num_layers=layers, num_heads=width // 64, d_kv=64
    )
    config._attn_implementation = "eager"  # torch's exporter cannot decompose T5's views behind the fused attention
    return Shape(
        First(transformers.T5EncoderModel(config), "input_ids", "attention_mask"), tokens(2000, length, mask=True)
    )


def llama(layers: int = 3, width: int = 256, length: int = 32) -> Shape:
    """A Llama decoder: RMS normalization and rotary positions."""
    config = transformers.LlamaConfig(
        vocab_size=2000,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=512,
    )
    return Shape(
        First(transformers.LlamaForCausalLM(config), "input_ids", "attention_mask", use_cache=False),
        tokens(2000, length, mask=True),
    )


def vit(layers: int = 4, width: int = 192) -> Shape:
    """A vision transformer."""
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=3,
        intermediate_size=4 * width,
        image_size=64,
        patch_size=16,
        num_labels=100,
    )
    return Shape(
        First(transformers.ViTForImageClassification(config), "pixel_values"), floats("pixel_values", 4, 3, 64, 64)
    )


def convnext() -> Shape:
    """A ConvNeXt classifier."""
    config = transformers.ConvNextConfig(
        hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 4, 2], num_labels=100, image_size=64
    )
    return Shape(
        First(transformers.ConvNextForImageClassification(config), "pixel_values"), floats("pixel_values", 4, 3, 64, 64)
    )


def resnet() -> Shape:
    """A ResNet classifier with bottlenecks."""
    config = transformers.ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], num_labels=100
    )
    return Shape(
        First(transformers.ResNetForImageClassification(config), "pixel_values"), floats("pixel_values", 4, 3, 64, 64)
    )


def whisper(layers: int = 3, width: int = 192) -> Shape:
    """A Whisper encoder over three seconds of mel features."""
    config = transformers.WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=3,
        encoder_ffn_dim=4 * width,
        decoder_layers=1,
        decoder_attention_heads=3,
        max_source_positions=150,
        num_mel_bins=80,
    )
    encoder = transformers.WhisperModel(config).encoder
    return Shape(First(encoder, "input_features"), floats("input_features", 2, 80, 300))


class Recurrent(torch.nn.Module):
    """A two-layer LSTM with a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(64, 128, num_layers=2, batch_first=True)
        self.head = torch.nn.Linear(128, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores for each step."""
        states, _ = self.lstm(x)
        return self.head(states)


def lstm() -> Shape:
    """A recurrent tagger."""
    return Shape(Recurrent(), floats("x", 4, 24, 64))


SHAPES: dict[str, Callable[[], Shape]] = {
    f.__name__: f for f in (bert, gpt2, t5, llama, vit, convnext, resnet, whisper, lstm)
}


def export_shape(name: str, folder: Path, seed: int = 0) -> tuple[Path, list[Feeds]]:
    """The shape's ONNX file in `folder` (made once), and four sets of inputs for it."""
    torch.manual_seed(seed)
    shape = SHAPES[name]()
    rng = np.random.default_rng(seed)
    sets = [shape.draw(rng) for _ in range(4)]
    path = folder / f"{name}.onnx"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        args = tuple(torch.from_numpy(array) for array in sets[0].values())
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                shape.module.eval(), args, dynamo=True, verbose=False, input_names=list(sets[0])
            )
        assert program is not None
        rename_axes(program.model, {})
        onnx.checker.check_model(program.model_proto)
        program.save(path)
    return path, sets
