"""The pages in a real browser, on the real application of a real bundle."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from features.online import MemoryStore
from recsys import inference
from serving import keys
from serving.api import build
from serving.model import Model
from serving.service import Config, Service
from serving.variants import Variants
from tests.conftest import FinishedRun, require_program
from tests.integration.test_report import CHROMIUM
from tests.serving.conftest import PATIENT

PERSON = 1
HOSTILE = '<img src="x" onerror="document.title=\'owned\'">{item}</li><script>document.title="owned"</script>'

Open = Callable[..., Page]


@contextmanager
def listening(service: Service) -> Iterator[str]:
    """The service on a port of its own; its address."""
    server = uvicorn.Server(uvicorn.Config(build(service), port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    yield "http://{}:{}".format(*server.servers[0].sockets[0].getsockname())
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def variants(finished_run: FinishedRun, store: MemoryStore) -> Variants:
    variants = Variants.of_bundle(finished_run.directory / "bundle" / "time", store, inference.Config())
    variants.control.model.recommender.seed()
    return variants


@pytest.fixture(scope="module")
def address(variants: Variants, store: MemoryStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = Config.model_validate({"demo": True, "lane": PATIENT, "log": {"path": "requests.jsonl"}})
    service = Service(variants, store, config, tmp_path_factory.mktemp("service"))
    with listening(service) as found:
        yield found
    service.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = require_program("chromium", "chromium-browser", "google-chrome")
    with sync_playwright() as browsers:
        opened = browsers.chromium.launch(executable_path=program, args=CHROMIUM)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Open]:
    """Opens a page; what its console complains of fails the test, but for what `allowed` matches."""
    complaints: list[str] = []

    def opened(path: str, at: str = address, width: int = 1280, allowed: str = "$^", **more: Any) -> Page:
        def heard(words: str) -> None:
            if not re.search(allowed, words):
                complaints.append(words)

        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **more)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("console", lambda message: heard(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: heard(str(error)))
        page.goto(f"{at}{path}")
        return page

    expect.set_options(timeout=20_000)
    yield opened
    for context in browser.contexts:
        context.close()
    assert not complaints


def cards(page: Page) -> Locator:
    return page.locator("#feed > .card")


def titles(page: Page) -> list[str]:
    return cards(page).locator("h2").all_inner_texts()


def asked(address: str, user: int | str, k: int = 12) -> dict[str, Any]:
    return httpx.post(f"{address}/v1/recommend", json={"user_id": user, "k": k, "explain": True}).json()


def tab_to(page: Page, wanted: Locator, key: str = "Tab") -> None:
    """Press until the focus is there."""
    for _ in range(80):
        page.keyboard.press(key)
        if wanted.evaluate("node => node === document.activeElement"):
            assert wanted.evaluate("node => getComputedStyle(node).outlineStyle !== 'none'"), "the focus is not seen"
            return
    pytest.fail(f"{wanted} is not reached by {key}")


def test_a_known_person_sees_titles_reasons_and_history(visit: Open, address: str) -> None:
    page = visit("/")
    known = httpx.get(f"{address}/v1/users", params={"limit": 8}).json()["users"]
    person = page.locator("#known-list button").nth(2)
    expect(person).to_have_text(str(known[2]))
    person.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Person {known[2]}")
    answer = asked(address, known[2])
    assert titles(page) == [item["title"] for item in answer["items"]]
    told = cards(page).locator(".reason").all_inner_texts()
    for item, words in zip(answer["items"], told, strict=True):
        first = item["reason"]["because"][:1]
        assert all(one["title"] in words and words.startswith("Because you ") for one in first)
        assert words
    history = httpx.get(f"{address}/v1/users/{known[2]}/history").json()
    shown = page.locator("#history .history-title")
    assert shown.all_inner_texts() == history["titles"][: -shown.count() - 1 : -1]
    assert page.locator("#history time").count() == shown.count()
    foot = page.locator("#answer")
    expect(foot).to_contain_text(answer["variant"])
    expect(foot).to_contain_text(answer["model"])
    assert foot.locator(".stages > span").count() == len(answer["latency_ms"])
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Person {known[2]}")


def test_what_is_said_changes_the_next_feed_and_can_be_taken_back(visit: Open) -> None:
    page = visit(f"/#user={PERSON}")
    expect(cards(page)).to_have_count(12)
    before = titles(page)
    cards(page).nth(1).get_by_role("button", name="Dislike").click()
    expect(page.locator("#said")).to_contain_text(f"“{before[1]}” is not shown any more.")
    after = titles(page)
    assert before[1] not in after
    assert len(after) == 12
    fresh = cards(page).filter(has=page.get_by_text("New", exact=True)).locator("h2").all_inner_texts()
    assert set(fresh) == set(after) - set(before)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#said")).to_contain_text("Taken back.")
    assert titles(page) == before
    seen = cards(page).first.locator("h2").inner_text()
    cards(page).first.get_by_role("button", name="Seen it").click()
    expect(page.locator("#history .history-title").first).to_have_text(seen)
    assert seen not in titles(page)


def test_a_category_that_is_refused_is_not_shown(visit: Open) -> None:
    page = visit(f"/#user={PERSON + 1}")
    expect(cards(page)).to_have_count(12)
    refused = cards(page).first.locator(".categories").inner_text().split(" · ")[0]
    menu = cards(page).first.locator("summary[data-act=refuse]")
    if menu.count():
        menu.click()
    cards(page).first.get_by_role("button", name=f"Not {refused}").click()
    expect(page.locator("#said")).to_contain_text(f"No more {refused}.")
    for categories in cards(page).locator(".categories").all_inner_texts():
        assert refused not in categories.split(" · ")
    page.get_by_role("button", name=f"Take back: wants no {refused}").click()
    expect(page.locator("#said")).to_contain_text("was taken back")


def test_three_choices_make_a_first_feed(visit: Open, address: str) -> None:
    page = visit("/")
    page.get_by_role("button", name="Someone new").click()
    choices = page.locator("#newcomer [data-choice]")
    expect(choices).to_have_count(12)
    chosen: list[str] = []
    for place in (0, 3, 5):
        chosen.append(choices.nth(place).locator(".choice-title").inner_text())
        choices.nth(place).click()
    expect(cards(page)).to_have_count(12)
    expect(page.locator("#said")).to_contain_text("made from 3 choices")
    user = page.evaluate("new URLSearchParams(location.hash.slice(1)).get('user')")
    answer = asked(address, user)
    assert answer["source"] == "taste"
    assert titles(page) == [item["title"] for item in answer["items"]]
    expect(page.locator("#answer")).to_contain_text("taste")
    assert set(page.locator("#taste .chip").all_inner_texts()) == {f"{title}×" for title in chosen}
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#newcomer")).to_be_hidden()


def test_all_is_done_by_keyboard(visit: Open, address: str) -> None:
    page = visit("/")
    expect(page.locator("#known-list button").first).to_be_visible()
    tab_to(page, page.locator("#new"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("searchbox", name="Look for a title")).to_be_focused()
    page.keyboard.type("nothing has this title")
    expect(page.locator("#newcomer .search")).to_contain_text("No title has “nothing has this title”.")
    page.keyboard.press("Control+A")
    page.keyboard.type("PE")
    choices = page.locator("#newcomer [data-choice]")
    found = httpx.get(f"{address}/v1/items", params={"query": "pe", "limit": 12}).json()["items"]
    assert len(found) > 3
    expect(choices.locator(".choice-title")).to_have_text([item["title"] for item in found])
    for place in range(3):
        tab_to(page, choices.nth(place))
        page.keyboard.press("Space")
        expect(choices.nth(place)).to_have_attribute("aria-pressed", "true")
        expect(choices.nth(place)).to_be_focused()
    expect(cards(page)).to_have_count(12)
    tab_to(page, page.get_by_role("button", name="Done"))
    page.keyboard.press("Enter")
    expect(page.locator("#feed-title")).to_be_focused()
    disliked = cards(page).first.locator("h2").inner_text()
    tab_to(page, cards(page).first.get_by_role("button", name="Dislike"))
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text(f"“{disliked}” is not shown")
    expect(cards(page).first.get_by_role("button", name="Dislike")).to_be_focused()
    tab_to(page, page.locator("#erase"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Keep")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#said")).to_contain_text("is forgotten")
    expect(page.locator("#taste")).to_contain_text("Nothing was said yet")
    expect(page.locator("#origin")).to_contain_text("nothing is known of this person")


def test_hostile_title_is_text(visit: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "title", lambda self, item: HOSTILE.format(item=item))
    page = visit(f"/#user={PERSON + 2}")
    expect(cards(page)).to_have_count(12)
    assert all(title.startswith("<img") for title in titles(page))
    cards(page).first.locator("[data-act=like]").click()
    expect(page.locator("#said")).to_contain_text("You like “<img")
    expect(page.locator("#taste .chip")).to_contain_text("<script>")
    page.get_by_role("button", name="Someone new").click()
    expect(page.locator("#newcomer [data-choice]").first).to_contain_text("<img")
    assert page.locator("main img, main script").count() == 0
    assert page.title() == f"Person {PERSON + 2} · Feedline"
    expect(page.locator("html")).to_have_js_property("scrollWidth", 1280)


def test_experts_that_spoke_are_bars(visit: Open) -> None:
    page = visit("/")
    page.evaluate(
        """async () => {
          const { card } = await import("/web/card.js");
          const shares = { "1": 0.62, dot_product: 0.3, "3": 0.08 };
          const experts = { like: shares, share: { "2": 1 } };
          const reason = { because: [], experts, liked_category: "Comedy", source: "taste" };
          const item = { item_id: 7, title: "T", categories: ["Comedy"], score: 1, retrieval_score: 1, probability: 0.5,
                         propensity: null, reason };
          const taste = { liked_items: [], disliked_items: [], liked_categories: ["Comedy"], disliked_categories: [] };
          const marks = { fresh: new Set(), risen: new Map([["7", 3]]) };
          document.getElementById("feed").append(card(item, 1, { taste, past: new Map() }, marks, "like", {}));
        }"""
    )
    expect(cards(page).locator(".reason")).to_have_text("You like Comedy.")
    expect(cards(page).locator(".mark")).to_have_text("Up 3")
    assert cards(page).locator(".experts:visible .bar").all_inner_texts() == [
        "expert 1\n62%",
        "dot product\n30%",
        "expert 3\n8%",
    ]
    wide, narrow = (
        cards(page).locator(".experts:visible .fill").nth(place).evaluate("node => node.getBoundingClientRect().width")
        for place in (0, 1)
    )
    assert wide / narrow == pytest.approx(0.62 / 0.3, rel=0.01)


def test_a_key_is_asked_for_until_it_is_right(
    visit: Open, variants: Variants, store: MemoryStore, tmp_path: Path
) -> None:
    secret = keys.add(tmp_path / "keys.json", "app", ["read"])
    config = Config.model_validate({"keys": "keys.json", "lane": PATIENT, "log": {"path": "requests.jsonl"}})
    service = Service(variants, store, config, tmp_path)
    with listening(service) as address:
        page = visit(f"/#user={PERSON}", at=address, allowed="40[13]")
        field = page.get_by_label("Key of the service")
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("does not know this key")
        field.fill(secret)
        page.keyboard.press("Enter")
        expect(cards(page)).to_have_count(12)
        cards(page).first.locator("[data-act=like]").click()
        expect(page.get_by_role("alert")).to_contain_text("This key may not do that")
        assert page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 1]
    service.close()


def test_a_service_that_is_gone_is_told_in_a_sentence(visit: Open) -> None:
    page = visit(f"/#user={PERSON}", allowed="ERR_INTERNET_DISCONNECTED")
    expect(cards(page)).to_have_count(12)
    page.context.set_offline(True)
    page.get_by_role("button", name="Refresh").click()
    expect(page.get_by_role("alert")).to_have_text(
        "The service cannot be reached. See whether it runs, then try again."
    )
    page.context.set_offline(False)
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator("#said")).to_contain_text("Asked again.")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_operations_show_what_is_asked(visit: Open, address: str) -> None:
    page = visit("/ops", width=390)
    tiles = page.locator("#tiles")
    expect(page.locator("#state")).to_contain_text("1 replica, the store answers. Served: control")
    for _ in range(30):
        asked(address, PERSON)
    expect(tiles).to_contain_text(re.compile(r"Feed, p99\d"))
    expect(page.locator("#stages tbody tr")).not_to_have_count(0)
    expect(page.locator("#variants")).to_contain_text("control")
    drawn = page.locator(".plot path[d*=L]")
    expect(drawn).not_to_have_count(0)
    expect(page.get_by_role("img", name=re.compile(r"Latency of feeds: p50 \d"))).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Pause")).to_have_attribute("aria-pressed", "true")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"


def test_figures_are_those_of_the_time_between_scrapes(visit: Open) -> None:
    found = visit("/docs").evaluate(
        r"""async () => {
          const { parse, quantile, Stretch } = await import("/web/metrics.js");
          const gauges = 'g{m="a"} 1\ng{m="a",r="2"} 3\n';
          const before = parse('# HELP a b\nn_total{r="1",k="x\\"y,z"} 5\nn_total{r="2",k="q"} 7\n');
          const after = parse(
            'n_total{r="1",k="x\\"y,z"} 9\nn_total{r="2",k="q"} 3\nn_total{r="3",k="q"} 1e1\n' + gauges,
          );
          const stretch = new Stretch({ time: 0, families: before }, { time: 2000, families: after });
          const ends = [[1, 10], [2, 30], [4, 40], [Infinity, 40]];
          return [Object.fromEntries(stretch.rates("n_total", "k")), Object.fromEntries(stretch.means("g", "m")),
                  [0.25, 0.5, 0.75, 1].map((share) => quantile(ends, share)), quantile([[1, 0], [Infinity, 2]], 0.5)];
        }"""
    )
    # A counter that has become smaller began anew; a series that is new began at nothing.
    assert found == [{'x"y,z': 2, "q": 6.5}, {"a": 2}, [1, 1.5, 2, 4], 1]


def test_the_api_page_describes_every_path_and_asks(visit: Open, address: str) -> None:
    page = visit("/docs")
    paths = httpx.get(f"{address}/openapi.json").json()["paths"]
    expect(page.locator(".operation")).to_have_count(sum(len(methods) for methods in paths.values()))
    page.locator(".operation summary", has_text="POST/v1/recommend").click()
    opened = page.locator(".operation[open]")
    expect(opened).to_contain_text("length of the feed")
    opened.get_by_role("textbox").fill('{"user_id": 1, "k": 2}')
    opened.get_by_role("button", name="Send").click()
    expect(opened.locator(".result")).to_contain_text('"source": "model"')


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_scrolls_sideways(visit: Open, width: int) -> None:
    for path in (f"/#user={PERSON + 3}", "/ops", "/docs"):
        page = visit(path, width=width, color_scheme="dark" if width == 390 else "light")
        expect(page.locator(".card, .plot, .operation").first).to_be_visible()
        for more in page.locator("details:not(.menu)").all()[:3]:
            more.evaluate("node => { node.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{path} scrolls sideways"


def test_files_are_cached_by_tag_and_run_no_other_script(address: str) -> None:
    types = {"/": "text/html", "/ops": "text/html", "/docs": "text/html", "/web/feed.js": "text/javascript"}
    for path, kind in (types | {"/web/base.css": "text/css", "/web/mark.svg": "image/svg+xml"}).items():
        first = httpx.get(f"{address}{path}")
        assert first.headers["content-type"].startswith(kind)
        assert "script-src 'self'" in first.headers["content-security-policy"]
        assert "unsafe" not in first.headers["content-security-policy"]
        again = httpx.get(f"{address}{path}", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert "://" not in first.text.replace("http://www.w3.org/2000/svg", ""), "nothing comes from elsewhere"
    for path in ("/web/nothing.js", "/web/..%2Fapi.py", "/web/index.html"):
        assert httpx.get(f"{address}{path}").status_code == 404
