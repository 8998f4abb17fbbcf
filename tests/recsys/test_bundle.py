"""Export: the same bytes whatever the plan, in bounded memory; what is loaded lies on disk and answers the same."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from embeddings import optim, sharding
from embeddings.init import initialise_tables
from embeddings.quantized import Form, dequantize, quantize, table_names
from features import manifest, pipeline
from features.encoder import load_schema
from features.errors import InputError
from features.online import MemoryStore
from recsys import bundle as bundles
from recsys import checkpoint, config, distributed, export, inference
from recsys.roles import ModelConfig, RankerConfig, RetrieverConfig, build_task, open_catalogue
from recsys.stored import StoredModel
from tests.batches import histories, questions, tensors
from tests.conftest import FinishedRun

RETRIEVER = RetrieverConfig.model_validate(
    {
        "model": {"dim": 16, "blocks": 1, "max_history": 12},
        "items": {"content": ["categories"], "graph": {"shrinkage": 5.0}, "neighbours": 3},
    }
)
RANKER = RankerConfig()
ROLES: dict[str, ModelConfig] = {"retriever": RETRIEVER, "ranker": RANKER}
CUT = torch.arange(101.0 * 8).view(101, 8)
"""A table that is saved cut by rows and by columns."""


def save_all(examples: Path, form: sharding.Form, out: Path) -> None:
    """The same weights as checkpoints of both models, under one plan."""
    schema = load_schema(examples)
    for role, section in ROLES.items():
        torch.manual_seed(0)
        task = build_task(section, schema, torch.device("meta"), {})
        plan = sharding.Config(forms=(form,))
        optim.fuse(sharding.fused_parameters(task, plan), section.optimizer)
        model = sharding.shard(task, plan, torch.device("cpu"), 64)
        initialise_tables(model, seed=1)
        save({"model": model.state_dict()}, checkpoint_id=out / role / "best" / checkpoint.STATE)
        if distributed.is_first():
            manifest.write_json(out / role / manifest.MANIFEST, {"schema": schema.fingerprint, "best": "best"})
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    cut = {f"dim{dim}": distribute_tensor(CUT, mesh, [Shard(dim)]) for dim in (0, 1)}
    save({"model": cut}, checkpoint_id=out / "cut")


@pytest.fixture(scope="module")
def checkpoints(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of two ranks and of one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    distributed.launch(save_all, distributed.Config(nproc=1), examples, "table_wise", folder / "one")
    distributed.launch(save_all, distributed.Config(nproc=2), examples, "row_wise", folder / "two")
    return {"one": folder / "one", "two": folder / "two"}


def exported(examples: Path, checkpoints: Path, out: Path, **settings: Any) -> dict[str, Any]:
    retriever, ranker = (RETRIEVER, checkpoints / "retriever"), (RANKER, checkpoints / "ranker")
    models = {"retriever": RETRIEVER.model_dump(mode="json"), "ranker": RANKER.model_dump(mode="json")}
    # As the fixture's world was prepared.
    defaults = {
        "prepare": pipeline.Config(max_history=12, history_actions=("click", "like", "share")),
        "recommend": inference.Config(),
    }
    sections = models | {"tables": {}} | {name: section.model_dump(mode="json") for name, section in defaults.items()}
    wanted = export.Config(**settings)
    return export.export(examples, examples, retriever, ranker, {}, {}, wanted, sections, out, {"has_clock": True})


def tables(bundle: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob(bundles.ROWS)}


def trained(section: ModelConfig, directory: Path, examples: Path) -> torch.nn.Module:
    """The checkpoint's model, all of it in memory, loaded by torch."""
    task = build_task(section, load_schema(examples), torch.device("cpu"), {})
    checkpoint.load_model(directory, task)
    return task.model.eval()


@pytest.mark.parametrize("form", ["fp32", "int8", "int4"])
def test_bytes_do_not_depend_on_ranks_plan_or_blocks(
    checkpoints: dict[str, Path], examples: Path, tmp_path: Path, form: Form, monkeypatch: pytest.MonkeyPatch
):
    exported(examples, checkpoints["one"], tmp_path / "one", tables=form)
    monkeypatch.setattr(StoredModel.blocks, "__defaults__", (7,))
    found = exported(examples, checkpoints["two"], tmp_path / "two", tables=form)
    assert tables(tmp_path / "one") == tables(tmp_path / "two")

    for role, section in ROLES.items():
        model = trained(section, checkpoints["one"] / role, examples)
        for name in table_names(model):
            rows = np.load(tmp_path / "two" / role / name / bundles.ROWS)
            assert np.array_equal(rows, quantize(model.get_parameter(name).detach(), form).numpy())
            facts = found["tables"][role][name]
            assert facts["bytes"] == rows.nbytes
            assert (facts["largest_error"] > 0) == (form != "fp32")
    assert found["bytes"] == sum(table["bytes"] for named in found["tables"].values() for table in named.values())
    # Rows of 16 weights: 64 bytes, 16 and 8 for scale and bias, 8 and 4.
    assert found["ratio"] == pytest.approx({"fp32": 1, "int8": 64 / 24, "int4": 64 / 12}[form])
    assert (manifest.read(tmp_path / "two") or {})["export"] == found
    assert found["quality"].keys() == (set() if form == "fp32" else set(ROLES))


def test_what_is_known_of_items_is_that_of_training(checkpoints: dict[str, Path], examples: Path, tmp_path: Path):
    exported(examples, checkpoints["one"], tmp_path / "bundle")
    found, expected = bundles.load(tmp_path / "bundle").catalogue, open_catalogue(RETRIEVER, examples)
    assert found.shape == expected.shape
    asked = np.arange(1, found.items + 1, 7)
    past = histories(asked.tolist(), asked[:3].tolist())
    ours, theirs = (tensors(questions(known, past)) for known in (found, expected))
    assert len(ours["link_values"]) > len(asked)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_chunks_of_rows_and_of_columns_become_blocks(checkpoints: dict[str, Path]):
    for path in checkpoints.values():
        stored = StoredModel(path / "cut")
        for name in ("dim0", "dim1"):
            assert stored.shape(name) == CUT.shape
            blocks = list(stored.blocks(name, 10))
            assert [len(block) for block in blocks] == [10] * 10 + [1]
            assert torch.equal(torch.cat(blocks), CUT)


linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")


@linux
def test_memory_is_that_of_a_block(tmp_path: Path):
    def memory(line: str) -> float:
        """10⁶ bytes."""
        status = dict(row.split(":") for row in Path("/proc/self/status").read_text().splitlines())
        return int(status[line].split()[0]) * 1024 / 1e6

    save({"model": {"weight": torch.ones(1_000_000, 64)}}, checkpoint_id=tmp_path / "saved", no_dist=True)
    stored = StoredModel(tmp_path / "saved")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again from here
    before = memory("VmRSS")
    written = export.write_table(stored, "weight", "int8", tmp_path / "weight")
    assert written.bytes == 1_000_000 * 72
    # The table has 256 MB. A block has 4, and is there as bytes, weights, packed rows and errors at once.
    assert memory("VmHWM") - before < 96


@linux
def test_tables_are_loaded_as_private_views_of_their_files(
    checkpoints: dict[str, Path], examples: Path, tmp_path: Path
):
    exported(examples, checkpoints["one"], tmp_path / "bundle", tables="int8", overrides={"item": "fp32"})
    loaded = bundles.load(tmp_path / "bundle")
    maps = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]

    def file_of(tensor: Tensor) -> str:
        for span, _, _, _, _, *path in maps:
            low, high = (int(edge, 16) for edge in span.split("-"))
            if low <= tensor.data_ptr() < high:
                return " ".join(path)
        return ""

    for role in ROLES:
        model = getattr(loaded, role)
        rows = {name: buffer for name, buffer in model.named_buffers() if name.endswith(".rows")}
        assert rows
        for name, buffer in rows.items():
            assert buffer.dtype == (torch.float32 if ".item." in name else torch.uint8)
            assert file_of(buffer).endswith(bundles.ROWS)
        assert all(file_of(weight).endswith(bundles.DENSE) for weight in model.parameters())


def recommender(bundle: bundles.Bundle) -> inference.Recommender:
    made = inference.Recommender(bundle, MemoryStore(retain=bundle.config["prepare"]["retain"]), inference.Config())
    made.seed()
    return made


def feeds(bundle: bundles.Bundle) -> list[dict[Any, tuple[float, float]]]:
    """Of people with history: item → (score, probability), in the order of the feed."""
    users = bundle.users["user_id"].to_list()[1:60]
    made = recommender(bundle)
    requests = [inference.Request(user_id=user, k=20, timestamp=2_000_000_000_000) for user in users]
    return [
        {item.item_id: (item.score, item.probability or 0.0) for item in response.items}
        for response in made.recommend_many(requests)
    ]


@pytest.fixture(scope="module")
def trained_bundles(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Form → a bundle of the whole run's models."""
    run, folder = finished_run.directory, tmp_path_factory.mktemp("bundles")
    loaded = config.load(run / "config.toml", [])
    sections = loaded.model_dump(mode="json")
    retriever = (loaded.retriever, run / "checkpoints" / "time" / "retriever")
    ranker = (loaded.ranker, run / "checkpoints" / "time" / "ranker")
    split = run / "examples" / "time"
    for form in ("fp32", "int8", "int4"):
        wanted = export.Config(tables=form)
        export.export(split, split, retriever, ranker, {}, {}, wanted, sections, folder / form, {"has_clock": True})
    return {form: folder / form for form in ("fp32", "int8", "int4")}


def test_fp32_feeds_are_those_of_the_checkpoint(finished_run: FinishedRun, trained_bundles: dict[str, Path]):
    run = finished_run.directory
    served, own = bundles.load(run / "bundle" / "time"), bundles.load(trained_bundles["fp32"])
    sections = {"retriever": RetrieverConfig, "ranker": RankerConfig}
    models = {
        role: trained(
            kind.model_validate(own.config[role]), run / "checkpoints" / "time" / role, run / "examples" / "time"
        )
        for role, kind in sections.items()
    }
    assert feeds(own) == feeds(served) == feeds(replace(own, **models))
    assert finished_run.results["export"]["time"]["ratio"] == 1
    assert finished_run.results["export"]["time"]["quality"] == {}


def test_quantised_feeds_are_nearly_those_of_fp32(trained_bundles: dict[str, Path]):
    """Of int8: 19 of 20 items, the first as good as the first, probabilities within 0.01; of int4: 9 of 10, 0.05."""
    exact = feeds(bundles.load(trained_bundles["fp32"]))
    for form, shared_items, probability in (("int8", 0.95, 0.01), ("int4", 0.9, 0.05)):
        found = feeds(bundles.load(trained_bundles[form]))
        both = [(feed, near, feed.keys() & near.keys()) for feed, near in zip(exact, found, strict=True)]
        assert np.mean([len(shared) / len(feed) for feed, _, shared in both]) >= shared_items
        differences = [abs(feed[item][1] - near[item][1]) for feed, near, shared in both for item in shared]
        assert 0 < max(differences) < probability
        if form == "int8":
            # Scores of a feed are 2 apart, of items that follow one another 0.1.
            lost = [
                feed[next(iter(feed))][0] - feed[next(iter(near))][0] for feed, near in zip(exact, found, strict=True)
            ]
            assert max(lost) < 0.02


def test_lost_quality_is_measured_as_training_measures(finished_run: FinishedRun, trained_bundles: dict[str, Path]):
    asked = pl.read_parquet(finished_run.directory / "examples" / "time" / "sequences" / "valid.parquet").height
    for form, lost in (("int8", 0.002), ("int4", 0.02)):
        found = (manifest.read(trained_bundles[form]) or {})["export"]
        for role in ROLES:
            trained = finished_run.directory / "checkpoints" / "time" / role
            # Of what was trained anew on the validation part too, the training before is what can be judged on it.
            in_training = (manifest.read(checkpoint.choice(trained)) or manifest.read(trained) or {})["valid"]
            assert in_training
            quality = found["quality"][role]
            for name, value in in_training.items():
                assert math.isclose(quality["fp32"][name], value, abs_tol=1e-5), (role, name)
                # A recall is a count of questions, of which one may be on either side.
                least = 1 / asked + 1e-9 if name.startswith("recall") else 0.0
                assert abs(quality["stored"][name] - value) < max(lost, least), (form, role, name)
            if role == "ranker":  # whose metrics are no counts
                assert quality["stored"] != quality["fp32"]
        assert 0 < found["relative_error"] < (0.01 if form == "int8" else 0.15)
        assert found["ratio"] > (2.5 if form == "int8" else 5)


def test_what_does_not_fit_is_refused(checkpoints: dict[str, Path], examples: Path, tmp_path: Path):
    with pytest.raises(InputError, match="retriever: no finished checkpoint"):
        exported(examples, tmp_path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(InputError, match=r"export\.overrides\.items names no table"):
        config.load(Path("configs/synthetic/small.toml"), ["--export.overrides.items", "int8"])


def test_rows_can_be_unpacked_from_the_file_alone(checkpoints: dict[str, Path], examples: Path, tmp_path: Path):
    """A table's folder is enough to read it, without the model."""
    exported(examples, checkpoints["one"], tmp_path / "bundle", tables="int8")
    folder = next(path.parent for path in (tmp_path / "bundle" / "retriever").rglob(bundles.ROWS))
    facts = manifest.read_json(folder / bundles.TABLE)
    rows = dequantize(torch.from_numpy(np.load(folder / bundles.ROWS)), facts["form"])
    assert rows.shape == (facts["rows"], facts["dim"])
