"""Small files that would fill the memory: the sizes that an archive or array declares are checked before it is read."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from demi.bundles import archives
from demi.bundles.archives import FREE_BYTES, MOST_GROWTH, read_arrays
from demi.bundles.bundle import open_bundle
from demi.bundles.manifest import GOLDEN
from demi.calibration.samples import load_arrays
from demi.errors import BundleError, SampleError, SourceError
from demi.exporter.open_source import open_source
from demi.exporter.sources.index_limits import index_limits
from demi.exporter.sources.options import SourceOptions
from tests.demi.bundles.making import make_bundle

MEGABYTE = 1 << 20


def bomb(path: Path, size: int, entries: int = 1, head: bytes = b"") -> Path:
    """Write an archive that unpacks to this many zeros, piece by piece."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(entries):
            with archive.open(f"{index}.npy", "w", force_zip64=True) as entry:
                entry.write(head)
                for _ in range(size // entries // MEGABYTE):
                    entry.write(bytes(MEGABYTE))
    return path


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """Return the header of an array, without its numbers."""
    text = repr({"descr": dtype, "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.fixture(scope="module")
def bombs(tmp_path_factory) -> Path:
    """Return a folder with one archive that unpacks to a little more than the limit."""
    folder = tmp_path_factory.mktemp("bombs")
    bomb(folder / "bomb.npz", FREE_BYTES + 2 * MEGABYTE, 3)
    return folder


class TestBombs:
    """Archives that unpack to much more than their size."""

    def test_samples(self, bombs):
        """Samples are refused by the sizes in the directory, and nothing is unpacked."""
        tracemalloc.start()
        with pytest.raises(SampleError, match=r"it unpacks to 270,532,608 bytes \(at most 268,435,456") as refused:
            load_arrays(bombs / "bomb.npz")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert "bomb.npz" in (refused.value.where or "")
        assert most < 8 * MEGABYTE

    def test_golden(self, bombs, tmp_path):
        """A bundle's golden inputs are refused in the same way."""
        bundle = open_bundle(make_bundle(tmp_path / "b"))
        (bundle.path / GOLDEN).write_bytes((bombs / "bomb.npz").read_bytes())

        with pytest.raises(BundleError, match=r"`golden.npz` cannot be read: it unpacks to"):
            bundle.golden()

    @pytest.mark.parametrize("name", ["m.pt", "m.pt2", "m.pth", "m.model"])
    def test_models(self, bombs, tmp_path, name):
        """PyTorch's archives are refused in the same way."""
        (tmp_path / name).write_bytes((bombs / "bomb.npz").read_bytes())

        with pytest.raises(SourceError, match="the archive is not safe to open: it unpacks to"):
            open_source(tmp_path / name, SourceOptions())

    def test_many_records(self, tmp_path, monkeypatch):
        """Records are counted before they are read."""
        monkeypatch.setattr(archives, "MOST_ENTRIES", 100)
        np.savez(tmp_path / "s.npz", **{f"x{index}": np.zeros(1) for index in range(101)})

        with pytest.raises(SampleError, match=r"it holds 101 records \(at most 100\)"):
            load_arrays(tmp_path / "s.npz")

    def test_large_directory(self, tmp_path, monkeypatch):
        """A directory that is too long is not read."""
        monkeypatch.setattr(archives, "MOST_ENTRIES", 10)
        np.savez(tmp_path / "s.npz", **{f"x{index}" * 20: np.zeros(1) for index in range(101)})

        with pytest.raises(SampleError, match="it holds more than 10 records"):
            load_arrays(tmp_path / "s.npz")

    def test_harmless_archives(self, tmp_path):
        """A small archive may shrink as much as masks do, and one that hardly shrinks may have any size."""
        np.savez_compressed(tmp_path / "s.npz", mask=np.ones((1 << 20,), np.int64))

        (feeds,) = load_arrays(tmp_path / "s.npz")
        assert (1 << 20,) == feeds["mask"].shape
        assert MOST_GROWTH > 1


class TestHeaders:
    """Arrays whose header declares more data than there is."""

    @pytest.mark.parametrize(
        ("shape", "dtype"),
        [((1 << 40,), "<f4"), ((1 << 20, 1 << 20, 1 << 20), "<i8"), ((1,), "<U500000000"), ((1 << 45,), "|V0")],
        ids=["long", "many axes", "wide", "no width"],
    )
    def test_headers_that_declare_too_much(self, tmp_path, shape, dtype):
        """The header is compared with the size of the record, because NumPy would allocate memory first."""
        with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
            archive.writestr("x.npy", header(shape, dtype) + bytes(64))

        with pytest.raises(ValueError, match=r"`x.npy` claims [\d,]+ bytes, but holds 64"):
            read_arrays(tmp_path / "s.npz")

    def test_versions(self, tmp_path):
        """All versions of NumPy's header are read."""
        wide = np.zeros(3, dtype=[("ü", "<f4")])
        np.savez(tmp_path / "s.npz", plain=np.ones((2, 3), np.float16), wide=wide, empty=np.zeros((0, 4)))

        read = read_arrays(tmp_path / "s.npz")
        assert [(2, 3), (3,), (0, 4)] == [read[name].shape for name in ("plain", "wide", "empty")]

    def test_single_array(self, tmp_path):
        """A single array is refused before it is read."""
        (tmp_path / "s.npy").write_bytes(header((1 << 40,)))

        with pytest.raises(SampleError, match="single array"):
            load_arrays(tmp_path / "s.npy")


def test_long_chain():
    """A chain of thirty thousand nodes is followed to its end."""
    count = 30_000
    nodes = [helper.make_node("Identity", [f"h{index}"], [f"h{index + 1}"]) for index in range(count)]
    table = numpy_helper.from_array(np.zeros((7, 2), np.float32), "table")
    ids = helper.make_tensor_value_info("h0", TensorProto.INT64, ["batch"])
    rows = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])
    graph = helper.make_graph(
        [*nodes, helper.make_node("Gather", ["table", f"h{count}"], ["y"])], "g", [ids], [rows], [table]
    )

    assert {"h0": 7} == index_limits(ir.from_proto(helper.make_model(graph, ir_version=10)))
