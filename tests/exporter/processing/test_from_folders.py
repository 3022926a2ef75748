"""Bundles of transformers folders: raw inputs give what transformers' own pipelines give."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import demi
from demi.errors import InputError, SourceError
from demi.exporter.processing.find import find_in_files, find_in_folder, read_labels, sentence_pooling
from demi.exporter.processing.found import ProcessingOptions
from demi.exporter.processing.media import image_description
from demi.exporter.processing.raw_source import read_source
from demi.exporter.sources.options import SourceOptions
from demi.processing.description import Resize
from tests.raw_inputs import WORDS, png, tokenizer_json, wav

TEXTS = ["a cat sat down", "Paris", "a a a cat", "sat down a cat Paris unknown"]


def save_tokenizer(folder: Path, **options: object) -> None:
    """Save a tokenizer of whole words as transformers does."""
    (folder / "plain.json").write_bytes(tokenizer_json())
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "plain.json"), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=16, **options,
    )  # fmt: skip
    tokenizer.save_pretrained(folder)


def bert(folder: Path, kind: str, **options: object) -> Path:
    """Save a tiny BERT with a head, its tokenizer, and sentences to measure on."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **options
    )  # fmt: skip
    getattr(transformers, kind)(config).save_pretrained(folder)
    save_tokenizer(folder, model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    return folder


def exported(folder: Path, task: str, samples: str) -> demi.Model:
    """Export a folder and load the bundle in FP32."""
    result = demi.export(folder, folder / "out", task=task, samples=str(folder / samples), report=False)
    return demi.load(result.path, precision="fp32")


def test_text_classification_is_the_pipeline(tmp_path):
    """The same labels and scores for each text, alone and together."""
    names = {0: "bad", 1: "fine", 2: "good"}
    folder = bert(tmp_path, "BertForSequenceClassification", id2label=names, label2id={v: k for k, v in names.items()})
    classify = transformers.pipeline("text-classification", model=str(folder), top_k=None)

    with exported(folder, "text-classification", "texts.txt") as model:
        found = model(text=TEXTS)

    for index, wanted in enumerate(classify(TEXTS)):
        assert wanted[0]["label"] == found["label"][index]
        by_label = {each["label"]: each["score"] for each in wanted}
        assert np.allclose([by_label[name] for name in names.values()], found["scores"][index], atol=1e-6)


def test_feature_extraction_is_the_mean_of_the_tokens(tmp_path):
    """Without sentence-transformers files; the pooled output of BERT is not in the bundle."""
    folder = bert(tmp_path, "BertModel")
    extract = transformers.pipeline("feature-extraction", model=str(folder))

    with exported(folder, "feature-extraction", "texts.txt") as model:
        found = model(text=TEXTS)["embedding"]
        outputs = [spec.name for spec in model.outputs]

    assert ["last_hidden_state"] == outputs
    for text, vector in zip(TEXTS, found, strict=True):
        assert np.allclose(np.mean(extract(text)[0], axis=0), vector, atol=1e-5)


def test_token_classification_is_the_pipeline(tmp_path):
    """Tokens, places and scores."""
    folder = bert(tmp_path, "BertForTokenClassification", id2label={0: "O", 1: "X"}, label2id={"O": 0, "X": 1})
    tag = transformers.pipeline("token-classification", model=str(folder))

    with exported(folder, "token-classification", "texts.txt") as model:
        found = [json.loads(each) for each in model(text=TEXTS)["entities"]]

    wanted = tag(TEXTS)
    assert [[e["word"] for e in row] for row in wanted] == [[e["word"] for e in row] for row in found]
    for theirs, ours in zip(chain(*wanted), chain(*found), strict=True):
        assert [theirs[key] for key in ("entity", "index", "start", "end")] == [
            ours[key] for key in ("entity", "index", "start", "end")
        ]
        assert np.isclose(theirs["score"], ours["score"], atol=1e-5)


@pytest.mark.nightly
def test_pairs_are_scored_with_their_types(tmp_path):
    """The second text has type 1, which the model sees."""
    folder = bert(tmp_path, "BertForSequenceClassification", num_labels=1)
    (folder / "pairs.csv").write_text("text,text_pair\na cat,Paris\nsat down a,cat\n")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        encoded = tokenizer(["a cat", "sat"], ["Paris", "cat down"], padding=True, return_tensors="pt")
        wanted = torch.sigmoid(model(**encoded).logits[:, 0]).numpy()

    with exported(folder, "text-pair-scoring", "pairs.csv") as ours:
        found = ours(text=["a cat", "sat"], text_pair=["Paris", "cat down"])["score"]

    assert "token_type_ids" in encoded
    assert np.allclose(wanted, found, atol=1e-6)


def test_image_classification_is_the_pipeline(tmp_path):
    """A tiny ViT: resize, crop, scale, normalize; labels by score."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        id2label={0: "day", 1: "night"}, label2id={"day": 0, "night": 1},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, color in enumerate([(255, 0, 0), (9, 200, 30), (1, 2, 3)]):
        (pictures / f"{index}.png").write_bytes(png(color, (20, 30)))
    classify = transformers.pipeline("image-classification", model=str(tmp_path))

    with exported(tmp_path, "image-classification", "pictures") as model:
        found = model(image=sorted(pictures.iterdir()))

    for index, path in enumerate(sorted(pictures.iterdir())):
        wanted = classify(Image.open(path))
        assert wanted[0]["label"] == found["label"][index]
        assert np.isclose(wanted[0]["score"], found["scores"][index].max(), atol=1e-6)


@pytest.mark.nightly
def test_audio_classification_is_the_pipeline(tmp_path):
    """A tiny Wav2Vec2 on raw samples."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8),
        conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, classifier_proj_size=8, id2label={0: "yes", 1: "no"},
        label2id={"yes": 0, "no": 1},
    )  # fmt: skip
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    random = np.random.default_rng(0)
    for index, length in enumerate((1600, 2400, 2000)):
        (sounds / f"{index}.wav").write_bytes(wav(random.normal(0, 0.1, length).astype(np.float32), 16000))
    classify = transformers.pipeline("audio-classification", model=str(tmp_path))

    with exported(tmp_path, "audio-classification", "sounds") as model:
        found = model(audio=sorted(sounds.iterdir()))

    import soundfile

    for index, path in enumerate(sorted(sounds.iterdir())):
        wanted = classify(soundfile.read(path, dtype="float32")[0])
        assert wanted[0]["label"] == found["label"][index]
        assert np.isclose(wanted[0]["score"], found["scores"][index].max(), atol=1e-5)


def test_a_folder_without_a_tokenizer_is_exported_as_before(tmp_path):
    """The bundle takes tensors only, and a note says why."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)

    source, _ = read_source(tmp_path, SourceOptions(task="text-classification"))

    assert find_in_folder(tmp_path, "text-classification") is None
    assert source.processing is None
    assert any("holds no tokenizer, so the bundle takes tensors only" in note for note in source.notes)


def test_an_image_processor_with_other_steps_is_refused(tmp_path):
    """ConvNext crops a share of the image before it resizes."""
    transformers.ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.8).save_pretrained(tmp_path)

    with pytest.raises(SourceError, match="does more than resize, crop, scale and normalize"):
        image_description(tmp_path)


def test_an_image_processor_keeps_its_steps(tmp_path):
    """CLIP's: the shorter side, a crop, bicubic."""
    transformers.CLIPImageProcessor().save_pretrained(tmp_path)

    found = image_description(tmp_path / "preprocessor_config.json")

    assert (Resize("bicubic", shortest_edge=224), (224, 224)) == (found.resize, found.crop)


def test_any_source_takes_a_tokenizer(tmp_path):
    """The inputs that the model lacks are left out; a model with one vector a text is not pooled."""
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    source = tmp_path / "bag.onnx"
    source.write_bytes(_bag())

    result = demi.export(
        source, tmp_path / "bag", samples=str(tmp_path / "texts.txt"), report=False,
        processing=ProcessingOptions(tokenizer=tmp_path / "tokenizer.json", max_tokens=16, normalize=True),
    )  # fmt: skip

    with demi.load(result.path, precision="fp32") as model:
        found = model(text=["a cat", "Paris"])["embedding"]
    assert (2, 2) == found.shape
    assert np.allclose(1, np.linalg.norm(found, axis=1))


def _bag() -> bytes:
    """Return a bag of words without padding: the sum of the vectors of its tokens, padding's being zero."""
    from tests.server.bundles import serialized

    return serialized("""bag (int64[batch, tokens] input_ids) => (float[batch, 2] vector)
<float[9, 2] table = {0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 3.0, 4.0, 6.0, 8.0, -1.0, 2.0, 2.0, -1.0, 5.0, 12.0},
 int64[1] tokens_axis = {1}>
{ vectors = Gather(table, input_ids)
  vector = ReduceSum<keepdims = 0>(vectors, tokens_axis) }""")


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        (ProcessingOptions(normalize=True), None, "belong to a tokenizer"),
        (ProcessingOptions(tokenizer=Path("a"), image_processor=Path("b")), None, "one kind of raw input"),
        (ProcessingOptions(tokenizer=Path("no/such")), None, "no tokenizer.json"),
        (ProcessingOptions(tokenizer=Path("{folder}")), None, "how many tokens"),
        (ProcessingOptions(tokenizer=Path("{folder}"), max_tokens=9), "text-classification", "names of the classes"),
        (ProcessingOptions(tokenizer=Path("{folder}"), max_tokens=9), "translation", "takes no raw input"),
        (ProcessingOptions(tokenizer=Path("{folder}"), max_tokens=9), "object-detection", "takes no raw input"),
    ],
)
def test_half_a_description_is_refused(tmp_path, options, task, message):
    """The error says what is missing."""
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    if options.tokenizer == Path("{folder}"):
        options = ProcessingOptions(tokenizer=tmp_path, max_tokens=options.max_tokens)

    with pytest.raises(InputError, match=message):
        find_in_files(options, task)


def test_raw_samples_need_a_tokenizer(tmp_path):
    """A model of tensors cannot be measured on sentences."""
    (tmp_path / "bag.onnx").write_bytes(_bag())
    (tmp_path / "texts.txt").write_text("a cat")

    with pytest.raises(InputError, match="the model takes tensors"):
        demi.export(tmp_path / "bag.onnx", tmp_path / "bag", samples=str(tmp_path / "texts.txt"))


def image_processor(folder: Path) -> Path:
    """Save an image processor that only scales pixels to 0 to 1."""
    transformers.ViTImageProcessor(do_resize=False, do_normalize=False).save_pretrained(folder)
    return folder


def test_boxes_and_masks_are_answered_as_they_are(tmp_path):
    """A detector takes image files and answers its own outputs."""
    source = tmp_path / "bright.onnx"
    source.write_bytes(_bright())
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        (tmp_path / "pictures" / f"{number}.png").write_bytes(png((number, 0, 0)))
    options = ProcessingOptions(image_processor=image_processor(tmp_path))

    result = demi.export(source, tmp_path / "bright", samples=str(tmp_path / "pictures"), report=False,
                         processing=options, task="object-detection")  # fmt: skip

    with demi.load(result.path, precision="fp32") as model:
        found = model(image=tmp_path / "pictures" / "0.png")
    assert {"boxes"} == set(found)
    assert (1, 3) == found["boxes"].shape


def _bright() -> bytes:
    """Return a model of images: the brightest pixel of each channel."""
    from tests.server.bundles import serialized

    return serialized("""bright (float[batch, 3, height, width] pixel_values) => (float[batch, 3] boxes)
<int64[2] pixels = {2, 3}>
{ boxes = ReduceMax<keepdims = 0>(pixel_values, pixels) }""")


def test_labels_of_a_detector_are_refused(tmp_path):
    """They would have no effect: its outputs are the answer."""
    (tmp_path / "labels.txt").write_text("car")
    options = ProcessingOptions(image_processor=image_processor(tmp_path), labels=tmp_path / "labels.txt")

    with pytest.raises(InputError, match="without names of classes"):
        find_in_files(options, "object-detection")


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", "no\nyes\n"), ("a.json", '["no", "yes"]'), ("b.json", '{"id2label": {"1": "yes", "0": "no"}}')],
)
def test_labels_are_read_from_lines_and_json(tmp_path, name, text):
    """In the order of their ids."""
    (tmp_path / name).write_text(text)

    assert ("no", "yes") == read_labels(tmp_path / name)


def test_labels_with_gaps_are_refused(tmp_path):
    """A label would be wrong."""
    (tmp_path / "a.json").write_text('{"0": "a", "2": "b"}')

    with pytest.raises(InputError, match=r"ids \[0, 2\]"):
        read_labels(tmp_path / "a.json")


def test_a_step_that_a_sentence_model_adds_is_refused(tmp_path):
    """A dense layer after the pooling would be left out silently."""
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]')

    with pytest.raises(SourceError, match="a step that is not known: Dense"):
        sentence_pooling(tmp_path)


def test_pooling_is_read_inside_the_folder_only(tmp_path):
    """`modules.json` is untrusted."""
    (tmp_path / "modules.json").write_text('[{"type": "x.Pooling", "path": "../../etc"}]')

    with pytest.raises(SourceError, match="outside the model's"):
        sentence_pooling(tmp_path)
