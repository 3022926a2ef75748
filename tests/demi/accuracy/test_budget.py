"""The accuracy budget: limits from the command line, for all outputs and for one."""

import pytest

from demi.accuracy.budget import DEFAULT_LIMITS, Budget, Limits, parse_budget
from demi.accuracy.detector import Detector
from demi.errors import InputError


def test_no_text_is_the_default():
    """Without `--budget` every output may have a relative L2 of up to 1e-2."""
    assert Budget(Limits(relative_l2=1e-2)) == parse_budget([])


def test_several_metrics():
    """Metrics are joined with commas, spaces allowed."""
    assert Limits(relative_l2=0.01, cosine=0.999) == parse_budget(["relative_l2=1e-2, cosine = 0.999"]).default


def test_repeated_texts_add_up():
    """A second `--budget` adds its metrics to the first."""
    assert Limits(max_abs=1.0, top1=0.5) == parse_budget(["max_abs=1", "top1=0.5"]).default


def test_given_limits_replace_the_default():
    """A named metric replaces the default."""
    assert parse_budget(["top1=1"]).default.relative_l2 is None


def test_one_output():
    """Limits for one output are added to the default for the others."""
    budget = parse_budget(["logits:top1=0.99", "logits:cosine=0.9"])

    assert Limits(top1=0.99, cosine=0.9) == budget.limits("logits")
    assert DEFAULT_LIMITS == budget.limits("other")


def test_output_name_may_hold_a_colon():
    """The last colon ends the output's name."""
    assert Limits(max_abs=0.0) == parse_budget(["StatefulCall:0:max_abs=0"]).limits("StatefulCall:0")


@pytest.mark.parametrize("text", ["", "relative_l2", "l2=1", "=1", "cosine:0.9", "relative_l2=1,"])
def test_text_that_is_not_a_budget(text):
    """Text of another form is quoted, and the metrics are listed."""
    with pytest.raises(InputError, match="as a budget") as caught:
        parse_budget([text])
    assert f"`{text}`" in str(caught.value)
    assert "relative_l2, max_abs, cosine, top1" in caught.value.hint


@pytest.mark.parametrize("text", ["max_abs=-1", "max_abs=nan", "max_abs=inf", "max_abs=x", "cosine=1.1", "top1=2"])
def test_invalid_limit(text):
    """A limit is finite and not negative, and a share is at most 1."""
    with pytest.raises(InputError, match="is not a limit for"):
        parse_budget([text])


def test_limits_say_their_direction():
    """Errors are bounded above, similarities below."""
    assert "relative_l2 <= 0.01, top1 >= 0.9" == str(Limits(relative_l2=1e-2, top1=0.9))


def test_outputs_without_limits_must_be_finite():
    """An output without a limit must still be finite where FP32 is."""
    assert "finite" == str(Limits())


def test_limit_for_an_unknown_output():
    """A limit for an output the model lacks is an error that lists the outputs."""
    with pytest.raises(InputError, match="names output `logit`") as caught:
        parse_budget(["logit:top1=1"]).check_names(["logits", "hidden"])
    assert "logits, hidden" in caught.value.hint


def test_limit_for_a_known_output():
    """A limit for a known output is accepted."""
    parse_budget(["logits:top1=1"]).check_names(["logits"])


class TestBoxes:
    """The `boxes` limit and the options of matching."""

    DETECTOR = Detector("boxes", "scores", "labels", "num")

    def test_options_go_with_boxes(self):
        """Overlap, score and margin are options of the share; limits on numeric errors stay."""
        budget = parse_budget(["boxes=0.02,iou=0.6,score=0.3,margin=0"])

        assert Limits(relative_l2=1e-2, boxes=0.02, iou=0.6, score=0.3, margin=0.0) == budget.default

    @pytest.mark.parametrize("text", ["iou=0.6", "d:score=0.3"])
    def test_options_alone(self, text):
        """Options of matching limit nothing by themselves."""
        with pytest.raises(InputError, match="sets how boxes are matched"):
            parse_budget([text])

    def test_a_share_is_at_most_one(self):
        """A share above 1 is refused."""
        with pytest.raises(InputError, match="is not a limit for boxes"):
            parse_budget(["boxes=2"])

    def test_defaults_of_a_detector(self):
        """Without a `boxes` limit, one box in a hundred may change."""
        limits = parse_budget([]).with_detectors([self.DETECTOR]).limits("boxes")

        assert Limits(relative_l2=1e-2, boxes=0.01, iou=0.5, score=0.25, margin=0.01) == limits

    def test_limit_on_boxes_at_any_output(self):
        """A limit on boxes may name any output of the detector."""
        limits = parse_budget(["scores:boxes=0.1"]).with_detectors([self.DETECTOR]).limits("boxes")

        assert 0.1 == limits.boxes

    def test_other_outputs_have_no_boxes(self):
        """A share for all outputs applies only to those with boxes."""
        budget = parse_budget(["boxes=0.02"]).with_detectors([self.DETECTOR])

        assert (0.02, None) == (budget.limits("boxes").boxes, budget.limits("features").boxes)

    def test_replacement_of_a_bundles_budget(self):
        """A budget that replaces the bundle's keeps the bundle's detectors and choices, and its own limits."""
        known = Budget(outputs={"ids": Limits(agree=0.99)}).with_detectors([self.DETECTOR])
        budget = parse_budget(["relative_l2=1e-3", "boxes:boxes=0.5"]).instead_of(known)

        assert (self.DETECTOR,) == budget.detectors
        assert Limits(relative_l2=1e-3, boxes=0.5, iou=0.5, score=0.25, margin=0.01) == budget.limits("boxes")
        assert Limits(relative_l2=1e-3, agree=0.99) == budget.limits("ids")
