"""RNN, GRU and LSTM with states that are rounded after every step."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from demi.accuracy.compare import relative_l2
from demi.calibration.emulation.kernels import spell_out
from demi.calibration.emulation.widen import widen
from tests.exporter.planning.helpers import emulator, floats
from tests.models import check, in_half, ops, prepared, run

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEPS, ROWS, INPUT, HIDDEN = 6, 3, 2, 4


def model_of(op, direction="forward", **choices):
    """Return a recurrent model with weights as inputs, and its inputs."""
    source, given = text_of(op, direction, **choices)
    return prepared(source), given


def text_of(op, direction="forward", *, options="", lens=False, states=False, peepholes=False, opset=20):
    """Return the same model as text."""
    d, gates = 2 if direction == "bidirectional" else 1, GATES[op]
    given = {
        "x": floats(STEPS, ROWS, INPUT, seed=1),
        "w": floats(d, gates * HIDDEN, INPUT, seed=2),
        "r": floats(d, gates * HIDDEN, HIDDEN, seed=3, scale=0.7),
        "b": floats(d, 2 * gates * HIDDEN, seed=4),
    }
    if lens:
        given["lens"] = np.array([STEPS, 2, 3], np.int32)
    if states:
        given["h"] = floats(d, ROWS, HIDDEN, seed=5)
    if states and op == "LSTM":
        given["c"] = floats(d, ROWS, HIDDEN, seed=6)
    if peepholes:
        given["p"] = floats(d, 3 * HIDDEN, seed=7)
    order = [name if name in given else "" for name in ("x", "w", "r", "b", "lens", "h", "c", "p")]
    operands = ", ".join(order).rstrip(", ")
    inputs = ", ".join(
        f"{'int32' if each.dtype == np.int32 else 'float'}[{', '.join(map(str, each.shape))}] {name}"
        for name, each in given.items()
    )
    names = ["y", "y_h", "y_c"][: 3 if op == "LSTM" else 2]
    shapes = [f"float[{STEPS}, {d}, {ROWS}, {HIDDEN}]"] + [f"float[{d}, {ROWS}, {HIDDEN}]"] * 2
    outputs = ", ".join(f"{shape} {name}" for shape, name in zip(shapes, names, strict=False))
    attributes = f'hidden_size = {HIDDEN}, direction = "{direction}"{options}'
    source = f"m ({inputs}) => ({outputs}) {{ [it] {', '.join(names)} = {op} <{attributes}> ({operands}) }}"
    return f'<ir_version: 10, opset_import: ["" : {opset}]> {source}', given


def unrolled_copy(model):
    """Return a copy with one copy of the cell for every step."""
    return spell_out(model.clone(), lambda node: True)


def sigmoid(x):
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def gru(given, rounded):
    """Return a NumPy GRU (linear before reset) with a state rounded after every step, and the sum of its biases."""
    (w, r, b) = (given[name][0] for name in ("w", "r", "b"))
    gates = len(w) * 2 // 3
    bias, after = np.split(b.copy(), 2)
    bias[:gates], after[:gates] = rounded(bias[:gates] + after[:gates]), 0
    h, shown = np.zeros((given["x"].shape[1], r.shape[1]), np.float32), []
    for x in given["x"]:
        a, q = np.split(x @ w.T + bias, 3, 1), np.split(h @ r.T + after, 3, 1)
        update, reset = sigmoid(a[0] + q[0]), sigmoid(a[1] + q[1])
        h = rounded((1 - update) * np.tanh(a[2] + reset * q[2]) + update * h)
        shown.append(h)
    return np.stack(shown)[:, None]


def lstm(given, rounded):
    """Return a NumPy LSTM, its states rounded after every step, and the sum of its biases."""
    (w, r, b) = (given[name][0] for name in ("w", "r", "b"))
    h, shown = np.zeros((given["x"].shape[1], r.shape[1]), np.float32), []
    c, bias = h, rounded(b[: len(w)] + b[len(w) :])
    for x in given["x"]:
        i, o, f, new = np.split(x @ w.T + h @ r.T + bias, 4, 1)
        wide = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
        h, c = rounded(sigmoid(o) * np.tanh(wide)), rounded(wide)
        shown.append(h)
    return np.stack(shown)[:, None]


def rnn(given, rounded):
    """Return a plain NumPy RNN, its state rounded after every step."""
    (w, r, b) = (given[name][0] for name in ("w", "r", "b"))
    bias = rounded(b[: len(w)] + b[len(w) :])
    h, shown = np.zeros((given["x"].shape[1], r.shape[1]), np.float32), []
    for x in given["x"]:
        h = rounded(np.tanh(x @ w.T + h @ r.T + bias))
        shown.append(h)
    return np.stack(shown)[:, None]


IN_NUMPY = {"RNN": rnn, "GRU": gru, "LSTM": lstm}


class TestEqual:
    """In FP32 the unrolled steps compute the same as the node."""

    @pytest.mark.parametrize("op", GATES)
    @pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
    @pytest.mark.parametrize("opset", [11, 14, 20])
    def test_directions(self, op, direction, opset):
        """Either direction or both are supported, with and without lengths and initial states."""
        for lens, states in itertools.product((False, True), repeat=2):
            model, given = model_of(op, direction, lens=lens, states=states, opset=opset)
            changed = unrolled_copy(model)

            check(changed)
            assert "Scan" in ops(changed)
            for name, want in run(model, given).items():
                np.testing.assert_allclose(run(changed, given)[name], want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("op", "options", "peepholes"),
        [
            ("GRU", ", linear_before_reset = 1", False),
            ("GRU", ', activations = ["Sigmoid", "Relu", "Sigmoid", "Tanh"]', False),
            ("LSTM", ", clip = 0.5, input_forget = 1", True),
        ],
    )
    def test_options(self, op, options, peepholes):
        """Attributes and peepholes have the same meaning as in the node."""
        model, given = model_of(op, "bidirectional", options=options, peepholes=peepholes)

        for name, want in run(model, given).items():
            np.testing.assert_allclose(run(unrolled_copy(model), given)[name], want, rtol=1e-4, atol=1e-5)

    def test_omitted_outputs(self):
        """A node with only its last state as output is unrolled as well."""
        model, given = model_of("LSTM")
        source = prepared("""
        <ir_version: 10, opset_import: ["" : 20]>
        m (float[6, 3, 2] x, float[1, 16, 2] w, float[1, 16, 4] r, float[1, 32] b) => (float[1, 3, 4] y_h)
        { [it] , y_h = LSTM <hidden_size = 4> (x, w, r, b) }
        """)

        assert "Scan" in ops(unrolled_copy(source))
        np.testing.assert_allclose(run(unrolled_copy(source), given)["y_h"], run(model, given)["y_h"], rtol=1e-5)

    @pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
    def test_sequences_without_a_step(self, direction):
        """Sequences of length zero have zero states."""
        model, given = model_of("LSTM", direction, lens=True, states=True)
        given["lens"] = np.int32([STEPS, 0, 3])

        for name, want in run(model, given).items():
            np.testing.assert_allclose(run(unrolled_copy(model), given)[name], want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
    def test_no_step_at_all(self, direction):
        """A node without steps has the right output shape; its last states are undefined in ONNX Runtime."""
        source, given = text_of("LSTM", direction, states=True)
        model = prepared(source.replace(f"[{STEPS}, ", "[steps, "))
        given["x"] = np.zeros((0, ROWS, INPUT), np.float32)
        got = run(unrolled_copy(model), given)

        assert {name: each.shape for name, each in run(model, given).items()} == {
            n: each.shape for n, each in got.items()
        }
        assert 0 == np.abs(got["y_h"]).max()


class TestNotUnrolled:
    """Nodes that are not unrolled."""

    def test_one_step(self):
        """A node of one step is not unrolled, because it stores its states anyway."""
        model = prepared("""
        m (float[1, 3, 2] x, float[1, 4, 2] w, float[1, 4, 4] r) => (float[1, 1, 3, 4] y)
        { y = RNN <hidden_size = 4> (x, w, r) }
        """)

        assert ["RNN"] == ops(unrolled_copy(model))

    def test_activations_with_parameters_in_both_directions(self):
        """The direction of an activation's parameter depends on the activations before it."""
        options = ', activations = ["LeakyRelu", "LeakyRelu"], activation_alpha = [0.1, 0.2]'
        model, _ = model_of("RNN", "bidirectional", options=options)

        assert ["RNN"] == ops(unrolled_copy(model))


class TestRounding:
    """Rounding of the steps in half."""

    @pytest.mark.parametrize("op", GATES)
    @pytest.mark.parametrize(("kind", "half"), [(np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16")])
    def test_states_are_rounded(self, op, kind, half):
        """The emulator equals NumPy with states rounded after every step, not with the result rounded once."""
        steps, hidden, gates = 200, 16, GATES[op]
        given = {
            "x": floats(steps, 2, 4, seed=1),
            "w": floats(1, gates * hidden, 4, seed=2, scale=0.5),
            "r": floats(1, gates * hidden, hidden, seed=3, scale=0.3),
            "b": floats(1, 2 * gates * hidden, seed=4, scale=0.3),
        }
        if op == "GRU":
            given["b"][:, :hidden] += (
                4  # an update gate that keeps nearly everything: steps too small for half are lost
            )
        given = {name: each.astype(kind).astype(np.float32) for name, each in given.items()}
        inputs = ", ".join(f"float[{', '.join(map(str, each.shape))}] {name}" for name, each in given.items())
        number = {"float16": 10, "bfloat16": 16}[half]
        casts = " ".join(f"{name}h = Cast <to = {number}> ({name})" for name in given)
        option = ", linear_before_reset = 1" if op == "GRU" else ""
        model = prepared(
            f"m ({inputs}) => (float[{steps}, 1, 2, {hidden}] y)"
            f"{{ {casts} yh = {op} <hidden_size = {hidden}{option}> (xh, wh, rh, bh) y = Cast <to = 1> (yh) }}"
        )
        exact = IN_NUMPY[op](given, lambda each: each)
        expected = relative_l2(exact, IN_NUMPY[op](given, lambda each: each.astype(kind).astype(np.float32)))

        found = relative_l2(exact, run(widen(model), given)["y"])
        once = relative_l2(exact, run(widen(model, kernels=False), given)["y"])

        assert expected == pytest.approx(found, rel=0.1)
        assert found > (3 if op == "GRU" else 1.05) * once

    @pytest.mark.parametrize("op", GATES)
    def test_switches(self, op):
        """The switchable emulator equals the half model with the switch on, and FP32 with it off."""
        source, given = text_of(op, "bidirectional", lens=True, states=True)
        model = prepared(source)
        given = {name: np.float16(each).astype(each.dtype) for name, each in given.items()}
        with emulator(model) as switchable:
            on, off = switchable.run({"it"}, given), switchable.run(frozenset(), given)
        halves = {name: each.astype(np.float16) if each.dtype == np.float32 else each for name, each in given.items()}

        for name, want in run(widen(prepared(in_half(source))), halves).items():
            np.testing.assert_allclose(on[name], want, rtol=2e-3, atol=2e-3)
        for name, want in run(model, given).items():
            np.testing.assert_allclose(off[name], want, rtol=1e-4, atol=1e-5)
        assert any(not np.array_equal(on[name], off[name]) for name in on)
