"""What the console's paths answer: events, plans, versions, reports, and both precisions of a request."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from demi.calibration.report.page import TEMPLATES, digest
from demi.server.http.app import create_app
from demi.server.http.console.events import MAX_WATCHERS
from demi.server.http.console.routes import STATIC
from demi.server.models.repository import Repository
from demi.server.settings import ServeSettings
from demi.server.telemetry.history import COLUMNS
from tests.server.bundles import SCALE, write_bundle
from tests.server.console.bundles import EVIL, REPORT, rows
from tests.server.processes import serving

DOUBLE = "/console/models/double/versions/1"
MIXED = "/console/models/mixed/versions/1"


def events(answer: httpx.Response) -> Iterator[tuple[str, dict]]:
    """Yield the events of a stream."""
    name = ""
    for line in answer.iter_lines():
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


def error_of(answer: httpx.Response, status: int) -> str:
    assert status == answer.status_code
    return str(answer.json()["error"])


def test_events_begin_with_every_card_and_go_on_with_points(client):
    """The first event has all cards; later ones the new points of the model that the page shows."""
    found = {}
    with client.stream("GET", "/console/events", params={"model": "double", "version": "1"}) as answer:
        for name, data in events(answer):
            found.setdefault(name, data)
            if "points" in found:
                break
            client.post("/v2/models/double/infer", json=rows(1.0))

    assert "text/event-stream; charset=utf-8" == answer.headers["content-type"]
    own = {"clumsy", "damaged", "double", "mixed", "text", "types"}
    assert own | {"sentiment", "color", "loud"} == {card["name"] for card in found["models"]["cards"]}
    points = found["points"]
    assert set(COLUMNS) == set(points["columns"])
    assert {"y"} == set(points["errors"])
    assert max(filter(None, points["columns"]["rate"])) > 0
    assert abs(points["times"][-1] / 1000 - time.time()) < 60


def test_too_many_pages_are_refused_and_closed_ones_do_not_count(client):
    """Each page holds a connection open, so their number is limited; one that leaves makes room."""
    with contextlib.ExitStack() as pages:
        open_pages = [pages.enter_context(client.stream("GET", "/console/events")) for _ in range(MAX_WATCHERS)]
        lines = [page.iter_lines() for page in open_pages]
        assert {"event: models"} == {next(line) for line in lines}
        with client.stream("GET", "/console/events") as refused:
            refused.read()
    stop, status = time.monotonic() + 10, 503
    while status == 503 and time.monotonic() < stop:
        with client.stream("GET", "/console/events") as again:
            status = again.status_code

    assert "pages watch this server already" in error_of(refused, 503)
    assert 200 == status


def test_a_stream_does_not_hold_up_the_end(tmp_path):
    """A server with an open page stops on SIGTERM as soon as its requests are answered; the page is told."""
    with serving(write_bundle(tmp_path / "b", SCALE)) as server, httpx.Client(base_url=server.url) as client:
        with client.stream("GET", "/console/events") as answer:
            found = events(answer)
            next(found)
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            last = [name for name, _ in found][-1]
        code = server.wait()

    assert (0, "stopping") == (code, last)
    assert time.monotonic() - started < 15


def test_the_plan_has_the_graph_and_the_reasons(client):
    """The nodes of the served model in order, with the decision of each, and which nodes each reads."""
    nodes = client.get(f"{MIXED}/plan").json()
    product = next(node for node in nodes if node["node"] == "product")

    assert ["Cast", "Cast", "Mul", "Cast"] == [node["op_type"] for node in nodes[:4]]
    assert [0, 1] == nodes[2]["reads"]
    assert "cast between precisions" == nodes[0]["reason"]
    assert ("half", "safe", EVIL, 0.25) == tuple(product[key] for key in ("precision", "reason", "evidence", "share"))


def test_versions_side_by_side(client):
    """Each version has what its bundle says: nodes in both precisions, sizes, and the errors that its export measured."""
    first, second = client.get("/console/models/mixed/versions").json()

    assert ("1", 1, 0, True) == tuple(first[key] for key in ("version", "half_nodes", "fp32_nodes", "has_report"))
    assert ("2", 0, 1, False) == tuple(second[key] for key in ("version", "half_nodes", "fp32_nodes", "has_report"))
    assert ({"y": 0.0004}, 0.0003) == (first["predicted"], first["outputs"][0]["relative_l2"])
    assert first["model_bytes"] > 0


def test_changed_decisions(client):
    """The nodes that the second version decides otherwise, with both reasons."""
    (change,) = client.get("/console/models/mixed/changes", params={"was": "1", "now": "2"}).json()

    assert ("product", "half", "safe", "fp32", "overflow") == tuple(
        change[key] for key in ("node", "was", "was_reason", "now", "now_reason")
    )


def test_a_damaged_bundle_is_described_as_far_as_it_can_be_read(client):
    """A model that failed still has its version in the list; a bundle without a plan says so."""
    (only,) = client.get("/console/models/damaged/versions").json()

    assert ("1", "fp16", None) == (only["version"], only["precision"], only["half_nodes"])
    assert "holds no plan" in error_of(
        client.get("/console/models/double/changes", params={"was": "1", "now": "1"}), 404
    )


@pytest.mark.parametrize(
    "path",
    [
        "/console/models/none/versions",
        "/console/models/none/versions/1/plan",
        "/console/models/mixed/versions/9/plan",
        "/console/models/mixed/versions/2/report.html",
        "/console/models/mixed/changes?was=1&now=7",
        "/console/assets/none.js",
        "/console/assets/../routes.py",
        "/console/assets/..%2Froutes.py",
    ],
)
def test_unknown_models_and_files(client, path):
    """Unknown models, versions, reports and files are not found."""
    error_of(client.get(path), 404)


def test_a_report_sorts_tables_and_runs_nothing_else(client):
    """The page of an export is returned as it is; its headers allow the script that sorts tables and no other, and keep it
    from being of this site."""
    answer = client.get(f"{MIXED}/report.html")
    policy = answer.headers["content-security-policy"].split("; ")

    assert REPORT == answer.text
    assert {"default-src 'none'", "sandbox allow-scripts"} <= set(policy)
    assert [f"script-src '{digest((TEMPLATES / 'sort.js').read_text())}'"] == [
        each for each in policy if "script-src" in each
    ]


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_allow_no_inline_scripts(client, path):
    """The policy allows scripts of this server only, and the pages hold none of their own."""
    answer = client.get(path)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))

    assert ("'none'", "'self'", "'none'") == (policy["default-src"], policy["script-src"], policy["frame-ancestors"])
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", answer.text, re.DOTALL)
    assert scripts
    assert all(re.search(r' src="(console|docs)/', tag) and not inside for tag, inside in scripts)
    assert "<style" not in answer.text
    assert " on" not in answer.text.replace(" only", "")
    assert "nosniff" == answer.headers["x-content-type-options"]


def test_no_console():
    """`--no-console` leaves nothing of it; the API and its documentation stay."""
    app = create_app(Repository([]), ServeSettings(console=False))

    async def ask(path: str) -> int:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return (await client.get(path)).status_code

    paths = ("/", "/console/models", "/console/events", "/console/assets/app.js", "/docs")

    assert [404, 404, 404, 404, 200] == [asyncio.run(ask(path)) for path in paths]
    assert app.recorder is None


class TestTryIt:
    """A request from the form, answered in both precisions."""

    def test_the_form_begins_with_golden_inputs(self, client):
        """The inputs with their shapes, and the golden inputs as presets."""
        form = client.get(f"{DOUBLE}/try").json()

        assert [{"name": "x", "datatype": "FP32", "shape": ["batch", 3], "editor": "numbers"}] == form["inputs"]
        assert [{"shape": [2, 3], "data": [1.0] * 6, "summary": "6 values from 1 to 1"}] == [
            preset["x"] for preset in form["presets"]
        ]

    def test_both_precisions_and_the_difference(self, client):
        """Both answers, and their difference beside the budget."""
        answer = client.post("/console/models/clumsy/versions/1/try", json=rows(2.0)).json()
        (output,) = answer["outputs"]

        assert ("fp16-in-fp32", "fp32") == (answer["half"]["precision"], answer["fp32"]["precision"])
        assert ([2.0] * 3, pytest.approx(0.1, rel=1e-4)) == (output["fp32"], output["relative_l2"])
        assert pytest.approx([2.2] * 3) == output["half"]
        assert "the budget is" in output["exceeded"][0]

    def test_golden_inputs_complete_a_request(self, client):
        """An input that the request does not have is the golden one, without being sent."""
        answer = client.post(f"{DOUBLE}/try?golden=0", json={"inputs": []}).json()

        assert [2, 3] == answer["outputs"][0]["shape"]
        assert [2.0] * 6 == answer["outputs"][0]["half"]

    def test_an_overflow_is_seen(self, client):
        """The half answer is shown as half computes it: the guard does not hide its infinity here."""
        (output,) = client.post(f"{DOUBLE}/try", json=rows(40000.0)).json()["outputs"]

        assert (["inf"] * 3, 3) == (output["half"], output["non_finite"])
        assert [80000.0] * 3 == pytest.approx(output["fp32"])

    @pytest.mark.parametrize(
        ("model", "editor"), [("sentiment", "prose"), ("color", "image"), ("loud", "audio"), ("double", "")]
    )
    def test_raw_inputs_have_editors(self, client, model, editor):
        """Texts, images and sounds, where the bundle takes them."""
        form = client.get(f"/console/models/{model}/versions/1/try").json()

        assert ([editor] if editor else []) == [each["editor"] for each in form["raw"]]

    def test_a_text_gets_its_answers_in_both_precisions(self, client):
        """The answers come first, each with whether it is the same; then the outputs, compared with the budget."""
        given = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a cat sat down"]}
        answer = client.post("/console/models/sentiment/versions/1/try", json={"inputs": [given]}).json()
        label, scores, logits = (
            next(each for each in answer["outputs"] if each["name"] == name) for name in ("label", "scores", "logits")
        )

        assert {"label", "scores"} == {each["name"] for each in answer["outputs"][:-1]}
        assert (["good"], ["good"], True, True) == (label["half"], label["fp32"], label["is_answer"], label["same"])
        assert (True, None) == (scores["same"], scores["relative_l2"])
        assert (False, None, 0.0) == (logits["is_answer"], logits["same"], logits["relative_l2"])

    def test_a_file_that_is_not_an_image(self, client):
        """The sentence that a program would get, in the place of both answers."""
        given = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}
        answer = client.post("/console/models/color/versions/1/try", json={"inputs": [given]}).json()

        assert "image 0 is not an image" in answer["half"]["error"]
        assert answer["half"]["error"] == answer["fp32"]["error"]

    @pytest.mark.parametrize(
        ("query", "body", "words"),
        [
            ("", {"inputs": []}, "input `x` is missing"),
            ("?golden=7", {"inputs": []}, "there is no golden set 7"),
            ("?golden=x", {"inputs": []}, "does not follow the protocol"),
            ("", {"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [1]}]}, "unknown input `z`"),
            ("", {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}, "has shape [1]"),
            ("", {"no": 1}, "inputs"),
        ],
    )
    def test_inputs_that_do_not_fit(self, client, query, body, words):
        """A mistake in the form is answered with the sentence that a program would get."""
        assert words in error_of(client.post(f"{DOUBLE}/try{query}", json=body), 400)

    def test_every_datatype_has_an_editor(self, client):
        """Numbers, flags and text; a bundle without golden inputs has no preset."""
        form = client.get("/console/models/types/versions/1/try").json()

        assert ["flags", *["numbers"] * 5, "text"] == [each["editor"] for each in form["inputs"]]
        assert [] == form["presets"]

    def test_a_model_without_a_reference(self, client):
        """The half answer comes with the reason why there is no other."""
        sent = [{"name": "words", "shape": [1, 2], "datatype": "BYTES", "data": ["a", "<b>"]}]
        answer = client.post("/console/models/text/versions/1/try", json={"inputs": sent}).json()
        (output,) = answer["outputs"]

        assert ("fp16-in-fp32", ["a", "<b>"], None) == (answer["half"]["precision"], output["half"], output["fp32"])
        assert "holds no FP32 reference" in answer["fp32"]["error"]


def test_libraries_are_those_of_the_lock():
    """The bundled libraries have the versions that the lock names, each with its licence beside it."""
    vendor = STATIC / "vendor"
    lock = json.loads((STATIC.parent / "npm" / "package-lock.json").read_text())["packages"]
    wanted = json.loads((STATIC.parent / "npm" / "package.json").read_text())["dependencies"]
    shipped = json.loads((vendor / "versions.json").read_text())

    assert wanted == shipped == {name: lock[f"node_modules/{name}"]["version"] for name in wanted}
    for name in shipped:
        assert len((vendor / f"LICENSE-{name.rpartition('/')[2]}.txt").read_text()) > 500


def test_the_page_needs_no_other_host():
    """No file of the page loads anything from elsewhere."""
    own = [path for path in STATIC.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg")]

    assert len(own) > 12
    for path in own:
        text = path.read_text().replace("http://www.w3.org/", "")
        assert "http://" not in text, path
        assert not any(f"{quote}https://" in text for quote in "\"'`(") or "vendor" in path.parts, path
