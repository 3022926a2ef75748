"""The stored model beside a proof: opened only as it was proved, and removed when no proof names it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demi.bundles.bundle import Bundle, open_bundle
from demi.errors import SourceError
from demi.onnx_file.graph import read_graph
from demi.proofs.attempt import open_road
from demi.proofs.record import FOLDER, Road
from demi.proofs.stored import is_stored, layer_names, model_of, remove_unused, store, stored_model
from tests.server.bundles import GOLDEN_X, MIXED, SCALE, write_bundle
from tests.server.openvino_bundles import HAS_HALF

pytest.importorskip("openvino")

HINTED = Road("reference.onnx", "f16")


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """Return a bundle with a reference."""
    return open_bundle(write_bundle(tmp_path / "b", MIXED, reference=SCALE, golden=GOLDEN_X))


def files(bundle: Bundle) -> list[Path]:
    return sorted((bundle.path / FOLDER).glob("weights-*"))


@pytest.mark.parametrize(
    ("road", "expected"),
    [
        (Road("reference.onnx", "bf16"), True),
        (Road("reference.onnx", "f32"), False),  # FP32 answers stay FP32
        (Road("model.onnx", "dynamic"), False),
    ],
    ids=["half", "fp32", "planned"],
)
def test_which_roads_store_weights(road, expected):
    """Only the FP32 model computed in half has weights to store in half."""
    assert is_stored(road) is expected


def test_two_files_named_by_their_digest(bundle):
    """Two files, whose names begin with the digest that the road keeps."""
    digest = store(bundle, HINTED)

    assert [f"weights-{digest[:16]}.bin", f"weights-{digest[:16]}.xml"] == [path.name for path in files(bundle)]
    assert stored_model(bundle, Road("reference.onnx", "bf16", stored=digest)) == files(bundle)[1]


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_changed_file_is_not_opened(bundle, suffix, caplog):
    """A file that was changed after the proof is not used, and the log says so."""
    road = Road("reference.onnx", "bf16", stored=store(bundle, HINTED))
    with next(path for path in files(bundle) if path.suffix == suffix).open("ab") as file:
        file.write(b"\0")

    assert stored_model(bundle, road) is None
    assert "is not as it was proved" in caplog.text


def test_a_missing_file(bundle, caplog):
    """Without the files the reference itself is opened, without a word."""
    road = Road("reference.onnx", "bf16", stored=store(bundle, HINTED))
    for path in files(bundle):
        path.unlink()

    assert stored_model(bundle, road) is None
    assert "" == caplog.text


@pytest.mark.skipif(not HAS_HALF, reason="this CPU has no half units")
@pytest.mark.parametrize("kept", [True, False])
def test_the_same_answers_from_the_file_and_from_memory(bundle, kept):
    """A session of the stored model answers as one that compressed the reference in memory."""
    road = Road("reference.onnx", "f16", stored=store(bundle, HINTED) if kept else "")

    answer = open_road(bundle, road, threads=1)[0].run(bundle.golden().inputs[0])

    np.testing.assert_allclose(answer["y"], bundle.golden().outputs[0]["y"], rtol=1e-3)


def test_a_temporary_file(bundle):
    """Without a stored file, a temporary one is written and removed afterwards."""
    with model_of(bundle, HINTED) as path:
        assert path.is_file()

    assert not path.exists()


def test_a_plan_without_its_nodes(bundle):
    """Islands of nodes that OpenVINO's graph does not have are an error: nothing would be kept in FP32."""
    with pytest.raises(SourceError, match="none of the nodes"):
        store(bundle, replace(HINTED, islands=True))


def test_unused_files_are_removed(bundle):
    """Stored models that no proof names are removed; the others stay."""
    digest = store(bundle, HINTED)
    (bundle.path / FOLDER / "weights-0123456789abcdef.bin").write_bytes(b"old")
    (bundle.path / FOLDER / "cpu-1.json").write_text(f'{{"stored": "{digest}"}}')

    remove_unused(bundle)

    assert 2 == len(files(bundle))
    assert all(digest[:16] in path.name for path in files(bundle))


def test_a_folder_that_cannot_be_written_to(bundle, caplog):
    """Nothing is stored where nothing can be written, and the log says why."""
    (bundle.path / FOLDER).write_text("a file in place of the folder")
    caplog.set_level("INFO", "demi.runtime")

    assert "" == store(bundle, HINTED)
    assert "cannot be kept beside the bundle" in caplog.text


def test_layers_that_openvino_names_by_an_output(bundle):
    """A node's layer may have its name or that of its output."""
    (node,) = read_graph(bundle.path / "reference.onnx")

    assert {node.name, "y"} == layer_names(bundle.path / "reference.onnx", {node.name})
