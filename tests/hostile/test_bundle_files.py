"""A bundle consists of the files in its manifest: models that need more are refused before they are opened."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from demi.bundles.bundle import open_bundle, write_manifest
from demi.bundles.manifest import MANIFEST as MANIFEST_NAME
from demi.bundles.manifest import encode
from demi.errors import BundleError, DemiError, DigestError
from demi.onnx_file.contents import FREE_BYTES, external_files, made_bytes, most_bytes
from demi.onnx_file.protobuf import GroupError, fields, numbers
from demi.server.models.trial_loads import trial_load
from demi.server.settings import ServeSettings
from tests.demi.bundles.test_manifest import MANIFEST

SECRET = b"0123456789abcdef"


def external(location: str, length: int = 16, offset: int = 0) -> TensorProto:
    """Return a tensor whose bytes are in another file."""
    tensor = TensorProto(name="W", data_type=TensorProto.UINT8, dims=[16])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(*nodes: onnx.NodeProto, tensors: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    """Return a model of these nodes and initializers; its outputs do not matter here."""
    value = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch"])
    answer = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch"])
    graph = helper.make_graph([helper.make_node("Identity", ["X"], ["Y"]), *nodes], "g", [value], [answer], [*tensors])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def with_constant(tensor: TensorProto) -> onnx.NodeProto:
    """Return a node that holds a tensor."""
    return helper.make_node("Constant", [], ["W"], value=tensor)


def within_an_if(node: onnx.NodeProto) -> onnx.NodeProto:
    """Return the same in a subgraph of a node."""
    answer = [helper.make_tensor_value_info("W", TensorProto.UINT8, [16])]
    branch = helper.make_graph([node], "b", [], answer)
    return helper.make_node("If", ["c"], ["Z"], then_branch=branch, else_branch=branch)


def with_function(node: onnx.NodeProto) -> onnx.ModelProto:
    """Return the same in a function of the model."""
    made = model()
    made.functions.append(helper.make_function("d", "F", [], ["W"], [node], [helper.make_opsetid("", 21)]))
    return made


def sparse(values: TensorProto) -> onnx.ModelProto:
    """Return the same as the values of a sparse tensor."""
    made = model()
    made.graph.sparse_initializer.add(values=values, dims=[16])
    return made


def bundle(folder: Path, made: onnx.ModelProto, listed: tuple[str, ...] = ()) -> Path:
    """Return a bundle with this model, sealed as by `demi export`; `secret.bin` is added later if it is not listed."""
    version = folder / "m" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(made.SerializeToString())
    for name in listed:
        (version / name).write_bytes(SECRET)
    write_manifest(version, replace(MANIFEST, name="m", version=1, files={}))
    if "secret.bin" not in listed:
        (version / "secret.bin").write_bytes(SECRET)
    return version


PLACES = {
    "an initializer": lambda tensor: model(tensors=(tensor,)),
    "a constant": lambda tensor: model(with_constant(tensor)),
    "a graph within": lambda tensor: model(within_an_if(with_constant(tensor))),
    "a function": lambda tensor: with_function(with_constant(tensor)),
    "a sparse tensor": sparse,
}


class TestExternalWeights:
    """Weights in files beside a model."""

    @pytest.mark.parametrize("place", PLACES)
    def test_not_listed(self, tmp_path, place):
        """A file that the manifest does not list is not read, wherever in the model it is named."""
        path = bundle(tmp_path, PLACES[place](external("secret.bin")))

        with pytest.raises(BundleError, match=r"`model.onnx` reads weights from `secret.bin`, which the manifest"):
            open_bundle(path)

    @pytest.mark.parametrize(
        "location", ["../secret.bin", "/etc/hostname", "a/../secret.bin", "*/_ORT_MEM_ADDR_/*", "", "secret.bin/"]
    )
    def test_paths_outside_the_folder(self, tmp_path, location):
        """No spelling of a path leads out of the folder."""
        path = bundle(tmp_path, model(tensors=(external(location),)))

        with pytest.raises(BundleError, match="which the manifest does not list"):
            open_bundle(path)

    def test_listed(self, tmp_path):
        """A listed file is accepted."""
        path = bundle(tmp_path, model(tensors=(external("secret.bin"),)), ("secret.bin",))

        assert {"model.onnx", "secret.bin"} == set(open_bundle(path).manifest.files)

    def test_tampered(self, tmp_path):
        """A listed file is compared with its digest."""
        path = bundle(tmp_path, model(tensors=(external("secret.bin"),)), ("secret.bin",))
        (path / "secret.bin").write_bytes(SECRET[::-1])

        with pytest.raises(DigestError, match=r"`secret.bin` is not the file that was written"):
            open_bundle(path)

    def test_too_long(self, tmp_path):
        """A tensor larger than its file is refused before memory is allocated."""
        path = bundle(tmp_path, model(tensors=(external("secret.bin", 1 << 40),)), ("secret.bin",))

        with pytest.raises(BundleError, match=r"reads 1,099,511,627,776 bytes of `secret.bin`, which has 16"):
            open_bundle(path)

    def test_group_fields_are_refused(self, tmp_path):
        """Bytes that this reader would misread, and the runtime would not, are refused and not skipped."""
        path = bundle(tmp_path, model(tensors=(external("secret.bin"),)))
        data = bytes([200 << 3 & 127 | 3 | 128, 200 >> 4, 200 << 3 & 127 | 4 | 128, 200 >> 4])
        (path / "model.onnx").write_bytes(data + (path / "model.onnx").read_bytes())
        write_manifest(path, replace(MANIFEST, name="m", version=1, files={}))
        (path / "secret.bin").unlink()
        manifest = open_manifest(path)
        (path / MANIFEST_NAME).write_bytes(
            encode(replace(manifest, files={"model.onnx": manifest.files["model.onnx"]}))
        )

        with pytest.raises(BundleError, match="it holds a protobuf group"):
            open_bundle(path)

    def test_trial(self, tmp_path):
        """The trial process checks external files as well, although it verifies no digests."""
        path = bundle(tmp_path, model(tensors=(external("secret.bin"),)))

        with pytest.raises(BundleError, match="which the manifest does not list"):
            trial_load(path, ServeSettings(), "model")

    def test_plain_models(self):
        """A model with embedded weights needs no files."""
        assert [] == external_files(model(tensors=(ONE,)).SerializeToString())


def open_manifest(path: Path):
    """Return a bundle's manifest without checking its files."""
    return open_bundle(path, verify=False).manifest


class TestLinks:
    """Symbolic links in a bundle."""

    def test_a_file_that_is_a_link(self, tmp_path):
        """A link is refused, because its target may change after the check."""
        path = bundle(tmp_path, model())
        (tmp_path / "elsewhere").write_bytes((path / "model.onnx").read_bytes())
        (path / "model.onnx").unlink()
        (path / "model.onnx").symlink_to(tmp_path / "elsewhere")

        with pytest.raises(DigestError, match="is missing from the bundle"):
            open_bundle(path)

    def test_a_folder_that_is_a_link(self, tmp_path):
        """A folder on the path to a file must not be a link either."""
        path = bundle(tmp_path, model())
        (path / "data").mkdir()
        (path / "data" / "w.bin").write_bytes(SECRET)
        write_manifest(path, replace(MANIFEST, name="m", version=1, files={}))
        os.rename(path / "data", tmp_path / "data")
        (path / "data").symlink_to(tmp_path / "data")

        with pytest.raises(DigestError, match=r"`data/w.bin` is missing"):
            open_bundle(path)

    def test_a_bundle_behind_a_link(self, tmp_path):
        """The bundle's own folder may be a link, as those of volumes are."""
        path = bundle(tmp_path, model())
        (tmp_path / "current").symlink_to(path)

        assert "m" == open_bundle(tmp_path / "current").manifest.name

    def test_a_pipe(self, tmp_path):
        """A pipe is not a file and is refused without waiting for data."""
        path = bundle(tmp_path, model())
        (path / "model.onnx").unlink()
        os.mkfifo(path / "model.onnx")

        with pytest.raises(DigestError, match="is missing"):
            open_bundle(path)


HUGE = 1 << 34


def shaped(kind: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    """Return a node that creates a constant."""
    return helper.make_node(kind, list(inputs), ["made"], **attributes)


SHAPE = numpy_helper.from_array(np.array([HUGE, 4], np.int64), "s")
ONE = numpy_helper.from_array(np.ones(1, np.float32), "one")
UNPACKED = TensorProto(name="s", data_type=TensorProto.INT64, dims=[2], int64_data=[HUGE, 4])


class TestConstants:
    """Constants that a small model creates when it is opened."""

    @pytest.mark.parametrize(
        "made",
        [
            model(shaped("ConstantOfShape", "s"), tensors=(SHAPE,)),
            model(shaped("ConstantOfShape", "s"), tensors=(UNPACKED,)),
            model(shaped("Expand", "one", "s"), tensors=(SHAPE, ONE)),
            model(shaped("Tile", "one", "s"), tensors=(SHAPE, ONE)),
            model(helper.make_node("Constant", [], ["s"], value=SHAPE), shaped("ConstantOfShape", "s")),
            model(helper.make_node("Constant", [], ["s"], value_ints=[HUGE, 4]), shaped("ConstantOfShape", "s")),
            model(shaped("RandomNormal", shape=[HUGE, 4])),
            model(within_an_if(shaped("ConstantOfShape", "s")), tensors=(SHAPE,)),
        ],
        ids=["shape", "unpacked", "expand", "tile", "constant", "integers", "random", "within"],
    )
    def test_huge(self, tmp_path, made):
        """The total size is computed from the shapes in the model, and refused before it is opened."""
        with pytest.raises(
            BundleError, match=r"`model.onnx` creates constants of [\d,]{15,} bytes \(at most 1,073,741,824"
        ):
            open_bundle(bundle(tmp_path, made))

    def test_many(self, tmp_path):
        """The limit applies to the sum."""
        shape = numpy_helper.from_array(np.array([1 << 24], np.int64), "s")
        nodes = [helper.make_node("ConstantOfShape", ["s"], [f"made{index}"]) for index in range(20)]

        with pytest.raises(BundleError, match="creates constants of 1,342,177,280 bytes"):
            open_bundle(bundle(tmp_path, model(*nodes, tensors=(shape,))))

    def test_common_constants(self, tmp_path):
        """A mask of some thousand tokens is accepted, and so is a shape that is computed from an input."""
        shape = numpy_helper.from_array(np.array([1, 1, 4096, 4096], np.int64), "s")
        free = helper.make_node("Expand", ["one", "computed"], ["e"])
        made = model(shaped("ConstantOfShape", "s"), free, tensors=(shape, ONE))

        assert 4 * 4096 * 4096 == made_bytes(made.SerializeToString())
        assert "m" == open_bundle(bundle(tmp_path, made)).manifest.name

    def test_large_models(self):
        """A large model may create more."""
        assert FREE_BYTES == most_bytes(1000)
        assert 20 << 31 == most_bytes(1 << 31)


class TestProtobuf:
    """The reader of protobuf."""

    def test_unknown_wire_types(self):
        """A wire type that it cannot skip is an error."""
        with pytest.raises(GroupError):
            list(fields(memoryview(b"\x0b\x0c"), 1))
        with pytest.raises(ValueError, match="unknown wire type 7"):
            list(fields(memoryview(b"\x0f"), 1))

    def test_integers(self):
        """Integers are read packed or one by one, including negative ones."""
        packed = TensorProto(int64_data=[1, -2, 300]).SerializeToString()
        single = b"\x38\x01\x38\xac\x02"

        assert [1, -2, 300] == list(numbers(memoryview(packed), 7))
        assert [1, 300] == list(numbers(memoryview(single), 7))


@pytest.mark.parametrize("location", ["/etc/hostname", "../secret.bin", "link.bin"])
@pytest.mark.parametrize("place", ["an initializer", "a constant"])
def test_sources_do_not_read_other_files(tmp_path, location, place):
    """`demi export` does not read files outside the source's folder."""
    from demi.exporter.open_source import open_source
    from demi.exporter.sources.options import SourceOptions

    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(SECRET)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "m.onnx").write_bytes(PLACES[place](external(location)).SerializeToString())

    with pytest.raises(DemiError):
        open_source(folder / "m.onnx", SourceOptions())


def test_sources_with_huge_constants(tmp_path):
    """`demi export` refuses a model with huge constants before it is opened."""
    from demi.exporter.open_source import open_source
    from demi.exporter.sources.options import SourceOptions

    (tmp_path / "m.onnx").write_bytes(model(shaped("ConstantOfShape", "s"), tensors=(SHAPE,)).SerializeToString())

    with pytest.raises(DemiError, match=r"it creates constants of [\d,]{15,} bytes"):
        open_source(tmp_path / "m.onnx", SourceOptions())
