"""A trained model whose ranges leave FP16, fine-tuned until they fit, with the answers that it gave before."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from demi.cli.main import main
from demi.errors import InputError, OverBudgetError
from demi.training.half_forward import HalfForward, Reached, excess, straight_through
from demi.training.loop import train
from demi.training.repair import Measured, RepairRequest, distance_squared, repair
from demi.training.request import TrainRequest
from demi.training.scaled_weights import ScaledWeights
from tests.training.tasks import Task


class Exponential(nn.Module):
    """An exponential beyond 65,504, whose sum a tanh brings back: no constant can be multiplied through either."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.values = nn.Linear(8, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.scores.bias.fill_(10.5)
            self.values.weight.mul_(3e-5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.values(torch.exp(self.scores(x))))


class HeavyTailed(Exponential):
    """The same with scores that spread: rare exponentials are 2^14 times what fits, and most are ordinary."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.scores.weight.mul_(3)
            self.values.weight.mul_(0.1)


class Gated(nn.Module):
    """The product of a gate and a value, both of which training has let grow."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 4)
        with torch.no_grad():
            self.up.weight.mul_(300)
            self.gate.weight.mul_(300)
            self.down.weight.mul_(1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.down(nn.functional.silu(self.gate(x)) * self.up(x)))


class Trained(Task):
    """A task that returns a trained model."""

    kind: type[nn.Module] = Gated

    def model(self) -> nn.Module:
        return self.kind()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {}


class TrainedExponential(Trained):
    """The same with the other model."""

    kind = Exponential


class TrainedHeavyTailed(Trained):
    """The same with rare values far beyond the range."""

    kind = HeavyTailed


class Healthy(Trained):
    """Nothing to repair."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 4), nn.Tanh())


class FromInputs(Trained):
    """The inputs themselves leave the range on the way."""

    def model(self) -> nn.Module:
        return _Cubing()


class _Cubing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((1000 * x) ** 3 / 1e9)


@pytest.mark.parametrize(
    "task",
    [
        Trained(),
        pytest.param(TrainedExponential(), marks=pytest.mark.slow),
        pytest.param(TrainedHeavyTailed(), marks=pytest.mark.slow),
    ],
    ids=["gated", "exponential", "heavy-tailed"],
)
def test_a_model_that_overflows_fits_afterwards(tmp_path, task):
    """Ranges are within the margin and answers within the budget, on batches that it was not trained on."""
    done = repair(RepairRequest(task, tmp_path / "run", steps=1500))

    assert done.before.largest > 65504
    assert done.before.distance > 0.05
    assert done.after.largest <= done.after.limit <= 2.0**14
    assert done.after.distance <= 1e-2
    program = torch.export.load(tmp_path / "run/model.pt2").module()
    torch.manual_seed(0)
    before = task.model()  # the same seed gives the model that was repaired
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(5))
    assert float(distance_squared([program(x=x)], [before(x)])) < 0.02**2


def test_a_healthy_model_is_left_alone(tmp_path):
    """No step is taken, and its weights are the same to the last bit."""
    done = repair(RepairRequest(Healthy(), tmp_path))
    torch.manual_seed(0)
    expected = Healthy().model()
    found = torch.export.load(tmp_path / "model.pt2").module()

    assert 0 == done.steps
    assert torch.equal(expected(torch.ones(2, 8)), found(input=torch.ones(2, 8)))


def test_too_few_steps(tmp_path):
    """What is left is named, and nothing is written."""
    with pytest.raises(OverBudgetError, match=r"1 steps were not enough: `mul` in `the model` reaches .* fits"):
        repair(RepairRequest(Trained(), tmp_path / "run", steps=1))
    assert not (tmp_path / "run").exists()


def test_what_no_weight_can_change(tmp_path):
    """The function is named."""
    with pytest.raises(InputError, match=r"`pow` in `the model` reaches .* from the inputs alone"):
        repair(RepairRequest(FromInputs(), tmp_path / "run"))


def test_weights_of_a_run(tmp_path):
    """The last checkpoint's; a folder without one is refused."""
    train(TrainRequest(Healthy(), 3, tmp_path / "run", "fp32", seed=5))
    repair(RepairRequest(Healthy(), tmp_path / "a", run=tmp_path / "run"))
    found = torch.export.load(tmp_path / "a/model.pt2").module()
    from demi.training.checkpoint import read_weights

    assert torch.equal(read_weights(tmp_path / "run")["0.bias"], dict(found.named_parameters())["0.bias"])
    with pytest.raises(InputError, match="no checkpoint"):
        repair(RepairRequest(Healthy(), tmp_path / "b", run=tmp_path / "none"))
    with pytest.raises(InputError, match="of another model"):
        repair(RepairRequest(Trained(), tmp_path / "b", run=tmp_path / "run"))


class TestParts:
    """The formula's parts, by hand."""

    def test_excess(self):
        """Two of four values are 1 and 3 bits beyond 2^10: (1 + 9) / 4."""
        assert 2.5 == excess(torch.tensor([2.0**11, -(2.0**13), 5.0, 0.0]), 10.0).item()

    def test_masks_have_no_excess(self):
        """Minus infinity and FP32's lowest number are no ranges."""
        x = torch.tensor([-torch.inf, torch.finfo(torch.float32).min], requires_grad=True)
        excess(x, 10.0).backward()
        assert torch.equal(torch.zeros(2), x.grad)

    def test_straight_through(self):
        """Rounded forward, and as if it were not backward; what is clamped passes nothing."""
        x = torch.tensor([1.0001, 70000.0], requires_grad=True)
        found = straight_through(x)
        found.sum().backward()

        assert [1.0, 65504.0] == found.tolist()
        assert [1.0, 0.0] == x.grad.tolist()

    def test_a_wider_range_to_begin_with(self):
        """Three bits more: what FP16 holds is rounded, what lies beyond it passes as it is, and the end is 2^3 as far."""
        x = torch.tensor([1.0001, 70000.0, 1e6], requires_grad=True)
        found = straight_through(x, 8 * 65504.0)
        found.sum().backward()

        assert [1.0, 70000.0, 524032.0] == found.tolist()
        assert [1.0, 1.0, 0.0] == x.grad.tolist()
        assert 17.0 == HalfForward(14.0, 3.0).bits

    def test_bits_beyond_the_limit(self):
        """A tensor that is 8 times too large needs three; one that fits none."""
        assert 3.0 == Measured("there", 8 * 2.0**14, 2.0**14, 0.0).slack
        assert 0.0 == Measured("there", 5.0, 2.0**14, 0.0).slack

    def test_ranges_have_places(self):
        """Function and module; what depends on no weight is apart."""
        model = nn.Sequential(nn.Linear(1, 1), nn.Tanh())
        mode = HalfForward(14.0)
        with mode.following(model), mode:
            model(torch.ones(1, 1) * 7)

        assert {"`linear` in `0`", "`tanh` in `1`"} == set(mode.ranges.trained)
        assert Reached(7.0, 2.0**14) == mode.ranges.fixed["`mul` in `the model`"]

    def test_scaled_weights(self):
        """One bit more doubles a tensor; a bias may be shifted; the model changes at the end alone."""
        model = nn.Linear(1, 1)
        before = model.weight.item()
        scaled = ScaledWeights(model)
        with torch.no_grad():
            scaled._bits["weight"] += 1
            scaled._shifts["bias"] += 3
        expected = 2 * before + model.bias.item() + 3

        assert before == model.weight.item()
        assert expected == pytest.approx(scaled.call(scaled.values(), {"input": torch.ones(1, 1)}).item())
        scaled.fold()
        assert 2 * before == pytest.approx(model.weight.item())


@pytest.mark.slow
def test_the_command_and_the_export_after_it(tmp_path, capsys, monkeypatch):
    """Before, the export keeps nodes FP32 for their range, rescaling or not; afterwards none."""
    monkeypatch.chdir(tmp_path)
    reasons = {}
    task = "tests.training.test_repair:TrainedExponential"
    assert 0 == main(
        ["train", task, "--steps", "1", "--lr", "1e-12", "--precision", "fp32", "--save-model", "-o", "before"]
    )
    capsys.readouterr()
    assert 0 == main(["repair", task, "before", "-o", "after", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["after"]["largest"] <= found["after"]["limit"] < found["before"]["largest"]
    for name in ("before", "after"):
        assert 0 == main(["export", "--fp16", name, "--no-report", "--json"])
        nodes = json.loads(capsys.readouterr().out)["nodes"]
        reasons[name] = {each["reason"] for each in nodes}
    assert "overflow" in reasons["before"]
    assert "overflow" not in reasons["after"]
    assert all(np.isfinite(np.load(path)["x"]).all() for path in (tmp_path / "after/samples").iterdir())
    assert math.isfinite(found["after"]["distance"])
