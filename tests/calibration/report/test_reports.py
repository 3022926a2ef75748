"""Reports: their content, escaping, and rendering in a browser."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.accuracy.compare import compare
from demi.bundles.manifest import SCHEMA, BatchSpec, Manifest, Provenance
from demi.calibration.benchmark.bench import Benchmark, Side
from demi.calibration.benchmark.memory import Memory
from demi.calibration.benchmark.timing import Latency, SideBySide
from demi.calibration.report.bench import bench_report
from demi.calibration.report.budget_use import budget_use
from demi.calibration.report.charts import bars
from demi.calibration.report.engine import engine_report, surprises
from demi.calibration.report.export import ExportFacts, export_report
from demi.calibration.samples import Samples
from demi.exporter.tensorrt.layers import Layer
from demi.float16 import HalfLoss
from demi.plan import Decision, Precision, Reason, make_plan
from demi.tensors import DType, TensorSpec
from tests.browser import look, needs_browser

SORTS = 1
"""The only script of a page, which sorts its tables."""

HOSTILE = '</code><script>alert("$x_1$")</script>'


def comparison(limits=Limits(relative_l2=1e-2), error=1e-3):  # noqa: B008 - frozen
    """Return a comparison of one output with this error."""
    exact = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)
    return compare([{"y": exact}], [{"y": exact * (1 + error)}], Budget(limits))


def facts(**changes):
    """Return an export of three nodes: one in half, two in FP32, one of them with a hostile name."""
    spec = TensorSpec("x", DType.FP32, ("batch", 4))
    manifest = Manifest(
        schema=SCHEMA,
        name="tiny",
        version=3,
        precision="fp16",
        inputs=(spec,),
        outputs=(replace(spec, name="y"),),
        batch=BatchSpec(free=True),
        budget=Budget(),
        provenance=Provenance("2026-11-24T00:00:00", "tiny.onnx", "0123", {"onnx": "1.2.3"}, "x.npz"),
    )
    decisions = [
        Decision("project", "MatMul", Precision.HALF, Reason.SAFE, "", 0.05, 1.0),
        Decision("square", "Pow", Precision.SINGLE, Reason.OVERFLOW, "max 1.2e+06 on `squared`"),
        Decision(HOSTILE, "Sqrt", Precision.SINGLE, Reason.OVERFLOW, HOSTILE),
    ]
    given = ExportFacts(
        manifest=manifest,
        plan=make_plan("fp16", decisions),
        comparison=comparison(),
        samples=Samples(({"x": np.zeros((1, 4), np.float32)},), "x.npz"),
        predicted={"y": 9e-4},
        single_flops=0.1,
        single_bytes=0.2,
        first_divergence="`square` overflows",
        casts=2,
        losses={"w": HalfLoss(0, 7, 9, 1.5)},
        fp32_bytes=2 << 20,
        half_bytes=1 << 20,
        export_error=None,
    )
    return replace(given, **changes)


def benchmark(**changes):
    """Return a benchmark of two batch sizes."""

    def latency(batch, ms):
        return Latency(batch, 10, ms, ms * 1.1, ms * 1.2, batch / ms * 1e3)

    given = Benchmark(
        bundle="models/tiny/3",
        name="tiny",
        version=3,
        precision="fp16",
        device="cpu",
        machine="2 cores of a processor",
        batches=(SideBySide(latency(1, 4.0), latency(1, 5.0)), SideBySide(latency(8, 30.0), latency(8, 20.0))),
        fp32=Side(4 << 20, Memory(8 << 20, 16 << 20)),
        half=Side(2 << 20, Memory(6 << 20, 12 << 20)),
        comparison=comparison(),
        measured_by="by the half-precision emulator",
    )
    return replace(given, **changes)


PAGES = {"export": lambda: export_report(facts()), "bench": lambda: bench_report(benchmark())}


LAYERS = [
    Layer("fused", "kgen", ("a", HOSTILE), ("fp16",), ("fp16",), "", 0.75, "half"),
    Layer("square", "kgen", ("square",), ("fp32",), ("fp32",), "", 0.25, "single"),
    Layer("strange", "gemm", ("b",), ("fp16",), ("fp32",), "", 0.5, "half"),
    Layer(HOSTILE),
]


def engine(**changes):
    """Return the page of an engine of four layers, one of them in FP32 against the plan."""
    given = {"tensorrt": "11.4.0", "gpu": "Fake GPU", "layers": LAYERS, "comparison": comparison()}
    return engine_report(facts().manifest, **given | changes)


class TestEngineReport:
    """The page of an engine."""

    def test_layers_stand_next_to_the_plan(self):
        """The table has each layer's types, times, nodes and planned precision; layers against the plan are counted."""
        page = engine()

        for words in ("11.4.0", "Fake GPU", "within budget", "1.5 ms", "kgen", "fp16", "square"):
            assert words in page
        assert [LAYERS[2]] == surprises(LAYERS)
        assert re.search(r"against the plan</dt><dd>1<", page)
        assert HOSTILE not in page

    def test_without_times_and_without_answers(self):
        """Without layer times and golden outputs the page has neither."""
        page = engine(layers=[Layer("a"), Layer("b")], comparison=None)

        assert "Where the time goes" not in page
        assert "budget" not in page

    @needs_browser
    def test_fits(self, tmp_path):
        """The page fits into the browser's window."""
        seen = look(engine(), tmp_path, 400)

        assert ([], [], SORTS) == (seen.complaints, seen.requests, seen.scripts)
        assert seen.reach <= seen.width
        assert 1 == len(seen.charts)
        assert HOSTILE in seen.text


class TestExportReport:
    """The page of an export."""

    def test_verdict(self):
        """The page begins with the verdict: within the budget or over it."""
        assert ">within budget<" in export_report(facts())
        assert ">over budget<" in export_report(facts(comparison=comparison(error=0.1)))

    def test_why_nodes_stayed(self):
        """Every node in FP32 is listed below its reason, with its evidence."""
        page = export_report(facts())

        assert re.search(r"<h3>overflow.*2 nodes.*square.*max 1.2e\+06 on `squared`", page, re.DOTALL)

    def test_drawn_samples_are_guesses(self):
        """A page about drawn inputs says that its numbers are guesses."""
        drawn = Samples(({"x": np.zeros((1, 4))},), "drawn (seed 0)", drawn=True)

        assert "a guess" in export_report(facts(samples=drawn))
        assert "a guess" not in export_report(facts())

    def test_without_sensitivities(self):
        """A plan without sensitivities is stated on the page."""
        plan = make_plan("fp16", [Decision("a", "Add", Precision.HALF, Reason.SAFE)])

        assert "No sensitivities were measured" in export_report(facts(plan=plan, predicted={}))

    def test_pages_are_reproducible(self):
        """The page does not depend on the time of the export, so that a bundle is reproducible."""
        other = replace(facts().manifest.provenance, created="2030-01-01T00:00:00")

        assert export_report(facts()) == export_report(facts(manifest=replace(facts().manifest, provenance=other)))


class TestBenchReport:
    """The page of a benchmark."""

    def test_figures(self):
        """The page shows ratios, percentiles, memory and sizes."""
        page = bench_report(benchmark())

        for words in ("0.80x", "1.50x", "16.0 MiB", "2.0 MiB", "within budget"):
            assert words in page

    def test_speed_note_on_a_cpu(self):
        """On a CPU the page says that half is not faster there; on a GPU it does not."""
        assert "Half is not faster on a CPU" in bench_report(benchmark())
        assert "Half is not faster" not in bench_report(benchmark(device="cuda:0"))

    def test_unknown_memory(self):
        """Unknown memory is shown as a dash."""
        assert ">-</td>" in bench_report(benchmark(half=Side(2 << 20, Memory(None, None))))


@pytest.mark.parametrize(
    ("limits", "error", "expected"),
    [
        (Limits(relative_l2=1e-2), 1e-3, 0.1),
        (Limits(max_abs=1.0), 1e-3, 2e-3),
        (Limits(top1=1.0), 1e-3, 0.0),
        (Limits(relative_l2=0.0), 1e-3, math.inf),
    ],
)
def test_budget_use(limits, error, expected):
    """The use is the error as a share of the limit; for a limit of zero it is zero or infinite."""
    ((_, share),) = budget_use(comparison(limits, error))

    assert expected == pytest.approx(share, rel=1e-2)


class TestUntrustedNames:
    """Names from model files are shown as text, never as markup, script or mathematics."""

    def test_page(self):
        """A hostile name is shown in the page literally."""
        page = export_report(facts())

        assert SORTS == page.count("<script")
        assert "&lt;script&gt;" in page

    def test_chart(self):
        """A hostile name is shown in charts literally."""
        chart = bars("a chart", [HOSTILE], [1.0], unit="%")

        assert "<script" not in chart
        assert "$x_1$" in bars("a chart", ["$x_1$"], [1.0], unit="%")

    def test_large_numbers_are_written_out(self):
        """A label has the form of the axis beside it: 9,610, not 9.61e+03."""
        assert "9,610" in bars("a chart", ["a"], [9610.0], unit="")

    @pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
    def test_policy(self, page):
        """The page's content security policy allows only its own styles."""
        assert "default-src 'none'; style-src 'unsafe-inline'" in page()
        assert not re.search(r"""(?:src|href)=["'](?!#)""", page())


@needs_browser
class TestInABrowser:
    """Pages in a real browser without a network."""

    @pytest.mark.parametrize("width", [400, 1200])
    @pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
    def test_fits(self, page, width, tmp_path):
        """A page has no errors, requests, sideways scrolling or duplicate ids, and its charts have sizes and labels."""
        seen = look(page(), tmp_path, width)

        assert ([], [], SORTS) == (seen.complaints, seen.requests, seen.scripts)
        assert seen.reach <= seen.width
        assert len(seen.charts) >= 2
        assert all(wide > 300 and high > 30 for wide, high in seen.charts)
        assert all(seen.names)
        assert min(seen.letters) > 5
        assert len(seen.ids) == len(set(seen.ids))

    def test_words(self, tmp_path):
        """The important texts are visible, a hostile name among them."""
        text = look(PAGES["export"](), tmp_path).text

        for words in ("within budget", "Why nodes stayed in FP32", "square", HOSTILE):
            assert words in text

    def test_dark(self, tmp_path):
        """With a dark colour scheme the page has light text on a dark background."""
        light, dark = (look(PAGES["bench"](), tmp_path, dark=dark) for dark in (False, True))

        assert (light.ink, light.paper) != (dark.ink, dark.paper)
        assert "rgb(18, 23, 29)" == dark.paper

    def test_bad_page_is_detected(self, tmp_path):
        """The checks find a page with scripts, requests and content that is too wide."""
        bad = '<body style="margin:0"><div style="width:2000px">x</div><img src="http://example.org/x.png"><script>nothing()</script><script>more()</script>'
        seen = look(bad, tmp_path, 400)

        assert seen.reach > seen.width
        assert seen.complaints
        assert SORTS < seen.scripts
