"""What a person sees in a browser: numbers after real requests, failures, overflows, a thousand models, a phone, a key."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import trustme
import uvicorn
from playwright.sync_api import Page, expect

from demi.server.accuracy.window import MIN_SAMPLES
from demi.server.http.app import create_app
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.settings import ServeSettings
from tests.browser import needs_browser
from tests.raw_inputs import png, wav
from tests.server.bundles import SCALE, write_bundle
from tests.server.console.bundles import EVIL, rows
from tests.server.fakes import loaded, open_fake
from tests.server.processes import serving
from tests.server.test_keys import KEY, OTHER, write_keys

pytestmark = needs_browser

TABS = ("live", "plan", "versions", "report", "try", "commands")


def card_of(page: Page, name: str, version: str = "1"):
    return page.get_by_role("listitem", name=f"{name} version {version}, ")


def fact(place, name: str):
    """Return the value under a name in a list of numbers."""
    return place.locator(f"dt:text-is('{name}') + dd").first


def ask(client: httpx.Client, model: str, *values: float, times: int = 1, precision: str = "auto") -> None:
    for _ in range(times):
        body = {**rows(*values), "parameters": {"precision": precision}}
        client.post(f"/v2/models/{model}/infer", json=body).raise_for_status()


def sample(client: httpx.Client, model: str, *values: float) -> None:
    """Send requests until enough of them were compared in this window for a state that is known."""
    stop = time.monotonic() + 15
    for _ in range(MIN_SAMPLES + 5):
        before = compared(client, model)
        ask(client, model, *values)
        while compared(client, model) == before and time.monotonic() < stop:
            time.sleep(0.01)


def compared(client: httpx.Client, model: str) -> int:
    """Return how many requests were compared with the other precision so far."""
    found = client.get(f"/v2/models/{model}/accuracy").raise_for_status()
    return int(found.json()["shadow"]["samples"])


def test_numbers_after_real_requests(console_server, client, tab):
    """Rates, percentiles and rows per run appear on the card without a reload; accuracy is unknown, then within budget."""
    page = tab(console_server.url)
    card = card_of(page, "mixed", "2")
    expect(card).to_contain_text("unknown (0 samples)")
    sample(client, "mixed", 0.5, 0.25)

    expect(card).to_contain_text("within budget")
    expect(card.get_by_role("img")).to_have_attribute(
        "aria-label", re.compile(r"^y: relative L2 .* budget at most 0.01$")
    )
    expect(fact(card, "requests/s")).to_have_text(re.compile(r"^[0-9.]+$"))
    expect(fact(card, "p50")).to_have_text(re.compile(r"^[0-9.]+ m?s$"))
    expect(fact(card, "mean batch")).to_have_text("2")
    expect(fact(card, "errors")).to_have_text("0%")
    expect(page.get_by_text("live", exact=True)).to_be_visible()


def test_a_failed_model_comes_first_with_its_reason(console_server, tab):
    """By default, what needs attention comes first, with the reason on the card."""
    page = tab(console_server.url)
    first = page.get_by_role("listitem").first

    expect(first).to_contain_text("damaged")
    expect(first).to_contain_text("its digest differs")
    expect(first.locator(".badge")).to_have_text("failed")


def test_an_overflow_that_the_guard_catches(console_server, client, tab):
    """An input that overflows in half is counted on the card, and listed with its request on the model's page."""
    ask(client, "double", 40_000.0, times=3)
    page = tab(console_server.url)
    card = card_of(page, "double")
    expect(fact(card, "guard reruns")).to_have_text(re.compile(r"^[1-9]\d*$"))
    expect(fact(card, "out of range")).to_have_text(re.compile(r"^[1-9]\d*$"))
    card.get_by_role("link", name="double").click()

    caught = page.get_by_role("region", name="Requests that the guard caught")
    expect(caught.locator("tbody tr").first).to_contain_text("yes")
    ranges = page.get_by_role("region", name="Calibrated ranges of inputs")
    expect(ranges.locator("tbody tr")).to_contain_text(re.compile(r"x-22[1-9]"))


def test_a_model_over_its_budget(console_server, client, tab):
    """A model whose half answers are wrong becomes degraded; its page has the chart with the budget, and why."""
    page = tab(f"{console_server.url}/#/model/clumsy/1/live")
    expect(page.get_by_role("heading", level=1)).to_have_text("clumsy v1")
    sample(client, "clumsy", 1.0, 2.0)

    expect(page.locator(".title .badge")).to_have_text("degraded")
    changes = page.get_by_role("region", name="Changes of the accuracy state")
    expect(changes).to_contain_text("relative_l2 is 0.1")
    chart = page.get_by_role("img", name=re.compile(r"^Accuracy: relative L2 against FP32: now y 0\.1"))
    expect(chart.locator("canvas")).to_be_visible()
    expect(chart).to_contain_text("budget 0.01")
    expect(page.get_by_role("img", name=re.compile(r"^Latency: now p50 .* p99 "))).to_be_visible()


def test_the_plan_beside_the_graph(console_server, tab):
    """Nodes are found, sorted and chosen in table and graph alike; markup in a reason is text."""
    page = tab(f"{console_server.url}/#/model/mixed/1/plan")
    table = page.get_by_role("region", name="Nodes and reasons")
    expect(table.locator("tbody tr")).to_have_count(4)
    expect(table).to_contain_text(EVIL)
    assert 0 == page.locator("main img[src=x]").count()
    page.get_by_role("button", name="operator").click()
    expect(page.get_by_role("columnheader", name="operator")).to_have_attribute("aria-sort", "ascending")
    expect(table.locator("tbody tr").first).to_contain_text("Cast")
    page.get_by_label("Search").fill("mul safe")
    expect(table.locator("tbody tr")).to_have_count(1)
    node = page.get_by_role("button", name="product, Mul, half: safe")
    node.focus()
    page.keyboard.press("Enter")

    expect(node).to_have_attribute("aria-pressed", "true")
    expect(table.locator("tr.chosen")).to_contain_text("product")
    assert 4 == page.locator(".graph .node").count()


def test_versions_side_by_side(console_server, tab):
    """Both versions with their nodes and errors, and the node that they decide differently."""
    page = tab(f"{console_server.url}/#/model/mixed/2/versions")
    table = page.get_by_role("region", name="Versions side by side")
    changes = page.get_by_role("region", name="Changed decisions")

    expect(table.locator("tr", has_text="nodes in half")).to_have_text("nodes in half10")
    expect(table.locator("tr", has_text="nodes in FP32")).to_have_text("nodes in FP3201")
    expect(table.locator("tr", has_text="share of traffic")).to_contain_text("0% of traffic")
    expect(changes).to_contain_text("half (safe)")
    expect(changes).to_contain_text("FP32 (overflow)")
    page.get_by_label("Version", exact=True).select_option("1")
    expect(page).to_have_url(re.compile("#/model/mixed/1/versions$"))


def test_the_report_sorts_its_tables_and_runs_nothing_else(console_server, chromium):
    """The page of the export is in a frame, in which the buttons of its tables work and no other script runs."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{console_server.url}/#/model/mixed/1/report")
    frame = page.frame_locator("iframe.report")
    expect(frame.get_by_role("heading", name="The export of mixed")).to_be_visible()
    expect(frame.locator("tbody tr").first).to_have_text("b10")
    frame.get_by_role("button", name="error").click()
    expect(frame.locator("tbody tr").first).to_have_text("a9")
    page.goto(f"{console_server.url}/console/models/mixed/versions/1/report.html")
    expect(page.get_by_role("heading", name="The export of mixed")).to_be_visible()
    title = page.title()
    context.close()

    assert "report" == title


def test_try_it(console_server, tab):
    """Golden inputs run at once; other values show where half overflows; a mistake is explained beside the form."""
    page = tab(f"{console_server.url}/#/model/double/1/try")
    run = page.get_by_role("button", name="Run in half and in FP32")
    run.click()
    values = page.get_by_role("region", name="Values of y")
    expect(values.locator("tbody tr")).to_have_count(6)
    expect(page.locator(".difference")).to_contain_text("relative L2 0")
    page.get_by_label("shape").fill("1, 3")
    page.get_by_label(re.compile("^values")).fill("1 2 40000")
    run.click()
    expect(values.locator("tbody tr").last).to_contain_text("inf80,000")
    expect(page.locator(".badge.over")).to_have_text("over budget")
    page.get_by_label(re.compile("^values")).fill("1, 2")
    run.click()

    expect(page.get_by_role("alert")).to_have_text("x: 2 values do not fill the shape, which takes 3")


def test_text_is_tried_as_text(console_server, tab):
    """A model that takes text has a field for text; what comes back is shown as it was typed."""
    page = tab(f"{console_server.url}/#/model/text/1/try")
    page.get_by_label(re.compile("^values")).fill(f"{EVIL}\ntwo words")
    page.get_by_role("button", name="Run in half and in FP32").click()

    expect(page.get_by_role("region", name="Values of same").locator("tbody tr").first).to_contain_text(EVIL)
    expect(page.get_by_text("holds no FP32 reference")).to_be_visible()


def test_a_typed_text_gets_its_label(console_server, tab):
    """Where the bundle takes texts, the form begins with one, and shows the answer beside the outputs."""
    page = tab(f"{console_server.url}/#/model/sentiment/1/try")
    page.get_by_label("text", exact=True).fill("a cat\nsat down")
    page.get_by_role("button", name="Run in half and in FP32").click()
    label = page.get_by_role("region", name="Output label")

    expect(label.locator("tbody tr")).to_have_text(re.compile(r"^\[0\]goodgood"))
    expect(label).to_contain_text("the same in both precisions")
    expect(page.get_by_role("region", name="Output logits")).to_contain_text("within budget")
    page.get_by_label("Start from").select_option("tensors")
    expect(page.get_by_role("group", name="input_ids")).to_be_visible()


@pytest.mark.parametrize(
    ("model", "kind", "label", "file"),
    [
        ("color", "image", "red", {"name": "cat.png", "mimeType": "image/png", "buffer": png()}),
        ("loud", "audio", "loud", {"name": "bell.wav", "mimeType": "audio/wav", "buffer": wav()}),
    ],
    ids=["image", "audio"],
)
def test_a_chosen_file_gets_its_label(console_server, tab, model, kind, label, file):
    """An image or a sound is chosen, shown, and sent as it is; without one, the form asks for it."""
    page = tab(f"{console_server.url}/#/model/{model}/1/try")
    run = page.get_by_role("button", name="Run in half and in FP32")
    run.click()
    expect(page.get_by_role("alert")).to_have_text(f"{kind}: choose a file first")
    page.get_by_label(kind, exact=True).set_input_files(file)
    shown = page.get_by_role("img", name=file["name"]) if kind == "image" else page.get_by_label(file["name"])
    expect(shown).to_be_visible()
    run.click()

    expect(page.get_by_role("region", name="Output label").locator("tbody tr")).to_contain_text(label)


def test_files_are_dropped(console_server, tab):
    """Several files are the rows of one request."""
    page = tab(f"{console_server.url}/#/model/color/1/try")
    files = [base64.b64encode(png(color)).decode() for color in ((255, 0, 0), (0, 0, 255))]
    transfer = page.evaluate_handle(
        """files => files.reduce((transfer, file, index) => {
            const bytes = Uint8Array.from(atob(file), letter => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], `${index}.png`, { type: "image/png" }));
            return transfer;
        }, new DataTransfer())""",
        files,
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": transfer})
    expect(page.get_by_role("img", name="1.png")).to_be_visible()
    page.get_by_role("button", name="Run in half and in FP32").click()

    rows_of_label = page.get_by_role("region", name="Output label").locator("tbody tr")
    expect(rows_of_label).to_have_text([re.compile("redred"), re.compile("blueblue")])


def test_a_command_is_copied(console_server, tab):
    """The button copies the command as it is shown."""
    page = tab(f"{console_server.url}/#/model/mixed/1/commands")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy the curl command").click()

    expect(page.get_by_role("button", name="Copied the curl command")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert page.get_by_label("curl", exact=True).locator("pre").inner_text() == copied
    assert copied.startswith("curl ")


@pytest.mark.parametrize("place", ["", *(f"#/model/mixed/1/{tab}" for tab in TABS)])
def test_a_phone(console_server, tab, place):
    """Nothing is wider than a phone: the page does not scroll sideways."""
    page = tab(f"{console_server.url}/{place}", width=390, height=844)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    page.wait_for_timeout(300)

    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_dark(console_server, tab):
    """The page follows the system's scheme; text stays readable on its background."""

    def colours(*, dark: bool) -> tuple[int, int]:
        page = tab(console_server.url, dark=dark)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        style = "getComputedStyle(document.body)"
        found = [page.evaluate(f"{style}.{name}") for name in ("color", "backgroundColor")]
        ink, paper = (sum(map(int, re.findall(r"\d+", each)[:3])) for each in found)
        return ink, paper

    light, dark = colours(dark=False), colours(dark=True)

    assert light[1] - light[0] > 400
    assert dark[0] - dark[1] > 400


def test_the_keyboard_reaches_everything(console_server, tab):
    """Tab goes from the skip link over the navigation to the filter; Enter opens a card."""
    page = tab(console_server.url)
    expect(page.get_by_role("listitem").first).to_be_visible()
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText || document.activeElement.type"))
    card_of(page, "mixed", "1").get_by_role("link").focus()
    page.keyboard.press("Enter")

    assert ["Skip to content", "Demi", "API", "Metrics"] == [each.strip() for each in reached[:4]]
    assert "search" in reached
    expect(page.get_by_role("heading", level=1)).to_have_text("mixed v1")
    expect(page.get_by_role("link", name="Live")).to_have_attribute("aria-current", "page")


def test_the_api_documentation_runs_under_its_policy(console_server, tab):
    """Swagger UI starts without inline scripts."""
    page = tab(f"{console_server.url}/docs")

    expect(page.get_by_role("heading", name=re.compile("^Demi"))).to_be_visible()
    expect(page.locator(".opblock").first).to_be_visible()


def test_a_server_that_stops_is_noticed(tmp_path, chromium):
    """An open page says that the server is gone."""
    context = chromium.new_context()
    page = context.new_page()
    with serving(write_bundle(tmp_path / "b", SCALE)) as server:
        page.goto(server.url)
        expect(page.get_by_role("status").first).to_have_text("live")
    expect(page.get_by_text("connection lost, trying again")).to_be_visible()
    context.close()


def sign_in(page: Page, url: str, key: str) -> None:
    page.goto(url)
    page.get_by_label("API key of this server").fill(key)
    page.keyboard.press("Enter")
    expect(card_of(page, "scale")).to_contain_text("FP16")


def test_keys_of_two_servers_on_one_host(tmp_path, chromium):
    """A person types each key once; scripts cannot read the cookies; signing out of one server is not signing out of the other."""
    models = write_bundle(tmp_path / "b", SCALE)
    first, second = (write_keys(tmp_path / key, key) for key in (KEY, OTHER))
    with serving(models, "--api-key-file", str(first)) as one, serving(models, "--api-key-file", str(second)) as two:
        context = chromium.new_context()
        page = context.new_page()
        sign_in(page, one.url, KEY)
        cookie = page.evaluate("document.cookie")
        sign_in(page, two.url, OTHER)
        page.goto(one.url)
        expect(card_of(page, "scale")).to_contain_text("FP16")
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("API key of this server")).to_be_visible()
        page.goto(two.url)
        expect(card_of(page, "scale")).to_contain_text("FP16")
        context.close()

    assert "" == cookie
    assert KEY not in one.log


def test_a_key_over_tls(tmp_path, chromium):
    """Over HTTPS the cookie is for HTTPS only; the stream of events and the form to try work as without it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    keys = write_keys(tmp_path / "keys", KEY)
    tls = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))
    with serving(write_bundle(tmp_path / "b", SCALE), "--api-key-file", str(keys), *tls) as server:
        context = chromium.new_context(ignore_https_errors=True)
        page = context.new_page()
        sign_in(page, server.url, KEY)
        expect(page.get_by_text("live", exact=True)).to_be_visible()
        page.goto(f"{server.url}/#/model/scale/1/try")
        page.get_by_role("button", name="Run in half and in FP32").click()
        expect(page.get_by_role("region", name="Answer")).to_be_visible()
        cookies = context.cookies()
        context.close()

    assert server.url.startswith("https://")
    assert [(True, True, "Strict")] == [(each["secure"], each["httpOnly"], each["sameSite"]) for each in cookies]


class TestAThousandModels:
    """A server with a thousand models."""

    @pytest.fixture(scope="class")
    def url(self) -> Iterator[str]:
        """Serve a thousand models without bundles, a few of which have failed, from this process."""
        models = [Model(f"model-{number:04}", "1", ServeSettings()) for number in range(1000)]
        for model in models[:990]:
            model.start(loaded(open_fake()))
        for model in models[990:]:
            model.fail("a reason of its own")
        app = create_app(Repository(models), ServeSettings())
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join(10)
        for model in models:
            model.close()

    def test_they_stay_usable(self, url, tab):
        """Failed ones come first; the filter finds one of a thousand, and the page draws a part of them at once."""
        page = tab(url)
        expect(page.get_by_role("listitem").first).to_contain_text("model-0990")
        expect(page.locator("output")).to_have_text("1,000 versions")
        drawn = page.get_by_role("listitem").count()
        started = page.evaluate("performance.now()")
        page.get_by_label("Filter").fill("model-0123")
        expect(page.get_by_role("listitem")).to_have_count(1)
        took_ms = page.evaluate("performance.now()") - started
        page.get_by_label("Filter").fill("")
        page.get_by_label("State").select_option("failed")
        expect(page.get_by_role("listitem")).to_have_count(10)
        page.get_by_label("State").select_option("all")
        page.get_by_role("button", name=re.compile("^Show .* more of 1,000$")).click()

        assert drawn == 60
        assert took_ms < 10_000
        expect(page.get_by_role("listitem")).to_have_count(660)
