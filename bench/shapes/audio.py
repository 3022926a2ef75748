"""Shapes that read sound: features or waveforms."""

from __future__ import annotations

import transformers

from bench.shapes.base import ROWS, First, Shape, floats, together, tokens


def _whisper(layers: int, width: int, decoder_layers: int = 1) -> transformers.WhisperModel:
    return transformers.WhisperModel(
        transformers.WhisperConfig(
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=width // 64,
            encoder_ffn_dim=4 * width,
            decoder_layers=decoder_layers,
            decoder_attention_heads=width // 64,
            decoder_ffn_dim=4 * width,
            max_source_positions=150,
            max_target_positions=64,
            num_mel_bins=80,
            vocab_size=2000,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
            decoder_start_token_id=1,
        )
    )


def whisper(layers: int = 3, width: int = 192) -> Shape:
    """A Whisper encoder over three seconds of mel features."""
    return Shape(First(_whisper(layers, width).encoder, "input_features"), floats("input_features", 2, 80, 300))


def whisper_decoder(layers: int = 2, width: int = 128) -> Shape:
    """A Whisper decoder that attends to an encoder's states."""
    return Shape(
        First(_whisper(1, width, layers).decoder, "input_ids", "encoder_hidden_states", use_cache=False),
        together(tokens(2000, 16), floats("encoder_hidden_states", ROWS, 24, width)),
    )


def wav2vec2(layers: int = 2, width: int = 64) -> Shape:
    """A wav2vec2 recognizer over raw sound: convolutions with group norm, a convolution of positions, attention."""
    config = transformers.Wav2Vec2Config(
        vocab_size=32,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=4 * width,
        conv_dim=(32, 32, 32, 32),
        conv_kernel=(10, 3, 3, 2),
        conv_stride=(5, 2, 2, 2),
        feat_extract_norm="group",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    return Shape(First(transformers.Wav2Vec2ForCTC(config), "input_values"), floats("input_values", 2, 1600))
