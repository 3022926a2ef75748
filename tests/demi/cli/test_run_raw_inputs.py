"""`demi run` with texts, images and sounds."""

from __future__ import annotations

import json

import pytest

from demi.cli.main import main
from tests.generating_bundles import write_decoder
from tests.raw_inputs import png, write_raw_bundle


class TestRawInputs:
    """Texts, images and sounds on the command line."""

    def test_texts(self, tmp_path, capsys):
        """The answers, one row a text."""
        bundle = write_raw_bundle(tmp_path / "sentiment" / "1", "sentiment")

        code = main(["run", str(bundle), "--text", "a", "--text", "Paris Paris", "--json"])

        label, scores = json.loads(capsys.readouterr().out)["outputs"][0]
        assert (0, ["bad", "good"], [2, 2]) == (code, label["first"], scores["shape"])

    def test_an_image(self, tmp_path, capsys):
        """By its path."""
        bundle = write_raw_bundle(tmp_path / "color" / "1", "color")
        (tmp_path / "sky.png").write_bytes(png((0, 0, 255)))

        main(["run", str(bundle), "--image", str(tmp_path / "sky.png"), "--json"])

        assert ["blue"] == json.loads(capsys.readouterr().out)["outputs"][0][0]["first"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--text", "a " * 20], "text 0 has 22 tokens"),
            (["--image", "no.png"], "unknown input `image`"),
            (["--golden", "--text-pair", "b"], "--text-pair needs --text"),
            (["--golden", "--truncate"], "--truncate is for raw inputs"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, tmp_path, capsys, options, message):
        """With exit code 2."""
        bundle = write_raw_bundle(tmp_path / "sentiment" / "1", "sentiment")

        assert 2 == main(["run", str(bundle), *options])
        assert message in capsys.readouterr().err

    def test_long_texts_are_cut_when_asked(self, tmp_path):
        """With --truncate."""
        bundle = write_raw_bundle(tmp_path / "sentiment" / "1", "sentiment")

        assert 0 == main(["run", str(bundle), "--text", "a " * 20, "--truncate"])


class TestGeneration:
    """Texts that are generated."""

    def test_a_text_is_continued(self, tmp_path, capsys):
        """One line for each text."""
        bundle = write_decoder(tmp_path / "count" / "1")

        assert 0 == main(["run", str(bundle), "--text", "one", "--text", "one two", "--max-tokens", "2"])
        assert "two three\nthree four\n" == capsys.readouterr().out

    def test_as_json(self, tmp_path, capsys):
        """One document."""
        main(["run", str(write_decoder(tmp_path / "count" / "1")), "--text", "six", "--max-tokens", "1", "--json"])

        assert ["two"] == json.loads(capsys.readouterr().out)["texts"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--audio", "no.wav"], "unknown input `audio`\nhint: the model takes text"),
            (["--text", "one", "-o", "out.npz"], "generated texts are not arrays"),
        ],
        ids=["audio", "output"],
    )
    def test_wrong_options(self, tmp_path, capsys, options, message):
        """Exit code 2, and the reason."""
        bundle = write_decoder(tmp_path / "count" / "1")

        assert 2 == main(["run", str(bundle), *options])
        assert message in capsys.readouterr().err

    def test_a_number_of_tokens_is_for_models_that_generate(self, tmp_path, capsys):
        """Others are refused it."""
        bundle = write_raw_bundle(tmp_path / "sentiment" / "1", "sentiment")

        assert 2 == main(["run", str(bundle), "--text", "a", "--max-tokens", "3"])
        assert "--max-tokens is for models that generate" in capsys.readouterr().err
