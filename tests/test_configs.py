"""Every shipped config loads, and what is wrong with a config is said in one line."""

from pathlib import Path

import pytest

from features.errors import InputError
from recsys import config as configs
from recsys import plan
from recsys.config_file import validate
from recsys.replay import dispatch
from serving.app import Config as ServeConfig

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "configs").rglob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_config_loads(path: Path) -> None:
    if plan.is_cluster(path, []):
        assert plan.load(path, []).parameters > 0
        return
    if dispatch.is_replay(path, []):
        assert dispatch.load(path, []).directory.name.startswith("replay-")
        return
    loaded = configs.load(path, [])
    validate(ServeConfig, loaded.serve, str(path), "serve.")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--retriever.train.epoch", "3"], r"unknown key retriever\.train\.epoch; did you mean 'epochs'\?"),
        (["--retriever.model.dims", "3"], r"unknown key retriever\.model\.dims; did you mean 'dim'\?"),
        (["--dataset.releaze", "1m"], r"unknown key dataset\.releaze; did you mean 'release'\?"),
        (["--dataset.kind", "netflix"], r"dataset\.kind = 'netflix' is not known; use one of: files, movielens"),
        (["--retriever.kind", "dlrm"], r"retriever\.kind = 'dlrm' is a ranker; choose a retriever"),
        (["--retriever.train.epochs", "0"], r"retriever\.train\.epochs = 0: input should be greater than 0"),
        (["--prepare.test_share=2"], r"prepare\.test_share = 2"),
        (["--retriever.model.dim", "63"], r"retriever\.model: dim = 63 is not a multiple of heads = 2"),
        (["--retriever.model.max_history", "20"], r"retriever\.model\.max_history = 20 is less than"),
        (["--retriever.model.max_history", "abc"], r"retriever\.model\.max_history = 'abc'"),
        (["--prepare.retain", "5"], r"prepare: retain = 5 is less than max_history = 50"),
        (["--baselines.oracle.k", "5"], r"unknown key baselines\.oracle; known here: item_knn, popularity"),
        (["--sharding.tables.item.frm", "x"], r"unknown key sharding\.tables\.item\.frm; did you mean 'form'\?"),
        (["--sharding.tables.itm", "row_wise"], r"sharding\.tables\.itm names no table; known: "),
        (["--recommend.blend.weights.clik", "1"], r"recommend\.blend\.weights\.clik = 1\.0 names no task; known: like"),
        (["--recommend.blend.cap.most", "3"], r"unknown key recommend\.blend\.cap; did you mean 'caps'\?"),
        (["--recommend.blend.seen_again_after", "7x"], r"blend\.seen_again_after = '7x': '7x' is no duration"),
        (["--retriever.train.epochs"], r"option --retriever\.train\.epochs has no value"),
        (["extra", "words"], r"unexpected argument 'extra'"),
        (["--epochs", "3"], r"unknown option --epochs"),
    ],
)
def test_a_mistake_is_named_with_its_fix(overrides: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        configs.load(ROOT / "configs" / "quickstart" / "ml-100k.toml", overrides)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml: no such config file"):
        configs.load(tmp_path / "none.toml", [])
    broken = tmp_path / "broken.toml"
    broken.write_text("[run\n")
    with pytest.raises(InputError, match=r"broken\.toml: not valid TOML"):
        configs.load(broken, [])
