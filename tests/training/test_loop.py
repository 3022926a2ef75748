"""Training: every precision learns, every skip has its cause, and a run that stopped goes on bit for bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

from demi.errors import DivergedError, InputError
from demi.training.checkpoint import checkpoints
from demi.training.logs import FILE, read_log
from demi.training.loop import train
from demi.training.optimizer import OptimizerSettings
from demi.training.request import TrainRequest
from tests.training.tasks import BackwardOverflow, BadLoss, BadWeight, BatchWithNan, ForwardOverflow, Masked, Task

FAST = OptimizerSettings(lr=1e-2)


def request(folder, task=None, steps=40, precision="fp32", **options) -> TrainRequest:
    """A short run."""
    fields = {"optimizer": FAST} | options
    return TrainRequest(task or Task(), steps, folder, precision, **fields)


class TestPrecisions:
    """Each learns the task, and says in what it computed."""

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "bf16-pure"])
    def test_learns(self, tmp_path, precision):
        """The loss falls and new data is classified."""
        done = train(request(tmp_path, steps=150, precision=precision))

        assert (precision, 150) == (done.precision, done.steps)
        assert done.metrics["accuracy"] > 0.9

    @pytest.mark.parametrize(
        ("precision", "dtypes"),
        [("fp16", {torch.float16, torch.float32}), ("bf16-pure", {torch.bfloat16}), ("fp32", {torch.float32})],
    )
    def test_half_is_computed_in(self, tmp_path, precision, dtypes):
        """The products of fp16 are FP16, the weights FP32, and those of bf16-pure BF16."""
        seen: set[torch.dtype] = set()

        class Spy(Task):
            def loss(self, model, batch):
                seen.update((model[0](batch[0]).dtype, model[0].weight.dtype))
                return super().loss(model, batch)

        train(request(tmp_path, Spy(), 1, precision))
        assert dtypes == seen

    def test_pure_fp16_is_refused(self, tmp_path):
        """With the reason."""
        with pytest.raises(InputError, match="AdamW's epsilon"):
            train(request(tmp_path, precision="fp16-pure"))

    def test_half_weights_are_refused(self, tmp_path):
        """A model that was made half has no master weights."""

        class Half(Task):
            def model(self):
                return super().model().half()

        with pytest.raises(InputError, match="weights are half already"):
            train(request(tmp_path, Half(), precision="fp16"))


class TestSkips:
    """A step that is not finite changes no weight, and names its cause."""

    @pytest.mark.parametrize(
        ("task", "precision", "cause"),
        [
            (ForwardOverflow(), "fp16", "forward in `1` (output), from values up to "),
            (BadLoss(), "fp16", "loss ("),
            (BadLoss(), "bf16", "loss ("),
            (BadLoss(), "fp32", "loss ("),
            (BackwardOverflow(), "fp16", "backward in `4` (gradient of its output)"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Task) else str(value)[:8],
    )
    def test_cause_is_named(self, tmp_path, task, precision, cause):
        """A planted fault, by its class and its module."""
        said: list[str] = []
        with pytest.raises(DivergedError, match="steps in a row were skipped"):
            train(request(tmp_path, task, precision=precision, max_skips=3, init_scale=1.0), note=said.append)

        assert said
        assert all(cause in line for line in said)

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "bf16-pure"])
    def test_a_bad_batch_leaves_no_trace(self, tmp_path, precision):
        """It is skipped in every precision, and BatchNorm's statistics stay finite."""
        said: list[str] = []
        done = train(request(tmp_path, BatchWithNan(), 10, precision), note=said.append)

        assert {"batch": 1} == done.skipped
        assert ["step 3 was skipped: batch (batch[0])"] == [
            line.split(":")[0] + ":" + line.split(":")[1] for line in said
        ]
        assert 9 == done.updates
        assert done.metrics["accuracy"] > 0

    def test_a_bad_weight(self, tmp_path):
        """A weight that was not finite before the step."""
        said: list[str] = []
        with pytest.raises(DivergedError):
            train(request(tmp_path, BadWeight(), precision="fp16", max_skips=1), note=said.append)
        assert "weights (4.weight)" in said[0]

    def test_the_search_for_a_scale_is_benign(self, tmp_path):
        """A loss scale that is too high is lowered, without a word and with another class."""
        said: list[str] = []
        done = train(request(tmp_path, steps=40, precision="fp16", init_scale=2.0**30), note=said.append)

        assert {"scale search"} == set(done.skipped)
        assert [] == said
        assert done.updates == 40 - done.skipped["scale search"]

    def test_masks_are_no_fault(self, tmp_path):
        """Minus infinity in a mask is not named when something else is wrong."""

        class MaskedAndBad(Masked):
            def loss(self, model, batch):
                return BadLoss.loss(self, model, batch)

        said: list[str] = []
        with pytest.raises(DivergedError):
            train(request(tmp_path / "bad", MaskedAndBad(), precision="bf16", max_skips=1), note=said.append)
        assert "loss" in said[0]
        assert {} == train(request(tmp_path / "good", Masked(), 20, "bf16")).skipped

    def test_random_numbers_go_on_as_without_the_search(self, tmp_path):
        """Looking for a cause draws no number of the run's: what follows is the same with one skip more."""
        first = train(request(tmp_path / "a", BatchWithNan(), 6))
        again = train(request(tmp_path / "b", BatchWithNan(), 6))

        assert first.digest == again.digest


class TestResume:
    """A run that stopped goes on as if it had not."""

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "bf16-pure"])
    def test_bit_for_bit(self, tmp_path, precision):
        """Weights, optimizer, loss scale, random numbers and data: the digest of the weights is the same."""
        whole = request(tmp_path / "a", steps=12, precision=precision, accumulate=2, growth_interval=3)
        expected = train(whole)
        train(replace(whole, folder=tmp_path / "b", steps=12, save_every=5))
        shutil.rmtree(checkpoints(tmp_path / "b")[-1])  # as if the process had died after step 10
        found = train(replace(whole, folder=tmp_path / "b", resume=True))

        assert expected.digest == found.digest
        assert (expected.loss, expected.metrics) == (found.loss, found.metrics)

    def test_the_log_goes_on(self, tmp_path):
        """Steps that are done again stand in it once."""
        whole = request(tmp_path, steps=8, save_every=3)
        train(whole)
        shutil.rmtree(checkpoints(tmp_path)[-1])
        train(replace(whole, resume=True))

        assert list(range(1, 9)) == [line["step"] for line in read_log(tmp_path) if "loss" in line]

    def test_a_folder_with_a_run_is_not_overwritten(self, tmp_path):
        """Going on is asked for."""
        train(request(tmp_path, steps=2))

        with pytest.raises(InputError, match="holds a run of 2 steps"):
            train(request(tmp_path, steps=2))

    def test_nothing_to_resume(self, tmp_path):
        """It says so."""
        with pytest.raises(InputError, match="no checkpoint to go on from"):
            train(request(tmp_path, resume=True))

    def test_another_precision(self, tmp_path):
        """A run stays in the precision it was begun in."""
        train(request(tmp_path, steps=2, precision="fp32"))

        with pytest.raises(InputError, match="begun in fp32"):
            train(request(tmp_path, steps=4, precision="bf16", resume=True))

    @pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
    def test_a_damaged_checkpoint(self, tmp_path, name):
        """A byte that changed is found before anything is trained on."""
        train(request(tmp_path, steps=2))
        path = checkpoints(tmp_path)[-1] / name
        path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)

        with pytest.raises(InputError, match="checkpoint cannot be read"):
            train(request(tmp_path, steps=4, resume=True))

    def test_old_checkpoints_go(self, tmp_path):
        """As many stay as were asked for."""
        train(request(tmp_path, steps=9, save_every=2, keep=2))

        assert ["00000008", "00000009"] == [path.name for path in checkpoints(tmp_path)]


class TestLog:
    """A line of JSON for every step."""

    def test_lines(self, tmp_path):
        """Loss, learning rate, gradient norm, scale and skips; the evaluation at the end."""
        train(request(tmp_path, steps=3, precision="fp16"))
        lines = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]

        names = {"step", "loss", "lr", "precision/gradient_norm", "precision/scale", "precision/skipped"}
        assert names <= set(lines[0])
        assert 65536.0 == lines[0]["precision/scale"]
        assert "evaluation/accuracy" in lines[-1]

    def test_an_unknown_log(self, tmp_path):
        """It is named."""
        with pytest.raises(InputError, match="unknown log `mlflow`"):
            train(request(tmp_path, logs=("mlflow",)))


def test_accumulation_is_one_large_batch(tmp_path):
    """The gradients of two batches are averaged, as one of twice the size would be."""

    class Plain(Task):
        def model(self):
            return torch.nn.Linear(8, 2)

    class Doubled(Plain):
        def batches(self, position):
            pairs = super().batches(position)
            while True:
                (a, b), (c, d) = next(pairs), next(pairs)
                yield torch.cat([a, c]), torch.cat([b, d])

    two = train(request(tmp_path / "two", Plain(), 1, accumulate=2, clip=None))
    one = train(request(tmp_path / "one", Doubled(), 1, clip=None))

    assert two.loss == pytest.approx(one.loss, rel=1e-6)


def test_data_that_ends(tmp_path):
    """The run ends with it, and says so."""

    class Short(Task):
        def batches(self, position):
            pairs = super().batches(position)
            return (next(pairs) for _ in range(3))

    said: list[str] = []
    assert 3 == train(request(tmp_path, Short()), note=said.append).steps
    assert ["the data ended after 3 steps"] == said
