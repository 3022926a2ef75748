"""Random graphs with random powers of two: the checker accepts exactly those that leave FP32 bit-equal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demi.calibration.rescaling.certificate import Certificate
from demi.calibration.rescaling.checker import check_rescaled
from demi.exporter.rescaling.apply import scaled
from demi.exporter.rescaling.rescale import differing_bits
from tests.exporter.rescaling.exponents import any_certificate
from tests.models import prepared

LINES = {
    "scaled": "Mul({x}, c{n})",
    "shifted": "Add({x}, c{n})",
    "less": "Sub({x}, c{n})",
    "divided": "Div({x}, c{n})",
    "product": "MatMul({x}, w{n})",
    "layer": "Gemm({x}, w{n}, c{n})",
    "positive": "Relu({x})",
    "leaky": "LeakyRelu<alpha=0.5>({x})",
    "joined": "Add({x}, {earlier})",
    "gated": "Mul({x}, {earlier})",
    "squared": "Pow({x}, two)",
    "normal": "LayerNormalization<epsilon=0.05>({x}, c{n}, d{n})",
    "gate": "Sigmoid({x})",
}
"""What a line of a random graph may be; `earlier` is any tensor before it."""


def _lines(kinds: Iterable[str]) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(sorted(kinds)), st.integers(0, 9)), min_size=1, max_size=7)


chosen = _lines(LINES)
visible = _lines(LINES.keys() - {"positive"})
"""Without Relu: behind one whose inputs are all negative, no constant has an effect on the bits."""


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(lines=chosen, seed=st.integers(0, 1000))
def test_solution_of_the_equations_is_accepted_and_leaves_the_bits(lines: list[tuple[str, int]], seed: int):
    """Whatever exponents the equations allow, FP32 answers are the same to the last bit, and the checker agrees."""
    model = _model(lines)
    changed, certificate = any_certificate(model, np.random.default_rng(seed))

    assert [] == check_rescaled(model, changed, certificate)
    assert [] == differing_bits(model, changed, _feeds(seed))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(lines=visible, seed=st.integers(0, 1000), step=st.sampled_from([-3, 1, 2]))
def test_checker_accepts_exactly_what_leaves_the_bits(lines: list[tuple[str, int]], seed: int, step: int):
    """One constant more is scaled, and the certificate says so: it is accepted where the bits are the same, and nowhere else."""
    model = _model([("scaled", 0), *lines])
    changed, certificate = any_certificate(model, np.random.default_rng(seed))
    name = sorted(changed.graph.initializers)[seed % len(changed.graph.initializers)]
    if name == "two":
        return
    certificate = _scaled_further(changed, certificate, name, step)

    refused = bool(check_rescaled(model, changed, replace(certificate, tensors={})))

    assert bool(differing_bits(model, changed, _feeds(seed))) == refused


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(lines=chosen, seed=st.integers(0, 1000), step=st.sampled_from([-1, 1, 4]))
def test_certificate_with_one_exponent_changed_is_refused(lines: list[tuple[str, int]], seed: int, step: int):
    """Of a tensor, a constant or an epsilon: whatever the certificate says otherwise, the model does not."""
    model = _model([("scaled", 0), *lines])
    changed, certificate = any_certificate(model, np.random.default_rng(seed))
    lies = [
        replace(certificate, tensors=certificate.tensors | {name: exponent + step})
        for name, exponent in certificate.tensors.items()
    ]
    lies += [
        replace(certificate, constants=_one_changed(certificate.constants, i, step))
        for i in range(len(certificate.constants))
    ]
    lies += [
        replace(certificate, numbers=_one_changed(certificate.numbers, i, step))
        for i in range(len(certificate.numbers))
    ]

    assert all(check_rescaled(model, changed, lie) for lie in lies)


def _one_changed(entries: tuple, position: int, step: int) -> tuple:  # type: ignore[type-arg]
    other = replace(entries[position], exponent=entries[position].exponent + step)
    return (*entries[:position], other, *entries[position + 1 :])


def _scaled_further(changed: ir.Model, certificate: Certificate, name: str, step: int) -> Certificate:
    """Scale a constant once more, in the model and in what the certificate says of it."""
    from demi.calibration.rescaling.certificate import ScaledConstant

    value = changed.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = scaled(value.const_value, step)
    known = {each.name: each for each in certificate.constants}
    before = known.get(name, ScaledConstant(name, name, 0))
    known[name] = replace(before, exponent=before.exponent + step)
    return replace(certificate, constants=tuple(known.values()))


def _feeds(seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(0, 1, (3, 4)).astype(np.float32)} for _ in range(2)]


def _model(lines: list[tuple[str, int]]) -> ir.Model:
    """A graph of these lines, behind a factor and before another; every constant is read by one line."""
    rng = np.random.default_rng(len(lines))
    body, constants, names = [], ["float two = {2.0}"], ["x"]
    for n, (kind, earlier) in enumerate(lines):
        expression = LINES[kind].format(x=names[-1], n=n, earlier=names[earlier % len(names)])
        for letter, shape in (("c", (4,)), ("d", (4,)), ("w", (4, 4))):
            if f"{letter}{n}" in expression:
                numbers = ", ".join(f"{x:.4f}" for x in rng.uniform(0.5, 2.0, shape).ravel() * rng.choice([-1, 1], 1))
                constants.append(f"float[{','.join(map(str, shape))}] {letter}{n} = {{{numbers}}}")
        names.append(f"t{n}")
        body.append(f"t{n} = {expression}")
    return prepared(
        f"m (float[3, 4] x) => (float[3, 4] y) <float last = {{0.75}}, {', '.join(constants)}> "
        f"{{ {chr(10).join(body)}\n y = Mul({names[-1]}, last) }}"
    )
