"""The command line.

    recsys run configs/quickstart/ml-100k.toml          all stages, skipping what is up to date
    recsys train CONFIG --retriever.train.epochs 3      one stage, a field overridden
    recsys serve CONFIG                                 the server, until Ctrl-C
    recsys deploy CONFIG                                another bundle into a running server
    recsys plan CONFIG --world-size 64                  where the tables would go, and why
    recsys replay configs/replay/ml-1m.toml             policies side by side on a log; see recsys.replay.dispatch

Progress goes to stderr, results to stdout; `--json` prints them as one object. Bad input: one line, exit status 2.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import InputError, StoreError
from recsys.console import quiet

if TYPE_CHECKING:
    from features.pipeline import Engine
    from recsys.config import RunConfig
    from recsys.stages import Run
    from serving.config import Config as ServeConfig

VERBS = {
    "run": "prepare, train, export, evaluate, probe if the config asks for it, replay; skips what is up to date",
    "prepare": "log → examples",
    "train": "examples → checkpoints",
    "export": "checkpoints → bundle",
    "evaluate": "bundle → quality",
    "replay": "bundles and a log → quality in time, latency; of a run, or as the config of a replay says",
    "card": "what the system is, for people who are no engineers: from what the stages have left",
    "explain": "why somebody's feed is what it is: experts and features behind each item",
    "plan": "where the tables would go on so many ranks, and why; or what cluster a model needs",
    "probe": "start the server, ask it for a feed, compare with the recommender's own",
    "serve": "serve what is deployed over HTTP until interrupted",
    "deploy": "verify a bundle and put it into service, for everybody, for a share, or as a shadow",
    "rollback": "put into service what was deployed before",
    "manifests": "write a config for `serve deploy` and a manifest for KubeRay",
}


def main(arguments: list[str] | None = None) -> None:
    """Parse, do, and turn an error that is meant for people into one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="recsys",
        description="Train and serve recommenders.",
        epilog="Any field of the config can be overridden: --section.field VALUE. See docs/configuration.md.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, text in VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("config", type=Path, metavar="CONFIG", help="TOML file of the run")
        verb.add_argument("--json", action="store_true", help="print results as one JSON object")
        if name == "train":
            verb.add_argument(
                "--fresh", action="store_true", help="begin at the beginning, even where a training can be taken up"
            )
        if name == "explain":
            verb.add_argument("--user", required=True, help="whose feed")
            verb.add_argument("--k", type=int, default=5, help="items of the feed")
            verb.add_argument("--at", type=int, metavar="MS", help="Unix time, ms; the end of the log if not given")
        if name == "deploy":
            verb.add_argument("--bundle", type=Path, metavar="DIR", help="another bundle than the run's")
            verb.add_argument("--variant", metavar="NAME", help="for a share of the people only; needs --share")
            verb.add_argument("--share", type=float, metavar="0.1", help="which share; 0 ends the variant")
            verb.add_argument("--shadow", action="store_true", help="asked too, and shown to nobody")
        if name == "manifests":
            verb.add_argument("--write", type=Path, required=True, metavar="DIR", help="directory for the two files")
        if name == "plan":
            verb.add_argument("--world-size", type=int, metavar="N", help="ranks; as configured if not given")
            verb.add_argument("--local-world-size", type=int, metavar="M", help="ranks of a host")
            verb.add_argument("--device", choices=("cpu", "cuda"), help="of a run's ranks; this machine's if not given")
        if name == "replay":
            verb.add_argument("--engine", choices=("local", "ray"), help="what starts the workers: --replay.engine")
            verb.add_argument("--workers", metavar="N", help="processes that ask for feeds: --replay.workers")
            verb.add_argument("--through", choices=("process", "http"), help="who is asked: --replay.through")
        if name in ("run", "prepare", "train"):
            verb.add_argument(
                "--engine",
                choices=("local", "ray"),
                default="local",
                help="what does the work: processes of this machine, or Ray Data and Ray Train; the result is the same",
            )
        if name in ("run", "prepare"):
            verb.add_argument(
                "--rebuild", action="store_true", help="replace examples that were made with another schema"
            )
    known, overrides = parser.parse_known_args(arguments)
    quiet()
    # Rows of a table are scattered over memory: large pages spare most of the searching for them. Read by torch.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        _do(known, overrides)
    except (InputError, StoreError) as error:
        print(f"recsys: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _do(known: argparse.Namespace, overrides: list[str]) -> None:
    verb, path, as_json = known.verb, known.config, known.json
    if verb == "run" and _nothing_to_do(path, overrides, as_json=as_json):
        return
    if verb == "plan":
        _plan(known, overrides)
        return
    if verb == "replay":
        named = [(f"--replay.{name}", getattr(known, name)) for name in ("engine", "workers", "through")]
        overrides = [*overrides, *(word for name, value in named if value is not None for word in (name, value))]
        if _replayed(path, overrides, as_json=as_json):
            return
    # torch and torchrec take seconds to import, which a run that is up to date need not wait for.
    from recsys import config as configs
    from serving import app

    if verb != "train" and "TORCHELASTIC_RUN_ID" in os.environ:
        raise InputError(f"torchrun starts processes that train; give it `recsys train`, not `recsys {verb}`")
    config = configs.load(path, overrides)
    section = app.check(config, path)
    if verb == "serve":
        app.serve(config, path)
        return
    if verb in ("deploy", "rollback", "manifests"):
        _serving(known, config, section)
        return
    from recsys.stages import Run

    run = Run(config, path)
    if verb == "card":
        _card(run, as_json=as_json)
        return
    prepares = verb in ("run", "prepare")
    if prepares and not known.rebuild:
        run.require_same_schema()
    if verb == "train":
        _train(run, known.engine, fresh=known.fresh)
    else:
        run.write_config()
    if prepares:
        run.prepare(known.engine)
    if verb == "run":
        _run(run, known.engine, overrides, as_json=as_json)
        return
    if verb == "explain":
        _explain(run, known)
        return
    if verb == "probe":
        _probe(run)
    elif verb not in ("prepare", "train"):
        stages: dict[str, Callable[[], None]] = {name: getattr(run, name) for name in ("export", "evaluate", "replay")}
        stages[verb]()
    if as_json:
        _print_json(run.results())


def _train(run: "Run", engine: "Engine", *, fresh: bool) -> None:
    """Train, alone, with processes of this machine, or as one of torchrun's."""
    from recsys import distributed

    with distributed.joined(run.config.launch):
        if distributed.is_first():
            run.write_config()
        run.train(engine, fresh=fresh)


def _run(run: "Run", engine: "Engine", overrides: list[str], *, as_json: bool) -> None:
    from recsys import report, summary
    from recsys.card import page as card

    run.train(engine)
    run.export()
    run.evaluate()
    if run.config.run.probe:
        _probe(run)
    run.replay()
    results = run.results()
    page = report.write(run.directory, results)
    card.write(run)
    summary.remember(run.directory, run.path, overrides, run.finished(), results)
    _show(results, page, run.path, as_json=as_json)


def _plan(known: argparse.Namespace, overrides: list[str]) -> None:
    from recsys import config as configs
    from recsys import plan

    path, world, local = known.config, known.world_size, known.local_world_size
    if plan.is_cluster(path, overrides):
        found, show = plan.plan_cluster(plan.load(path, overrides), world, local), plan.show_cluster
    else:
        found = plan.plan_run(configs.load(path, overrides), path, world, local, known.device)
        show = plan.show_run
    if known.json:
        _print_json(found)
    else:
        show(found)


def _replayed(path: Path, overrides: list[str], *, as_json: bool) -> bool:
    """Whether the config was that of a replay, not of a run; then what it asks for has been done and shown."""
    from recsys.replay import dispatch

    if not dispatch.is_replay(path, overrides):
        return False
    found = dispatch.run(path, overrides)
    if as_json:
        _print_json(found)
    else:
        print(found["verdict"])
        print(f"Report: {found['report']}")
    return True


def _card(run: "Run", *, as_json: bool) -> None:
    from recsys.card import page

    written, found = page.write(run)
    if as_json:
        _print_json(found)
        return
    print(f"Card: {written}")
    for one in found["missing"]:
        print(f"  missing: {one['what']}; {one['why']}: {one['command']}")


def _explain(run: "Run", known: argparse.Namespace) -> None:
    from recsys import explain

    recommender = explain.served(run.bundle(run.config.served_split), run.config.recommend)
    found = explain.explain(recommender, explain.request_of(recommender, known.user, known.k, known.at))
    if known.json:
        _print_json({"user": known.user, "feed": explain.as_json(found)})
    else:
        explain.show(f"user {known.user}", found, recommender.encoder.schema)


def _nothing_to_do(path: Path, overrides: list[str], *, as_json: bool) -> bool:
    """Whether the run is up to date; then it has been said and shown."""
    from recsys import summary

    results = summary.recall(path, overrides)
    if results is None:
        return False
    print(f"{results['directory']}: up to date, nothing to do", file=sys.stderr)
    _show(results, summary.page(Path(results["directory"])), path, as_json=as_json)
    return True


def _show(results: dict[str, Any], page: Path, path: Path, *, as_json: bool) -> None:
    from recsys import summary

    if as_json:
        _print_json(results)
        return
    summary.show(results, page)
    print(f"To keep the server up: make serve CONFIG={path}")


def _print_json(results: dict[str, Any]) -> None:
    """One object on stdout; a number that is none, such as the AUC of a single class, is null."""
    text = json.dumps(results)
    print(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))


def _serving(known: argparse.Namespace, config: "RunConfig", section: "ServeConfig") -> None:
    """What is said to servers that run, or are to run elsewhere."""
    from serving import deploy, manifests

    if known.verb == "manifests":
        found = manifests.write(config, section, known.write)
    elif known.verb == "rollback":
        found = deploy.rollback(config, section)
    else:
        found = deploy.deploy(
            config, section, known.config, known.bundle, known.variant, known.share, shadow=known.shadow
        )
    if known.json:
        _print_json(found)
    elif known.verb == "manifests":
        print("\n".join(found["files"]))
    else:
        deploy.show(found)


def _probe(run: "Run") -> None:
    from serving import probe

    run.probe(lambda resolved, bundle: probe.probe(run.config, resolved, bundle))


if __name__ == "__main__":
    main()
