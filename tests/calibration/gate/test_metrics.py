"""Task metrics: values on small examples, and refused inputs."""

import numpy as np
import pytest

from demi.calibration.gate.measure import measure_of
from demi.calibration.gate.metrics import BUILT_IN, IGNORED, find_metric
from demi.errors import InputError, SampleError
from demi.tensors import DType, TensorSpec

Y = TensorSpec("y", DType.FP32, ("n", 3))
Z = TensorSpec("z", DType.FP32, ("n", 3))

SCORES = np.float32([[3, 2, 1], [1, 3, 2], [1, 2, 3], [3, 1, 2]])
"""The classes 0, 1, 2, 0."""


def score(name, outputs, labels):
    """Return the value of a metric of output y."""
    metric = find_metric(name, [Y])
    return measure_of(metric.name, metric.formula, metric.rows({"y": outputs}, np.asarray(labels))).value


class TestTop:
    """Top-1 and top-5."""

    def test_top1(self):
        """Three of four labels are the largest score."""
        assert 0.75 == score("top1", SCORES, [0, 1, 2, 2])

    def test_negative_labels_do_not_count(self):
        """Tokens labelled -100 have no class and are not counted: one of two is right."""
        assert 0.5 == score("top1", SCORES[None], [[0, 2, -100, -1]])

    def test_nan_is_never_right(self):
        """A row with a NaN is wrong, even if its largest number is right."""
        assert 0.75 == score("top1", np.where(SCORES == 1, [[np.nan], [1], [1], [1]], SCORES), [0, 1, 2, 0])

    def test_top5(self):
        """The label counts if it is among the five largest of seven scores."""
        assert 0.5 == score("top5", np.float32([[7, 6, 5, 4, 3, 2, 1]] * 2), [4, 6])

    def test_top5_of_five_scores(self):
        """Top-5 of five scores raises an error, because it cannot fail."""
        with pytest.raises(InputError, match="is always 1"):
            score("top5", SCORES, [0, 1, 2, 0])


class TestClasses:
    """F1 and mean IoU."""

    def test_f1(self):
        """Class 0: tp 1, fp 1, fn 0; class 1: right; class 2: tp 1, fp 0, fn 1."""
        assert pytest.approx((2 / 3 + 1 + 2 / 3) / 3) == score("f1", SCORES, [0, 1, 2, 2])

    def test_miou(self):
        """Two images of one row of pixels, classes on axis 1."""
        assert pytest.approx((1 / 2 + 1 + 1 / 2) / 3) == score("miou", SCORES[:, :, None], [[0], [1], [2], [2]])

    def test_miou_of_a_map(self):
        """An integer output is already a map of classes."""
        assert pytest.approx((1 / 2 + 1 / 2) / 2) == score("miou", np.array([[7, 7, 9]]), np.array([[7, 9, 9]]))

    def test_miou_ignores_the_border(self):
        """Label 255 is ignored in segmentation, and is an ordinary class elsewhere."""
        assert 1.0 == score("miou", np.array([[7, 7]]), np.array([[7, IGNORED]]))

    def test_dice(self):
        """Twice the overlap over both areas: each class's F1, on the pixels that count."""
        assert pytest.approx((2 / 3 + 1 + 2 / 3) / 3) == score("dice", SCORES[:, :, None], [[0], [1], [2], [2]])
        assert 1.0 == score("dice", np.array([[7, 7]]), np.array([[7, IGNORED]]))

    def test_perfect_predictions(self):
        """Perfect predictions score 1."""
        assert 1.0 == score("f1", SCORES, [0, 1, 2, 0]) == score("miou", SCORES, [0, 1, 2, 0])

    def test_nan_is_a_miss(self):
        """A NaN predicts no class: it lowers recall, not precision."""
        assert pytest.approx((2 / 3 + 1 + 1) / 3) == score(
            "f1", np.where(SCORES == 3, [[np.nan], [3], [3], [3]], SCORES), [0, 1, 2, 0]
        )

    def test_unknown_class(self):
        """Labels beyond the output's classes raise an error."""
        with pytest.raises(SampleError, match="the labels hold class 3, but the output has 3"):
            score("f1", SCORES, [0, 1, 2, 3])

    def test_no_scores(self):
        """An output of one number per sample has no classes, which is an error."""
        with pytest.raises(InputError, match=r"shape \[4, 1\] does not hold scores of classes"):
            score("f1", SCORES[:, :1], [0, 1, 0, 1])


class TestSpearman:
    """Rank correlation of similarities."""

    def test_of_scores(self):
        """The same order scores 1, the opposite -1."""
        assert 1.0 == pytest.approx(score("spearman", np.float32([[1], [5], [9]]), [0.1, 0.2, 0.9]))
        assert -1.0 == pytest.approx(score("spearman", np.float32([1, 5, 9]), [3, 2, 1]))

    def test_of_embeddings(self):
        """Rows 2i and 2i+1 are a pair with one label; their cosine is the similarity."""
        pairs = np.float32([[1, 0], [0, 1], [1, 0], [1, 1], [1, 1], [3, 3]])

        assert 1.0 == pytest.approx(score("spearman", pairs, [0, 0, 2, 2, 5, 5]))

    def test_odd_embeddings(self):
        """An odd number of embeddings raises an error."""
        with pytest.raises(SampleError, match="3 embeddings cannot be paired"):
            score("spearman", SCORES[:3], [1, 2, 3])


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("labels", [np.zeros(3, int), np.zeros((4, 2), int), np.array(["a"] * 4), np.int64(3)])
def test_labels_that_do_not_fit(name, labels):
    """Labels that are too few, of another shape or type, or scalar, raise an error that states what is needed."""
    with pytest.raises(SampleError, match=r"labels of shape \["):
        score(name, np.zeros((4, 7), np.float32), labels)


@pytest.mark.parametrize("name", BUILT_IN)
def test_without_labels(name):
    """A built-in metric needs labels."""
    with pytest.raises(InputError, match="needs labels"):
        find_metric(name, [Y]).rows({"y": SCORES}, None)


class TestFinding:
    """Metrics by name."""

    def test_one_output(self):
        """A model with one output needs no output name."""
        assert "y" == find_metric("top1", [Y]).output

    def test_several_outputs(self):
        """With several outputs, the output must be named."""
        assert "z" == find_metric("z:top1", [Y, Z]).output
        with pytest.raises(InputError, match="`top1` does not say which output"):
            find_metric("top1", [Y, Z])

    @pytest.mark.parametrize("text", ["precision", "", "x:top1", "no_such_module:score", "json:no_such_function"])
    def test_unknown(self, text):
        """An unknown name, output, module or function raises an error."""
        with pytest.raises(InputError, match=r"unknown metric|cannot be imported"):
            find_metric(text, [Y])


def errors(outputs, labels):
    """Return one number per sample."""
    return np.abs(outputs["y"][:, 0] - labels)


errors.lower_is_better = True


def total(outputs, labels):
    """Return one number for all samples."""
    return outputs["y"].sum()


def raises(outputs, labels):
    """Raise an error."""
    raise KeyError("logits")


def wrong_shape(outputs, labels):
    """Return an array of a wrong shape."""
    return np.zeros((2, 2))


class TestUsersOwn:
    """The user's own metrics as `module:function`."""

    @staticmethod
    def rows(function):
        return find_metric(f"{__name__}:{function}", [Y]).rows({"y": SCORES}, np.zeros(4))

    def test_one_number_per_sample(self):
        """Numbers per sample are kept as rows; their mean is the score, and the function's attribute gives the direction."""
        metric = find_metric(f"{__name__}:errors", [Y])

        assert 2.0 == measure_of("m", metric.formula, self.rows("errors")).value
        assert not metric.higher_is_better

    def test_one_number_for_all(self):
        """A single number cannot be resampled."""
        assert 24.0 == self.rows("total")
        assert 0 == self.rows("total").ndim

    @pytest.mark.parametrize(
        ("function", "message"),
        [("raises", "failed: KeyError: 'logits'"), ("wrong_shape", r"returned shape \[2, 2\] for 4 samples")],
    )
    def test_a_function_that_fails(self, function, message):
        """An error in the user's function is reported with its message."""
        with pytest.raises(InputError, match=message):
            self.rows(function)
