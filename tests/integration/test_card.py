"""The system card of a finished run: what it says is what the run's files say, and a browser shows all of it."""

import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from recsys import cli
from tests.conftest import FinishedRun, require_program
from tests.integration.test_report import CHROMIUM


def card_of(run: FinishedRun) -> dict:
    return json.loads((run.directory / "reports" / "card.json").read_text())


def test_it_is_made_of_what_the_run_has_left(finished_run: FinishedRun) -> None:
    card, results = card_of(finished_run), finished_run.results
    assert card["missing"] == []
    assert card["people"]["count"] == results["rows"]["users"]
    assert card["quality"]["systems"]["retriever + ranker"] == results["system"]
    assert card["quality"]["ranking"] == results["ranking"]
    assert card["groups"] == results["groups"]
    for role in ("retriever", "ranker"):
        trained = results["training"][f"{results['ranking_split']}.{role}"]
        assert card["parameters"]["roles"][role]["parameters"] == trained["parameters"]
    tables = results["export"][results["ranking_split"]]["tables"]
    assert len(card["parameters"]["tables"]) == sum(len(of) for of in tables.values())
    assert all(one["state"] == "finished" and one["crashes"] == 0 for one in card["training"]["trainings"])
    bundle = json.loads((finished_run.directory / "bundle" / results["ranking_split"] / "manifest.json").read_text())
    assert card["fingerprints"]["schema"] == bundle["schema"]
    for by, rows in card["groups"].items():
        assert sum(row["questions"] for row in rows) == results["questions"], by


def test_it_says_what_of_a_person_each_feature_touches(finished_run: FinishedRun) -> None:
    features = {one["source"]: one for one in card_of(finished_run)["features"]}
    assert features["user.index"]["personal"] == "the person's identifier"
    assert features["request.history"]["personal"] == "what the person did before"
    assert features["item.index"]["personal"] == "nothing of the person"
    assert features["user.country"]["sensitive"]
    assert not features["item.categories"]["sensitive"]


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_whole_in_a_browser(finished_run: FinishedRun, width: int) -> None:
    program = require_program("chromium", "chromium-browser", "google-chrome")
    card, errors = card_of(finished_run), list[str]()
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=program, args=CHROMIUM)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("requestfailed", lambda request: errors.append(request.url))
        page.goto(f"file://{finished_run.directory}/reports/card.html")
        text = page.locator("body").inner_text()
        for one in card["failures"]:
            assert one["sentence"] in text
        for words in ("DELETE /v1/users/{id}", "PUT /v1/users/{id}/taste", *card["fingerprints"].values()):
            assert words in text
        assert str(finished_run.directory.parent) not in text
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "scrolls sideways"
        browser.close()
    assert not errors


def test_what_has_not_been_made_is_named_with_its_command(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / finished_run.directory.name
    shutil.copytree(finished_run.directory / "examples", copy / "examples")
    options = [*finished_run.options, "--run.directory", str(tmp_path)]
    cli.main(["card", str(finished_run.config), "--json", *options])
    card = json.loads(capsys.readouterr().out)
    commands = {one["command"].split(" ")[1] for one in card["missing"]}
    assert commands >= {"train", "export", "evaluate", "replay"}
    assert "architecture" not in card
    assert card["failures"] == []
    assert card["missing"][0]["command"] in (copy / "reports" / "card.html").read_text()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["card", str(finished_run.config), *finished_run.options, "--run.directory", str(tmp_path / "none")])
    assert "there is nothing to tell of yet; run `recsys run" in capsys.readouterr().err
