"""Proofs on disk: sealed by this machine, and valid in one place only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from demi.bundles.bundle import Bundle, open_bundle
from demi.proofs.record import (
    FOLDER,
    SCHEMA,
    Attempt,
    Place,
    Proof,
    Road,
    Timing,
    place_of,
    read_proof,
    write_proof,
)
from demi.runtime.openvino.capability import Cpu
from tests.server.bundles import SCALE, write_bundle

KEY, OTHER = b"k" * 32, b"o" * 32
CPU = Cpu("Xeon", 2, frozenset({"amx_bf16"}))
TYPED, HINTED = Road("model.onnx", "dynamic"), Road("reference.onnx", "bf16")


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """Return a bundle to prove."""
    return open_bundle(write_bundle(tmp_path / "b", SCALE))


def right(*ratios: float, error: float = 1e-3) -> Attempt:
    return Attempt(TYPED, "", {"y": error}, tuple(Timing(rows, ratio, 1.0) for rows, ratio in enumerate(ratios, 1)))


def proof_in(place: Place, *attempts: Attempt) -> Proof:
    return Proof(SCHEMA, place, str(CPU), "bf16", attempts)


class TestFiles:
    """Reading and refusing proof files."""

    def test_as_it_was(self, bundle):
        """A proof is read as it was written, except for the seal."""
        place = place_of(bundle, CPU, "2026.4.1", 2)
        written = proof_in(place, right(3.0, 4.0), Attempt(TYPED, "died"))

        assert write_proof(bundle, written, KEY)
        assert written == replace(read_proof(bundle, place, KEY) or written, seal="")

    @pytest.mark.parametrize("key", [OTHER, None])
    def test_from_another_machine(self, bundle, key, caplog):
        """A proof with the seal of another key is ignored."""
        place = place_of(bundle, CPU, "2026.4.1", 2)
        write_proof(bundle, proof_in(place, right(3.0)), KEY)

        assert read_proof(bundle, place, key) is None
        assert "was not made here" in caplog.text

    def test_changed(self, bundle):
        """A changed digit breaks the seal."""
        place = place_of(bundle, CPU, "2026.4.1", 2)
        write_proof(bundle, proof_in(place, right(0.5)), KEY)
        file = next((bundle.path / FOLDER).iterdir())
        file.write_text(file.read_text().replace("0.5", "5.5"))

        assert read_proof(bundle, place, KEY) is None

    @pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[" * 100_000])
    def test_damaged(self, bundle, data):
        """A damaged proof is ignored."""
        place = place_of(bundle, CPU, "2026.4.1", 2)
        write_proof(bundle, proof_in(place, right(3.0)), KEY)
        next((bundle.path / FOLDER).iterdir()).write_bytes(data)

        assert read_proof(bundle, place, KEY) is None

    @pytest.mark.parametrize(
        "changes",
        [
            {"cpu": Cpu("Xeon", 2, frozenset()).identity},
            {"openvino": "2026.5.0"},
            {"onnxruntime": "1.0"},
            {"bundle_sha256": "0" * 64},
            {"threads": 1},
        ],
    )
    def test_another_place(self, bundle, changes):
        """A proof is ignored if anything about its place differs."""
        place = place_of(bundle, CPU, "2026.4.1", 2)
        write_proof(bundle, proof_in(place, right(3.0)), KEY)

        assert read_proof(bundle, replace(place, **changes), KEY) is None

    def test_one_file_for_each_machine(self, bundle):
        """Machines that share a folder write different files."""
        places = [place_of(bundle, CPU, "2026.4.1", threads) for threads in (1, 2)]
        for place in places:
            write_proof(bundle, proof_in(place, right(float(place.threads))), KEY)

        assert [1.0, 2.0] == [
            found.attempts[0].speedup for place in places if (found := read_proof(bundle, place, KEY))
        ]

    def test_where_nothing_can_be_written(self, bundle, caplog):
        """An unwritable folder is not an error, but is logged."""
        (bundle.path / FOLDER).write_text("a file")
        caplog.set_level("INFO")

        assert not write_proof(bundle, proof_in(place_of(bundle, CPU, "2026.4.1", 2), right(3.0)), KEY)
        assert "cannot be kept" in caplog.text


class TestVerdict:
    """Verdicts of proofs."""

    PLACE = Place("cpu", "2026.4.1", "1.32.0", "0" * 64, 2)

    @pytest.mark.parametrize(
        ("attempts", "pays", "words"),
        [
            (
                (right(3.0, 4.0),),
                True,
                "bf16 in OpenVINO 2026.4.1 on Xeon with AMX-BF16 takes 0.33 of FP32's time at an error of 0.001",
            ),
            ((right(3.0, 0.9),), False, "takes 1.11 of FP32's time at an error of 0.001, which does not pay"),
            ((right(1.04),), False, "which does not pay"),
            (
                (Attempt(TYPED, "it died"),),
                False,
                "bf16 cannot be served by OpenVINO 2026.4.1 on Xeon with AMX-BF16: model.onnx in dynamic: it died",
            ),
        ],
    )
    def test_in_words(self, attempts, pays, words):
        """The verdict says whether half is faster at every batch size, and whether it is correct."""
        proof = proof_in(self.PLACE, *attempts)

        assert pays is proof.pays
        assert words in proof.verdict()

    def test_the_clearly_faster_right_one(self):
        """A fast runtime beyond the budget is never chosen."""
        wrong = replace(right(9.0), why="beyond the budget")

        assert right(2.0) == proof_in(self.PLACE, right(1.5), wrong, right(2.0)).best

    @pytest.mark.parametrize(("first", "second"), [(1.5, 1.56), (0.5, 1.0)], ids=["hardly faster", "does not pay"])
    def test_the_half_model_is_preferred(self, first, second):
        """The half model is preferred unless another way is clearly faster, because it is what was planned."""
        assert right(first) == proof_in(self.PLACE, right(first), right(second)).best

    @pytest.mark.parametrize(
        ("taken", "refused", "is_missed"),
        [(2.0, 2.5, True), (2.0, 2.3, False), (0.8, 1.04, False)],
        ids=["much faster", "hardly faster", "slower than FP32"],
    )
    def test_what_was_missed(self, taken, refused, is_missed):
        """A way that only its error speaks against is remembered where it is much faster than the one that is taken."""
        other = replace(right(refused), why="beyond the budget")

        assert (other if is_missed else None) == proof_in(self.PLACE, right(taken), other).missed

    def test_exceptions_that_are_enough(self):
        """Where they make the faster way right, another plan would only slow it down."""
        free = replace(right(5.0), road=HINTED, why="beyond the budget")
        planned = replace(right(1.0), road=replace(HINTED, islands=True))

        assert proof_in(self.PLACE, right(1.0), free, planned).missed is None

    def test_a_death_is_no_miss(self):
        """What failed has no times."""
        assert proof_in(self.PLACE, Attempt(TYPED, "died")).missed is None

    def test_the_half_model_itself(self):
        """The half model's own result is kept if it is wrong, but not if it crashed."""
        wrong, other = replace(right(9.0), why="beyond the budget"), replace(right(2.0), road=HINTED)

        assert (other, wrong) == (proof_in(self.PLACE, wrong, other).best, proof_in(self.PLACE, wrong, other).planned)
        assert proof_in(self.PLACE, Attempt(TYPED, "died"), other).planned is None

    def test_without_anything(self):
        """The verdict says what is missing."""
        proof = replace(proof_in(self.PLACE), why_not="nothing to prove by")

        assert "nothing to prove by" in proof.verdict()
