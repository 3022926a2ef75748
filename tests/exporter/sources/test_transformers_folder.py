"""Weights in safetensors, and transformers folders: read from disk alone, never running code of theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from demi.calibration.sessions import session_for
from demi.errors import SourceError
from demi.exporter.open_source import open_source
from demi.exporter.sources.options import SourceOptions
from demi.tensors import TensorSpec, parse_spec
from tests.models import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT classifier as `save_pretrained` writes it."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=3,
        architectures=["BertForSequenceClassification"],
    )
    path = tmp_path_factory.mktemp("hub") / "tiny-bert"
    transformers.BertForSequenceClassification(config).save_pretrained(path)
    return path


def test_folder_becomes_its_architecture(folder: Path):
    """The class config.json names is loaded, its outputs keep their names, and both axes of the ids are free."""
    source = open_source(folder, SourceOptions())

    with session_for(source.model) as session:
        ids = np.ones((3, 7), np.int64)
        logits = session.run({"input_ids": ids, "attention_mask": ids})["logits"]
    assert (3, 3) == logits.shape
    assert () == source.examples


def test_task_chooses_the_head(folder: Path):
    """`--task features` loads the encoder without its classifier."""
    names = [value.name for value in open_source(folder, SourceOptions(task="features")).model.graph.outputs]

    assert "last_hidden_state" == names[0]


@pytest.mark.parametrize(
    ("damage", "task", "message"),
    [
        ("", "poetry", "unknown task `poetry`"),
        ("model.safetensors", None, "transformers cannot load the folder"),
        ("config.json", None, "not a transformers model"),
    ],
)
def test_folders_that_cannot_be_read(folder: Path, tmp_path: Path, damage: str, task: str | None, message: str):
    """An unknown task, missing weights and a folder without config.json are refused."""
    for file in folder.iterdir():
        if file.name != damage:
            (tmp_path / file.name).write_bytes(file.read_bytes())

    with pytest.raises(SourceError, match=message):
        open_source(tmp_path, SourceOptions(task=task))


def test_a_task_of_another_kind_of_model_is_refused(folder: Path):
    """The hint lists the tasks that fit."""
    with pytest.raises(SourceError, match="no model of the type `bert` for image-classification") as caught:
        open_source(folder, SourceOptions(task="image-classification"))

    assert "text-classification, token-classification" in caught.value.hint
    assert "image" not in caught.value.hint


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path):
    """A folder whose weights are a pickle is refused."""
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")

    with pytest.raises(SourceError, match="transformers cannot load the folder"):
        open_source(tmp_path, SourceOptions())


def pickled_copy(folder: Path, path: Path) -> Path:
    """The folder as older versions wrote it: weights in `pytorch_model.bin`."""
    path.mkdir()
    (path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(load_file(folder / "model.safetensors"), path / "pytorch_model.bin")
    return path


def test_pickled_tensors_are_read(folder: Path, tmp_path: Path):
    """A folder whose weights are a pickle of nothing but tensors is taken, and answers as the other does."""
    ids = {"input_ids": np.ones((3, 7), np.int64), "attention_mask": np.ones((3, 7), np.int64)}

    answers = [
        run(open_source(path, SourceOptions()).model, ids)["logits"]
        for path in (folder, pickled_copy(folder, tmp_path / "old"))
    ]

    np.testing.assert_allclose(*answers, rtol=1e-6)


def test_pickled_objects_are_not_run(folder: Path, tmp_path: Path):
    """A pickle that would call something is refused, and calls nothing."""

    class Evil:
        def __reduce__(self) -> object:
            return (Path.touch, (tmp_path / "sung",))

    path = pickled_copy(folder, tmp_path / "old")
    torch.save({"weight": Evil()}, path / "pytorch_model.bin")

    with pytest.raises(SourceError, match="transformers cannot load the folder"):
        open_source(path, SourceOptions())
    assert not (tmp_path / "sung").exists()


def test_segments_of_any_length(folder: Path):
    """Samples of different lengths with `token_type_ids` free its axis, together with that of the words."""
    names = ("input_ids", "token_type_ids", "attention_mask")
    sets = tuple({name: np.ones((1, length), np.int64) for name in names} for length in (5, 9))

    source = open_source(folder, SourceOptions(samples=sets))

    shapes = {value.name: [str(dim) for dim in value.shape] for value in source.model.graph.inputs}
    assert set(names) == set(shapes)
    assert 1 == len({tuple(shape) for shape in shapes.values()})
    assert (2, 3) == run(source.model, {name: np.ones((2, 12), np.int64) for name in names})["logits"].shape


def test_segments_of_one_sample(folder: Path):
    """One set is enough: segments that look like the words vary as they do."""
    names = ("input_ids", "token_type_ids", "attention_mask")

    source = open_source(folder, SourceOptions(samples=({name: np.ones((1, 5), np.int64) for name in names},)))

    assert (2, 3) == run(source.model, {name: np.ones((2, 12), np.int64) for name in names})["logits"].shape


def small() -> torch.nn.Module:
    """A factory for the weights below."""
    return torch.nn.Linear(4, 2)


X: tuple[TensorSpec, ...] = (parse_spec("input:float32[batch,4]"),)


def test_safetensors_with_a_factory(tmp_path: Path):
    """Weights from a .safetensors file go into the module the factory builds."""
    module = small()
    save_file(module.state_dict(), tmp_path / "w.safetensors")

    source = open_source(tmp_path / "w.safetensors", SourceOptions(factory=f"{__name__}:small", inputs=X))

    with session_for(source.model) as session:
        got = session.run({"input": np.eye(4, dtype=np.float32)})["output"]
    np.testing.assert_allclose(module(torch.eye(4)).detach().numpy(), got, rtol=1e-5)


def test_safetensors_without_a_factory(tmp_path: Path):
    """Weights alone are not enough, and the error says what is missing."""
    save_file(small().state_dict(), tmp_path / "w.safetensors")

    with pytest.raises(SourceError, match="bare state_dict") as caught:
        open_source(tmp_path / "w.safetensors", SourceOptions(inputs=X))
    assert "--model" in str(caught.value.hint)


def test_truncated_safetensors(tmp_path: Path):
    """A truncated file is refused."""
    (tmp_path / "w.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")

    with pytest.raises(SourceError, match="cannot read"):
        open_source(tmp_path / "w.safetensors", SourceOptions(factory=f"{__name__}:small", inputs=X))
