"""`demi check`: an intact bundle passes, and every kind of damage fails."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demi.accuracy.budget import parse_budget
from demi.bundles.bundle import Golden, open_bundle, write_golden
from demi.calibration.gate.baseline import read_baseline, write_baseline
from demi.calibration.gate.bundle_sessions import run_half
from demi.calibration.gate.check import CheckOptions, check_bundle
from demi.calibration.gate.gates import REFERENCE_TOLERANCE
from demi.errors import BundleError, DigestError, InputError
from demi.float16 import BF16, to_half
from demi.runtime.base import CPU, Device
from demi.runtime.onnxruntime.session import open_session
from demi.tensors import DType, TensorSpec
from tests.calibration.bundles import edit_model, export, force_half, reseal, scale_weight
from tests.fakes import FakeSession
from tests.models import OVERFLOW


@pytest.fixture
def bundle(tmp_path):
    """Return an intact bundle."""
    return export(tmp_path)


class TestIntact:
    """Bundles as they were written."""

    def test_passes(self, bundle):
        """An intact bundle passes, and the check reports its margins."""
        check = check_bundle(bundle)

        assert check
        assert ((), "tiny", 1, "fp16") == (check.failures, check.name, check.version, check.precision)
        assert 0 < check.comparison.outputs[0].relative_l2 < 1e-2
        assert check.reference_error <= REFERENCE_TOLERANCE

    def test_without_a_reference(self, tmp_path):
        """A bundle without a reference fails, because there is nothing to compare with."""
        check = check_bundle(export(tmp_path, reference=False))

        assert check
        assert check.reference_error is None

    def test_newest_version(self, tmp_path):
        """A model's folder stands for its newest version."""
        export(tmp_path)
        export(tmp_path, version=2)

        assert 2 == check_bundle(tmp_path / "tiny").version

    def test_budget_of_its_own(self, tmp_path):
        """A bundle is held to the budget that it was exported with."""
        budget = parse_budget(["cosine=0.9,top1=0.5"])

        assert budget.default == check_bundle(export(tmp_path, budget=budget)).comparison.outputs[0].limits

    def test_budget_that_is_given(self, bundle):
        """A tighter budget can be passed."""
        check = check_bundle(bundle, parse_budget(["relative_l2=1e-9"]))

        assert not check
        assert check.failures[0].startswith("`y`: relative_l2 is")

    def test_budget_for_an_unknown_output(self, bundle):
        """A budget for an unknown output raises an error."""
        with pytest.raises(InputError, match="names output `logits`"):
            check_bundle(bundle, parse_budget(["logits:top1=1"]))


class TestDevice:
    """The device that the half model runs on."""

    @pytest.fixture
    def gpu(self, monkeypatch):
        """Replace GPU sessions by CPU sessions and return a list of the models and devices that were requested."""
        opened = []

        def open_anywhere(model, device=CPU, settings=None):
            if isinstance(model, Path):
                opened.append((model.name, str(device)))
            return open_session(model, CPU, settings)

        monkeypatch.setattr("demi.calibration.gate.bundle_sessions.open_tried", open_anywhere)
        return opened

    def test_only_the_half_model_runs_on_the_device(self, gpu, bundle):
        """The half model runs on the device, and the reference stays on the CPU."""
        check = check_bundle(bundle, options=CheckOptions(device=Device("cuda", 1)))

        assert [("model.onnx", "cuda:1"), ("reference.onnx", "cpu")] == gpu
        assert (True, "cuda:1") == (bool(check), check.device)

    def test_no_emulation_on_a_device(self, gpu, tmp_path):
        """On a device the model runs without emulation: this one does not overflow where the emulator does."""
        made = export(tmp_path, OVERFLOW, inputs={"x": np.float32([1024.0, 3.0])})
        force_half(made)

        assert not check_bundle(made)
        assert check_bundle(made, options=CheckOptions(device=Device("cuda")))

    def test_bf16_outputs_are_decoded(self, tmp_path):
        """BF16 outputs are bits, which are decoded to numbers."""
        spec = TensorSpec("y", DType.BF16, (2,))
        session = FakeSession((), (spec,), lambda _: {"y": to_half(np.float32([1.5, -2.0]), BF16)})

        assert [1.5, -2.0] == run_half(session, {})["y"].tolist()

    def test_a_baseline_of_another_device(self, gpu, bundle, tmp_path):
        """An entry names its device, and is only compared with results of that device."""
        on_gpu = CheckOptions(device=Device("cuda"))
        check = check_bundle(bundle, options=on_gpu)
        write_baseline(tmp_path / "b.json", {"tiny": check.baseline_entry({}, None)})
        baseline = read_baseline(tmp_path / "b.json")

        assert check_bundle(bundle, options=replace(on_gpu, baseline=baseline))
        with pytest.raises(InputError, match="was measured on cuda:0, but this check runs on cpu"):
            check_bundle(bundle, options=CheckOptions(baseline=baseline))


class TestDamaged:
    """Bundles that were damaged after the export."""

    @pytest.mark.parametrize("name", ["model.onnx", "reference.onnx", "golden.npz", "plan.json"])
    def test_flipped_bit(self, bundle, name):
        """One flipped bit in any file raises DigestError."""
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)
        with pytest.raises(DigestError, match=name):
            check_bundle(bundle)

    def test_changed_weight(self, bundle):
        """A changed weight with a valid digest is over budget, and the output is named."""
        edit_model(bundle, scale_weight("w1_fp16", 50))
        check = check_bundle(bundle)

        assert not check
        assert check.failures[0].startswith("`y`: relative_l2 is")
        assert 1 == len(check.failures)

    def test_infinite_weight(self, bundle):
        """An infinite weight is reported as a non-finite output."""
        edit_model(bundle, scale_weight("w2_fp16", np.inf))

        assert "NaN or infinite where FP32 is not" in check_bundle(bundle).failures[0]

    def test_changed_reference(self, bundle):
        """A changed reference is found as well."""
        edit_model(bundle, scale_weight("w2", 1.5), "reference.onnx")
        check = check_bundle(bundle)

        assert not check
        assert check.comparison
        assert "the FP32 reference differs from the golden outputs" in check.failures[0]

    def test_reference_that_returns_nan(self, bundle):
        """A reference that returns NaN is refused."""
        edit_model(bundle, scale_weight("w2", np.nan), "reference.onnx")

        assert "differs from the golden outputs by inf" in check_bundle(bundle).failures[0]

    @pytest.mark.parametrize("name", ["model.onnx", "reference.onnx"])
    def test_model_that_cannot_be_read(self, bundle, name):
        """A model that is not an ONNX file raises an error, although its digest is valid."""
        (bundle / name).write_bytes(b"garbage")
        reseal(bundle)
        with pytest.raises(InputError, match=r"cannot (be read|load)"):
            check_bundle(bundle)

    @pytest.mark.parametrize(
        "golden",
        [
            lambda golden: Golden([], []),
            lambda golden: Golden(golden.inputs, [{} for _ in golden.outputs]),
            lambda golden: Golden(golden.inputs, [feeds | {"z": feeds["y"]} for feeds in golden.outputs]),
            lambda golden: Golden(golden.inputs, [{"z": feeds["y"]} for feeds in golden.outputs]),
            lambda golden: Golden([{"z": feeds["x"]} for feeds in golden.inputs], golden.outputs),
            lambda golden: Golden([{"x": feeds["x"][:, :3]} for feeds in golden.inputs], golden.outputs),
            lambda golden: Golden([{"x": feeds["x"].astype(int)} for feeds in golden.inputs], golden.outputs),
        ],
        ids=["none", "no-outputs", "extra-output", "other-output", "other-input", "shape", "dtype"],
    )
    def test_golden_of_another_model(self, bundle, golden):
        """Golden arrays that do not fit the model raise an error."""
        write_golden(bundle, golden(open_bundle(bundle).golden()))
        reseal(bundle)
        with pytest.raises(BundleError, match="golden"):
            check_bundle(bundle)

    def test_changed_golden_outputs(self, bundle):
        """Changed golden outputs fail against both models."""
        golden = open_bundle(bundle).golden()
        write_golden(bundle, Golden(golden.inputs, [{"y": feeds["y"] + 1} for feeds in golden.outputs]))
        reseal(bundle)

        assert 2 == len(check_bundle(bundle).failures)

    def test_missing_bundle(self, tmp_path):
        """A missing bundle raises an error."""
        with pytest.raises(BundleError, match="no such bundle"):
            check_bundle(tmp_path / "none")


def test_a_budget_for_tokens_is_for_exports(bundle):
    """A check does not generate texts, and says so rather than pass."""
    with pytest.raises(InputError, match="`tokens` is a limit for models that generate"):
        check_bundle(bundle, parse_budget(["tokens=0.99"]))
