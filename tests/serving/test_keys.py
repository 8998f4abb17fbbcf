"""Keys at rest and in use; how often a key may ask."""

import json
import stat
import time
from pathlib import Path

import pytest

from features.errors import InputError
from serving import auth, keys
from serving.auth import Keys, require_keys
from serving.limits import Config, Rates


def test_a_key_is_shown_once_and_only_its_hash_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    keys.main([str(file), "add", "app", "--scopes", "read,write", "--rate", "5"])
    shown = capsys.readouterr().out.strip()
    assert len(shown) > 40
    assert shown not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = Keys(file).find(shown)
    assert found is not None
    assert (found.name, found.scopes, found.rate) == ("app", {"read", "write"}, 5.0)
    assert Keys(file).find(shown + "x") is None
    assert Keys(file).find("") is None
    keys.main([str(file), "list"])
    assert capsys.readouterr().out == "app  read,write  5 requests a second\n"


def test_a_key_that_is_taken_away_is_refused_by_a_server_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LOOK_SECONDS", 0.0)
    file = tmp_path / "keys.json"
    first, second = keys.add(file, "first", ["read"]), keys.add(file, "second", ["read"])
    held = Keys(file)
    assert held.find(first)
    keys.remove(file, "first")
    assert held.find(first) is None
    assert held.find(second)
    file.write_text("half a fi")
    assert held.find(second), "a file that cannot be read takes nobody's key away"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["add", "app"], "there is a key named 'app'"),
        (["add", "other", "--scopes", "read,all"], "--scopes = 'all' is not known; use one of: admin, read, write"),
        (["add", "two words"], "a name has up to 64 letters"),
        (["add", "other", "--rate", "-1"], "a rate is above 0"),
        (["remove", "nobody"], "name = 'nobody' is not known; use one of: app"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    file = tmp_path / "keys.json"
    keys.add(file, "app", ["read"])
    before = file.read_text()
    with pytest.raises(SystemExit, match="2"):
        keys.main([str(file), *words])
    assert says in capsys.readouterr().err
    assert file.read_text() == before


def test_a_file_that_says_what_no_key_says_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [{"name": "app", "sha256": "0" * 64, "scopes": ["reed"]}]}))
    with pytest.raises(InputError, match=r"keys\.json: keys\.0\.scopes\.0: "):
        Keys(file)
    with pytest.raises(InputError, match=r"serve\.keys = .* cannot be read \(No such file"):
        Keys(tmp_path / "none.json")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
def test_a_loopback_needs_no_keys(host: str) -> None:
    require_keys(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_an_address_that_others_reach_does(host: str) -> None:
    require_keys(host, "keys.json")
    with pytest.raises(InputError, match="open to others"):
        require_keys(host, None)


def test_a_key_may_ask_as_often_as_its_rate_and_a_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    rates = Rates(Config(rate=10, burst_s=2))
    assert [rates.take("app", None) for _ in range(20)] == [0.0] * 20
    assert rates.take("app", None) == pytest.approx(0.1)
    assert rates.take("other", None) == 0.0
    assert rates.take("slow", 0.5) == 0.0
    assert rates.take("slow", 0.5) == pytest.approx(2.0)
    now += 0.35
    assert [rates.take("app", None) > 0 for _ in range(4)] == [False, False, False, True]
    assert Rates(Config()).take("anybody", None) == 0.0
