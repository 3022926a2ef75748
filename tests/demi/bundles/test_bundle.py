"""Opening bundles: version selection and digests."""

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from demi.bundles.bundle import Bundle, Golden, open_bundle, write_golden
from demi.bundles.find import versions
from demi.errors import BundleError, DigestError
from demi.plan import Decision, Precision, Reason, make_plan
from tests.demi.bundles.making import GOLDEN, fill, make_bundle
from tests.demi.bundles.test_manifest import MANIFEST


@pytest.fixture
def bundle(tmp_path):
    """Return the folder of an intact bundle."""
    return make_bundle(tmp_path / "minilm")


def npy_bytes():
    """Return a single array as NumPy saves it."""
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


class TestOpening:
    """Selection of the bundle to open."""

    def test_folder_of_a_version(self, bundle):
        """A version's folder is opened as that bundle."""
        opened = open_bundle(bundle)

        assert bundle / "model.onnx" == opened.model_path
        assert opened.reference_path is None

    def test_model_folder_gives_the_newest_version(self, tmp_path):
        """Versions are numbers: 10 is newer than 9."""
        for version in (2, 9, 10):
            make_bundle(tmp_path / "m", version)

        assert tmp_path / "m" / "10" == open_bundle(tmp_path / "m").path

    def test_reference_is_found(self, tmp_path):
        """A bundle with a reference has its path."""
        (tmp_path / "reference.onnx").write_bytes(b"fp32")
        fill(tmp_path)

        assert tmp_path / "reference.onnx" == open_bundle(tmp_path).reference_path

    def test_plan(self, tmp_path):
        """A bundle whose manifest lists a plan returns it."""
        plan = make_plan("fp16", [Decision("dense", "MatMul", Precision.HALF, Reason.SAFE)])
        (tmp_path / "plan.json").write_bytes(plan.to_json())
        fill(tmp_path)

        assert plan == open_bundle(tmp_path).plan()

    def test_no_plan(self, bundle):
        """A bundle without a plan returns None, not an empty plan."""
        assert open_bundle(bundle).plan() is None

    def test_golden_or_none(self, bundle):
        """Golden inputs are read if the manifest lists them, and are None otherwise."""
        opened = open_bundle(bundle)
        bare = replace(opened.manifest, files={"model.onnx": opened.manifest.files["model.onnx"]})

        assert GOLDEN.inputs[1]["x"].tolist() == opened.golden_or_none().inputs[1]["x"].tolist()
        assert replace(opened, manifest=bare).golden_or_none() is None

    @pytest.mark.parametrize("name", ["draft", "01", "1.5", "-1", "²"])
    def test_other_folders_are_not_versions(self, tmp_path, name):
        """Only a number with a manifest in its folder is a version."""
        make_bundle(tmp_path / "m", 3)
        make_bundle(tmp_path / "m", 4).rename(tmp_path / "m" / name)
        (tmp_path / "m" / "7").mkdir()

        assert [3] == versions(tmp_path / "m")

    def test_versions_of_a_missing_folder(self, tmp_path):
        """A missing folder has no versions."""
        assert [] == versions(tmp_path / "none")

    def test_missing_folder(self, tmp_path):
        """The error of a missing bundle has the command that writes one."""
        with pytest.raises(BundleError, match="no such bundle") as caught:
            open_bundle(tmp_path / "none")
        assert "demi export" in caught.value.hint

    def test_folder_that_is_not_a_bundle(self, tmp_path):
        """A folder without any manifest is not a bundle."""
        with pytest.raises(BundleError, match="not a bundle"):
            open_bundle(tmp_path)

    def test_file_that_is_not_a_bundle(self, tmp_path):
        """A file is not a bundle."""
        (tmp_path / "model.onnx").write_bytes(b"x")
        with pytest.raises(BundleError, match="not a bundle"):
            open_bundle(tmp_path / "model.onnx")


class TestDigests:
    """Every byte is checked against its digest."""

    def test_intact_bundle(self, bundle):
        """An unchanged bundle verifies."""
        open_bundle(bundle).verify()

    @pytest.mark.parametrize("name", ["model.onnx", "golden.npz"])
    def test_changed_byte(self, bundle, name):
        """One flipped bit raises DigestError with the file's name."""
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)
        with pytest.raises(DigestError, match=f"`{name}` is not the file that was written"):
            open_bundle(bundle)

    @pytest.mark.parametrize("model", [b"", b"a mode", b"a model."])
    def test_changed_size(self, bundle, model):
        """A truncated or longer file raises DigestError."""
        (bundle / "model.onnx").write_bytes(model)
        with pytest.raises(DigestError, match="digest differs"):
            open_bundle(bundle)

    def test_missing_file(self, bundle):
        """A missing file is named."""
        (bundle / "golden.npz").unlink()
        with pytest.raises(DigestError, match=r"`golden\.npz` is missing"):
            open_bundle(bundle)

    def test_link_in_place_of_a_file(self, bundle, tmp_path):
        """A symbolic link is refused, even to the same bytes, because its target may change later."""
        (bundle / "model.onnx").rename(tmp_path / "elsewhere")
        (bundle / "model.onnx").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DigestError, match=r"`model\.onnx` is missing"):
            open_bundle(bundle)

    def test_folder_in_place_of_a_file(self, bundle):
        """A folder in place of a file is refused."""
        (bundle / "model.onnx").unlink()
        (bundle / "model.onnx").mkdir()
        with pytest.raises(DigestError, match=r"`model\.onnx` is missing"):
            open_bundle(bundle)

    def test_extra_link_is_ignored(self, bundle):
        """A file that the manifest does not name is not part of the bundle."""
        (bundle / "extra").symlink_to("/etc/passwd")

        assert "extra" not in open_bundle(bundle).manifest.files

    def test_verification_can_be_skipped(self, bundle):
        """Verification can be skipped to list bundles without reading them."""
        (bundle / "model.onnx").write_bytes(b"other")

        assert "minilm" == open_bundle(bundle, verify=False).manifest.name

    def test_digests_are_in_the_manifest(self, bundle):
        """Sealing lists every file except the manifest itself, with its size."""
        files = open_bundle(bundle).manifest.files

        assert ["golden.npz", "model.onnx"] == list(files)
        assert 7 == files["model.onnx"].bytes


class TestGolden:
    """Golden inputs and outputs."""

    def test_written_and_read_back(self, bundle):
        """Every set is read in its order, with its names and dtypes."""
        golden = open_bundle(bundle).golden()

        for written, read in zip(GOLDEN.inputs + GOLDEN.outputs, golden.inputs + golden.outputs, strict=True):
            assert list(written) == list(read)
            for name in written:
                np.testing.assert_array_equal(written[name], read[name], strict=True)

    def test_names_with_slashes(self, tmp_path):
        """Tensor names may contain slashes."""
        write_golden(tmp_path, Golden([{"a/b/c": np.ones(1)}], [{"/out": np.zeros(1)}]))

        golden = Bundle(tmp_path, MANIFEST).golden()

        assert ["a/b/c"] == list(golden.inputs[0])
        assert ["/out"] == list(golden.outputs[0])

    def test_strings(self, tmp_path):
        """Strings are written without pickling."""
        write_golden(tmp_path, Golden([{"s": np.array(["a", "bcd"], object)}], [{"y": np.ones(1)}]))

        assert ["a", "bcd"] == Bundle(tmp_path, MANIFEST).golden().inputs[0]["s"].tolist()

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.unlink(),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(b"not an archive"),
            lambda path: path.write_bytes(path.read_bytes()[:-40]),
            lambda path: path.write_bytes(path.read_bytes().replace(b"NUMPY", b"NUMBY")),
            lambda path: path.write_bytes(npy_bytes()),
            lambda path: np.savez(path, other=np.ones(3)),
            lambda path: np.savez(path, **{"000/in/x": np.array([{}], object)}),
            lambda path: np.savez(path, **{"000/in/x": np.ones(1)}),
        ],
        ids=["missing", "empty", "text", "cut", "garbled", "npy", "other-keys", "pickle", "no-outputs"],
    )
    def test_damaged(self, bundle, damage):
        """Golden arrays that cannot be read raise an error, whatever the damage."""
        damage(bundle / "golden.npz")
        with pytest.raises(BundleError, match=r"`golden\.npz` cannot be read"):
            open_bundle(bundle, verify=False).golden()

    def test_damaged_inside(self, bundle):
        """An archive whose contents fail their checksum raises an error."""
        path = bundle / "golden.npz"
        with zipfile.ZipFile(path) as archive:
            offset = archive.infolist()[0].header_offset
        data = bytearray(path.read_bytes())
        data[offset + 200] ^= 0xFF
        path.write_bytes(data)
        with pytest.raises(BundleError, match="cannot be read"):
            open_bundle(bundle, verify=False).golden()
