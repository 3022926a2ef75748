"""Observation: every float tensor of a model is measured, a few at a time."""

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.observe import Probe, exposed, observe, probing
from demi.calibration.samples import Samples, fit_samples, load_arrays
from demi.calibration.sessions import session_for
from tests.exporter.planning.helpers import floats, samples
from tests.models import (
    BRANCHES,
    EMBEDDING,
    LAYER_NORM,
    LOOP,
    MLP,
    SCAN,
    prepared,
    run,
    text,
)

FEEDS = {
    "mlp": (MLP, {"x": floats(3, 4)}),
    "layer norm": (LAYER_NORM, {"x": floats(3, 4)}),
    "embedding": (EMBEDDING, {"input_ids": np.array([[0, 4]]), "attention_mask": np.array([[1, 0]])}),
    "branches": (BRANCHES, {"x": floats(3), "flag": np.array(True)}),
    "loop": (LOOP, {"x": floats(3)}),
    "scan": (SCAN, {"x": floats(3, 2)}),
}


class FakeSession:
    """Session that returns tensors of given sizes and records the bytes of each run."""

    def __init__(self, sizes):
        self.sizes = sizes
        self.runs = []

    def run(self, feeds, names):
        """Return zeros of the right size."""
        self.runs.append(sum(self.sizes[name] for name in names))
        return {name: np.zeros(self.sizes[name], np.uint8) for name in names}


class TestObserve:
    """Ranges of a whole model."""

    @pytest.mark.parametrize("name", FEEDS)
    def test_every_float_tensor_is_seen(self, name):
        """Inputs, weights and all float tensors of the main graph are observed; subgraphs run in their own scope."""
        source, feeds = FEEDS[name]
        model = prepared(source)
        values = [*model.graph.inputs, *model.graph.initializers.values()]
        values += [value for node in model.graph for value in node.outputs]
        wanted = {value.name for value in values if value.dtype is ir.DataType.FLOAT}

        assert wanted <= set(observe(model, samples(feeds)).ranges)

    def test_ranges_are_those_of_the_values(self):
        """Ranges are those of FP32, over all sets."""
        model = prepared(MLP)
        sets = [{"x": floats(3, 4, seed=seed)} for seed in range(3)]
        answers = np.concatenate([run(model, feeds)["y"] for feeds in sets])

        found = observe(model, samples(*sets))

        assert (float(answers.min()), float(answers.max())) == (found["y"].low, found["y"].high)
        assert (18, 6) == (found["y"].count, found["y"].elements_per_set)
        assert ("the test", 3) == (found.origin, found.sets)

    def test_overflow_and_nan_are_seen(self):
        """Values that are not finite in FP32 are counted."""
        model = prepared("m (float[n] x) => (float[n] y) { a = Exp(x) y = Sub(a, a) }")

        found = observe(model, samples({"x": np.float32([1, 1000])}))

        assert (1, 1) == (found["a"].infinities, found["y"].nans)

    def test_weights_of_branches_are_seen(self):
        """A weight inside a branch is observed like any other."""
        model = prepared(
            "m (bool flag, float[n] x) => (float[n] y) { y = If (flag) <"
            "then_branch = yes () => (float[n] a) { k = Constant <value: tensor = float {7.0}> () a = Mul(x, k) },"
            "else_branch = no () => (float[n] b) { b = Identity(x) } > }"
        )

        found = observe(model, samples({"x": floats(2), "flag": np.array(True)}))

        assert 7.0 in {each.high for each in found.ranges.values()}

    def test_the_model_is_not_changed(self):
        """Observation adds no output to the model itself."""
        model = prepared(MLP)
        before = text(model)

        observe(model, samples({"x": floats(1, 4)}))

        assert before == text(model)

    def test_samples_from_an_archive(self, tmp_path):
        """Inputs are read from an .npz file, by name."""
        np.savez(tmp_path / "one.npz", x=floats(2, 4))

        assert floats(2, 4).max() == self.highest(tmp_path / "one.npz")

    def test_samples_from_a_folder(self, tmp_path):
        """All archives of a folder are read."""
        for seed in range(3):
            np.savez(tmp_path / f"{seed}.npz", x=floats(2, 4, seed=seed))

        assert max(floats(2, 4, seed=seed).max() for seed in range(3)) == self.highest(tmp_path)

    def test_samples_from_a_function(self):
        """The sets that a function yields are read."""
        assert 9.0 == self.highest("tests.calibration.test_observe:yielded")

    def highest(self, source):
        """Return the largest x observed with these samples."""
        model = prepared(MLP)
        with session_for(model) as session:
            found: Samples = fit_samples(load_arrays(source), session.inputs, str(source))
        return observe(model, found)["x"].high


def yielded():
    """Yield two sets of inputs for the MLP."""
    yield {"x": np.full((1, 4), 4, np.float32)}
    yield {"x": np.full((2, 4), 9, np.float32)}


class TestProbe:
    """Reading intermediate tensors in bounded memory."""

    def read_all(self, sizes, chunk_bytes):
        """Return the bytes of each run when all tensors of a fake session are read once, and again."""
        session = FakeSession(sizes)
        probe = Probe(session, list(sizes), chunk_bytes)
        passes = []
        for _ in range(2):
            assert list(sizes) == [name for values in probe.read({}) for name in values]
            passes.append(session.runs)
            session.runs = []
        return passes

    def test_runs_do_not_exceed_a_chunk(self):
        """Once sizes are known, no run exceeds a chunk; the first runs do not exceed it by much."""
        first, second = self.read_all({f"t{i}": 10 + i % 7 * 20 for i in range(200)}, chunk_bytes=1000)

        assert max(second) <= 1000
        assert max(first) <= 1500

    def test_the_first_run_is_small(self):
        """Without known sizes the first run reads few tensors; the others are assumed to be like their neighbours."""
        first, _ = self.read_all({f"t{i}": 100 for i in range(64)}, chunk_bytes=1000)

        assert [1600, *[1000] * 4, 800] == first

    def test_known_sizes_fill_the_chunk(self):
        """With known sizes the chunks are full."""
        _, second = self.read_all({f"t{i}": 100 for i in range(64)}, chunk_bytes=1000)

        assert [*[1000] * 6, 400] == second

    def test_a_tensor_beyond_the_chunk_has_a_run_of_its_own(self):
        """A tensor larger than a chunk is read alone."""
        _, second = self.read_all({"a": 10, "huge": 5000, "b": 10}, chunk_bytes=1000)

        assert [10, 5000, 10] == second

    def test_many_small_tensors_take_few_runs(self):
        """Scalars share a run, even after large tensors."""
        sizes = {f"t{i}": 4 for i in range(1000)}

        assert 6 > len(self.read_all(sizes, chunk_bytes=1 << 20)[0])

    def test_no_tensors(self):
        """Without tensors nothing runs."""
        assert [[], []] == self.read_all({}, chunk_bytes=1000)

    def test_requested_tensors_only(self):
        """Only the requested tensors are read."""
        with probing(prepared(MLP)) as probe:
            (values,) = probe.read({"x": floats(1, 4)}, ["active", "y"])

        assert ["active", "y"] == list(values)

    def test_exposed_tensors(self):
        """Every tensor becomes an output once, except tensors in subgraphs and sequences."""
        source = "m (float[n] x) => (float[n] y) <int64 one = {1}> { a = Exp(x) s = SequenceConstruct(x, a) b = SequenceAt(s, one) y = Neg(b) }"

        copy, names = exposed(prepared(source))

        assert ["a", "b", "y"] == names
        assert ["y", "a", "b"] == [value.name for value in copy.graph.outputs]
        assert ["start", "y"] == exposed(prepared(LOOP))[1]
