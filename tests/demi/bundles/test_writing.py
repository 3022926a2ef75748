"""Writing bundles: atomically, and never over anything but a bundle."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from demi.bundles.bundle import _take_place, check_target, open_bundle, writing
from demi.errors import BundleError, InputError, OverBudgetError
from tests.demi.bundles.making import fill, make_bundle, names


@pytest.fixture
def small_disk(tmp_path):
    """Return a file system of one megabyte; skip the test if it cannot be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(mount, check=False, capture_output=True).returncode == 0:
            yield folder
            subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    pytest.skip("mounting a tmpfs needs root")


class TestWritten:
    """A block that ends without an error."""

    def test_bundle_takes_its_place(self, tmp_path):
        """The draft becomes the target, and nothing else is left."""
        make_bundle(tmp_path)

        assert ["1", "1/golden.npz", "1/manifest.json", "1/model.onnx"] == names(tmp_path)

    def test_parents_are_made(self, tmp_path):
        """Folders above the target are created."""
        assert open_bundle(make_bundle(tmp_path / "a" / "b")).path.is_dir()

    def test_target_is_absent_until_the_end(self, tmp_path):
        """The target does not exist until the block ends."""
        with writing(tmp_path / "1") as draft:
            fill(draft)
            assert not (tmp_path / "1").exists()

    def test_permissions_of_a_bundle(self, tmp_path):
        """A bundle has the permissions of an ordinary folder, although its draft was private."""
        assert 0o755 == make_bundle(tmp_path).stat().st_mode & 0o777

    def test_empty_folder_may_be_taken(self, tmp_path):
        """An empty folder at the target is replaced."""
        (tmp_path / "1").mkdir()

        assert b"a model" == (make_bundle(tmp_path) / "model.onnx").read_bytes()


class TestInterrupted:
    """A block that ends with an error leaves nothing behind."""

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
    def test_error_passes_through(self, tmp_path, error):
        """The error is raised unchanged, and the draft and the created folders are removed."""

        def interrupted():
            with writing(tmp_path / "a" / "b" / "1") as draft:
                fill(draft)
                raise error

        with pytest.raises(error):
            interrupted()
        assert [] == names(tmp_path)

    def test_used_folders_are_kept(self, tmp_path):
        """A folder that existed before, or that is in use, is kept."""
        (tmp_path / "a").mkdir()

        def interrupted():
            with writing(tmp_path / "a" / "b" / "1"):
                (tmp_path / "a" / "b" / "other").write_text("someone else's")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert ["a", "a/b", "a/b/other"] == names(tmp_path)

    def test_domain_errors_keep_their_kind(self, tmp_path):
        """Only an OSError becomes a BundleError."""

        def over_budget():
            with writing(tmp_path / "1"):
                raise OverBudgetError("too far off")

        with pytest.raises(OverBudgetError):
            over_budget()

    @pytest.mark.parametrize("error", [OSError(28, os.strerror(28)), PermissionError(13, os.strerror(13))])
    def test_file_errors_become_bundle_errors(self, tmp_path, error):
        """An OSError in the block becomes a BundleError with the system's message."""

        def failing():
            with writing(tmp_path / "1") as draft:
                fill(draft)
                raise error

        with pytest.raises(BundleError, match=f"cannot be written: {error.strerror}"):
            failing()
        assert [] == names(tmp_path)

    def test_full_disk(self, small_disk):
        """A disk that fills up while a file is written leaves nothing behind."""

        def overflowing():
            with writing(small_disk / "m" / "1") as draft:
                fill(draft, b"x" * 2**21)

        with pytest.raises(BundleError, match="No space left on device"):
            overflowing()
        assert [] == names(small_disk)

    def test_full_disk_keeps_the_old_bundle(self, small_disk):
        """If the disk fills up while a bundle is replaced, the old one is kept."""
        old = make_bundle(small_disk / "m")

        def overflowing():
            with writing(old, force=True) as draft:
                fill(draft, b"x" * 2**21)

        with pytest.raises(BundleError, match="No space left on device"):
            overflowing()
        assert b"a model" == open_bundle(old).model_path.read_bytes()
        assert ["m", "m/1", "m/1/golden.npz", "m/1/manifest.json", "m/1/model.onnx"] == names(small_disk)

    def test_read_only_disk(self, small_disk):
        """A folder that is not writable raises an error before anything is computed."""
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(BundleError, match="Read-only file system"), writing(small_disk / "1"):
            pass

    def test_parent_that_is_a_file(self, tmp_path):
        """A parent that is a file raises an error."""
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="output folder cannot be created"), writing(tmp_path / "file" / "m" / "1"):
            pass


class TestReplacing:
    """Replacing an existing bundle."""

    def test_is_kept_without_force(self, tmp_path):
        """Without `force` an existing bundle raises an error with a hint."""
        old = make_bundle(tmp_path)
        with pytest.raises(BundleError, match="the output folder exists") as caught, writing(old):
            pass
        assert "--force" in caught.value.hint
        open_bundle(old)

    def test_is_replaced_with_force(self, tmp_path):
        """With `force` the new bundle replaces the old one completely."""
        old = make_bundle(tmp_path)
        (old / "extra").write_text("x")
        with writing(old, force=True) as draft:
            fill(draft, b"another model")

        assert b"another model" == open_bundle(old).model_path.read_bytes()
        assert ["1", "1/golden.npz", "1/manifest.json", "1/model.onnx"] == names(tmp_path)

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_survives_an_error(self, tmp_path, error):
        """An error while the new bundle is written leaves the old one unchanged."""
        old = make_bundle(tmp_path)

        def interrupted():
            with writing(old, force=True) as draft:
                fill(draft, b"half a mod")
                raise error

        with pytest.raises(error):
            interrupted()
        assert b"a model" == open_bundle(old).model_path.read_bytes()
        assert ["1", "1/golden.npz", "1/manifest.json", "1/model.onnx"] == names(tmp_path)

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    def test_is_restored_when_the_last_step_fails(self, tmp_path, error):
        """If the second of the two renames fails, also by Ctrl-C, the old bundle is restored."""

        class Stuck(type(tmp_path)):
            def rename(self, target):
                if self.suffix == ".partial":
                    raise error
                return Path(self).rename(target)

        old = make_bundle(tmp_path)
        draft = Stuck(tmp_path / ".1-x.partial")
        draft.mkdir()
        with pytest.raises(error):
            _take_place(draft, old)
        open_bundle(old)

    def test_other_folders_are_never_replaced(self, tmp_path):
        """`force` replaces only bundles: any other folder is kept."""
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "thesis.tex").write_text("years")
        with pytest.raises(BundleError, match="is not a bundle"), writing(tmp_path / "1", force=True):
            pass
        assert ["1", "1/thesis.tex"] == names(tmp_path)

    @pytest.mark.parametrize("force", [False, True])
    def test_file_is_never_replaced(self, tmp_path, force):
        """A file at the target raises an error."""
        (tmp_path / "1").write_text("x")
        with pytest.raises(BundleError, match="is a file or a link"):
            check_target(tmp_path / "1", force=force)

    def test_link_is_never_replaced(self, tmp_path):
        """A link at the target raises an error, even if it leads to a bundle."""
        (tmp_path / "2").symlink_to(make_bundle(tmp_path))
        with pytest.raises(BundleError, match="is a file or a link"):
            check_target(tmp_path / "2", force=True)
