"""Shapes that read token ids: encoders, decoders, and decoders that attend to an encoder."""

from __future__ import annotations

import transformers

from bench.shapes.base import ROWS, First, Shape, floats, together, tokens

VOCABULARY = 2000


def bert(layers: int = 4, width: int = 256, length: int = 32) -> Shape:
    """A BERT encoder."""
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    return Shape(
        First(transformers.BertModel(config), "input_ids", "attention_mask"), tokens(VOCABULARY, length, mask=True)
    )


def gpt2(layers: int = 4, width: int = 256, length: int = 32) -> Shape:
    """A GPT-2 decoder with its language head."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=width // 64, n_positions=256
    )
    return Shape(First(transformers.GPT2LMHeadModel(config), "input_ids", use_cache=False), tokens(VOCABULARY, length))


def _t5(layers: int, width: int) -> transformers.T5Config:
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_ff=4 * width,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=width // 64,
        d_kv=64,
    )
    config._attn_implementation = "eager"  # torch's exporter cannot decompose T5's views behind the fused attention
    return config


def t5(layers: int = 4, width: int = 256, length: int = 32) -> Shape:
    """A T5 encoder: RMS normalization and relative positions."""
    return Shape(
        First(transformers.T5EncoderModel(_t5(layers, width)), "input_ids", "attention_mask"),
        tokens(VOCABULARY, length, mask=True),
    )


def t5_decoder(layers: int = 2, width: int = 128, length: int = 16, source: int = 24) -> Shape:
    """A T5 decoder: causal relative positions, and attention to an encoder's states."""
    decoder = transformers.T5Model(_t5(layers, width)).decoder
    return Shape(
        First(decoder, "input_ids", "encoder_hidden_states", use_cache=False),
        together(tokens(VOCABULARY, length), floats("encoder_hidden_states", ROWS, source, width)),
    )


def llama(layers: int = 3, width: int = 256, length: int = 32) -> Shape:
    """A Llama decoder: RMS normalization and rotary positions."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=512,
    )
    return Shape(
        First(transformers.LlamaForCausalLM(config), "input_ids", "attention_mask", use_cache=False),
        tokens(VOCABULARY, length, mask=True),
    )
