"""The page about a run: what stands in it, and that it needs nothing but itself."""

from __future__ import annotations

import re

from demi.training.loop import train
from demi.training.report import causes, read_inspections, stuck, write_report
from demi.training.request import TrainRequest
from tests.browser import look, needs_browser
from tests.training.tasks import BatchWithNan, Task
from tests.training.test_find_plan import OneLarge


def test_the_page(tmp_path):
    """Loss, scale, causes, errors by layer, sizes of gradients; charts are drawn, and names are escaped."""
    done = train(TrainRequest(BatchWithNan(), 6, tmp_path / "<run>", "fp16", inspect_every=2))
    page = write_report(done).read_text()

    for words in ("trained in fp16", "Loss scale", "batch (batch[0])", "4 (output)", "recommended scale", "2^-40"):
        assert words in page
    assert 6 == page.count("<svg ")
    assert "&lt;run&gt;" in page
    assert "<run>" not in page


def test_the_reasons_of_the_plan(tmp_path):
    """Modules in FP32 come first, each with its reason and evidence; a page of a run without a plan has no such table."""
    request = TrainRequest(OneLarge(), 2, tmp_path / "planned", "fp16", rehearse=True, find_plan=True)
    page = write_report(train(request)).read_text()
    rows = re.findall(r"<tr><td><code>(.*?)</code></td><td>\w+</td><td>(.*?)</td><td>(.*?)</td>", page)

    assert [("1.inner", "FP32", "overflow"), ("0", "half", "safe"), ("2", "half", "safe")] == rows
    assert "in half, the step is not finite at any loss scale" in page
    plain = write_report(train(TrainRequest(Task(), 2, tmp_path / "plain", "fp16", rehearse=True)))
    assert "Precision of the modules" not in plain.read_text()


@needs_browser
def test_the_page_in_a_browser(tmp_path):
    """Nothing is cut off on a phone or a screen, letters can be read, labels are numbers, nothing is loaded."""
    done = train(TrainRequest(BatchWithNan(), 30, tmp_path / "run", "fp16", inspect_every=10, init_scale=2.0**20))
    page = write_report(done).read_text()
    for width in (360, 1200):
        seen = look(page, tmp_path, width)

        assert seen.reach <= seen.width
        assert ([], []) == (seen.complaints, seen.requests)
        assert "mathdefault" not in page
        assert 6 == len(seen.charts)
        assert all(size > 40 for chart in seen.charts for size in chart)
    assert min(seen.letters) > 7


def test_a_page_without_inspections(tmp_path):
    """FP32 has no loss scale either."""
    page = write_report(train(TrainRequest(Task(), 3, tmp_path, "fp32"))).read_text()

    assert 2 == page.count("<svg ")
    assert "None." in page


def test_causes_are_counted():
    """The most frequent first."""
    lines = [{"step": 1, "skip": "a"}, {"step": 2}, {"step": 3, "skip": "b"}, {"step": 4, "skip": "b"}]
    assert [("b", 2, 3, 4), ("a", 1, 1, 1)] == [tuple(row.values()) for row in causes(lines)]


def test_layers_that_no_scale_fits():
    """Those that lose more than a tenth at the best one."""
    layers = [{"name": name, "lost_at_best": share} for name, share in (("a", 0.05), ("b", 0.2), ("c", 0.5))]
    assert ["c", "b"] == [each["name"] for each in stuck(layers)]


def test_inspections_of_a_resumed_run(tmp_path):
    """The later one counts; a line that a crash cut short is left out."""
    text = '{"step": 2, "error": 1}\n{"step": 4, "error": 2}\n{"step": 2, "error": 3}\n{"ste'
    (tmp_path / "inspections.jsonl").write_text(text)
    assert [{"step": 2, "error": 3}, {"step": 4, "error": 2}] == read_inspections(tmp_path)
