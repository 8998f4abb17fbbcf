"""Putting a bundle into service beside those that are served, and going back.

    recsys deploy CONFIG                                        everybody gets the run's bundle
    recsys deploy CONFIG --bundle DIR --variant B --share 0.1   a tenth of the people get another one
    recsys deploy CONFIG --variant B --share 0                  the experiment is over
    recsys deploy CONFIG --bundle DIR --shadow                  asked too, shown to nobody
    recsys rollback CONFIG                                      what was deployed before

Nothing is served before it is verified: see `place`. Servers that run find it by themselves: see `serving.variants`.
"""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from features import manifest
from features.errors import InputError
from recsys import bundle as bundles
from recsys import inference, integrity, smoke
from recsys.config import RunConfig
from recsys.summary import versions
from serving import rollout, verified
from serving.config import Config
from serving.rollout import CONTROL, Deployment, Part, Rollout

SHADOW = "shadow"


def deploy(
    config: RunConfig,
    section: Config,
    path: Path,
    bundle: Path | None = None,
    variant: str | None = None,
    share: float | None = None,
    *,
    shadow: bool = False,
) -> dict[str, Any]:
    """Verify a bundle and ask for it to be served.

    Args:
        config: the run.
        section: its [serve].
        path: the config's file, for messages.
        bundle: directory of a bundle, served as its own config says; if not given the run's, as the run's config says.
        variant: name in an experiment; everybody gets the bundle if not given, and all experiments end.
        share: of people who get the variant; 0 ends it.
        shadow: ask it too, and show its answers to nobody.

    Returns:
        `rollout.summary`, and `bundle`, `questions` (how many were asked), `notes`.

    Raises:
        InputError: the bundle cannot be served; says why.
    """
    if shadow and share is not None:
        raise InputError("--shadow and --share: a shadow answers nobody; take one out")
    if not shadow and (variant is None) != (share is None):
        raise InputError("--variant NAME and --share 0.1 belong together; give both, or neither for everybody")
    if variant == CONTROL:
        raise InputError(f"--variant {CONTROL}: so are those called who are in no experiment; take another name")
    folder = config.directory / section.deployments
    with rollout.changing(folder):
        before = rollout.read(folder)
        if variant is not None and share == 0:
            return rollout.summary(_end(folder, section, _required(before, folder), variant))
        source = config.directory / "bundle" / config.served_split if bundle is None else bundle
        placed, facts = place(source, folder)
        loaded = bundles.load(placed)
        if bundle is None:
            require_schema(config, path, loaded)
        recommend = config.recommend if bundle is None else inference.Config.model_validate(loaded.config["recommend"])
        retain = loaded.config["prepare"]["retain"]
        part = Part(name=variant or (SHADOW if shadow else CONTROL), bundle=placed.name, recommend=recommend)
        if part.name == CONTROL:
            wanted = Deployment(number=1, made=_now(), salt=_salt(config, before), retain=retain, control=part)
        else:
            present = _required(before, folder).current
            if retain != present.retain:
                raise InputError(
                    f"{source}: its store keeps {retain} events of a history, that of the service "
                    f"{present.retain}; set prepare.retain to the same"
                )
            if not (shadow or present.variants):
                # People are spread anew for every experiment, so that none inherits what another has done to some.
                present = present.model_copy(update={"salt": _salt(config, before)})
            wanted = present.with_shadow(part) if shadow else present.with_variant(part, share or 0.0)
        made = _ask(folder, section, before, wanted)
    return rollout.summary(made) | facts


def rollback(config: RunConfig, section: Config) -> dict[str, Any]:
    """Ask for what was deployed before the present deployment.

    Returns:
        `rollout.summary`.

    Raises:
        InputError: there is none, or its bundle is not what it was.
    """
    folder = config.directory / section.deployments
    with rollout.changing(folder):
        asked = _required(rollout.read(folder), folder)
        if not asked.earlier:
            raise InputError(f"{folder / rollout.FILE}: nothing was deployed before; deploy another bundle instead")
        previous = asked.earlier[0]
        for part in previous.parts:
            verified.require(folder / part.bundle)
        wanted = previous.model_copy(update={"number": asked.last + 1, "made": _now()})
        rollout.write(folder, Rollout(current=wanted, earlier=asked.earlier[1:], last=wanted.number))
    return rollout.summary(wanted)


def place(source: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Put a verified bundle into a folder under its fingerprint: linked, or copied from another disk.

    Every file is read through and compared with its checksum; then the bundle is loaded, and the recorded questions
    are asked. One that is there already and whole is taken as it is.

    Returns:
        Its directory; `bundle`, `questions` (how many were asked), `notes` (how this environment differs from that of
        the export).

    Raises:
        InputError: it is not what was exported, or does not answer as it did.
    """
    facts = manifest.read(source)
    if facts is None:
        raise InputError(f"{source}: no bundle here; run `recsys export` first")
    integrity.require_whole(source, facts)
    placed = folder / facts[integrity.FINGERPRINT]
    if placed.exists():
        try:
            verified.note(placed, verified.read_through(placed, facts))
        except InputError:
            if placed.resolve() == source.resolve():
                raise
            # Damaged since: the source takes its place.
            placed.rename(aside := folder / f"{placed.name}.damaged")
            shutil.rmtree(aside)
    if not placed.exists():
        aside = folder / f"{placed.name}.unfinished"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside, copy_function=_link)
        try:
            states = verified.read_through(aside, facts)
        except InputError:
            shutil.rmtree(aside)
            integrity.verify(source, facts)  # names the file where it came from
            raise
        aside.rename(placed)
        verified.note(placed, states)
    here, there = versions(), facts.get("environment", {}).get("versions", {})
    notes = [
        f"{name} {here[name]}, exported with {there[name]}"
        for name in here
        if there.get(name, here[name]) != here[name]
    ]
    return placed, {"bundle": str(placed), "questions": smoke.check(bundles.load(placed)), "notes": notes}


def show(found: dict[str, Any]) -> None:
    """What `deploy` and `rollback` return, for people."""
    for note in found.get("notes", []):
        print(f"note: {note}")
    if "questions" in found:
        print(f"verified: every checksum, {found['questions']} recorded questions")
    print(f"deployment {found['number']}:")
    for name, part in found["variants"].items():
        print(
            f"  {name:12} {part['bundle']}  {part['share']:.2%}" if part["share"] else f"  {name:12} {part['bundle']}"
        )


def require_schema(config: RunConfig, path: Path, bundle: bundles.Bundle) -> None:
    """Refuse a bundle that was made for other features than the config declares."""
    schema = bundle.encoder.schema
    fitted = {spec.name: {"rows": spec.rows, "width": spec.width} for spec in schema.features}
    declared = tuple(spec.model_copy(update=fitted.get(spec.name, {})) for spec in config.features)
    own = schema.model_copy(update={"features": declared, "label": config.label})
    own.require_equal(schema, str(path), str(bundle.directory))


def _ask(folder: Path, section: Config, before: Rollout | None, wanted: Deployment) -> Deployment:
    """Write what is wanted, remember what was, and take away bundles that nothing leads back to."""
    number = 1 if before is None else before.last + 1
    wanted = wanted.model_copy(update={"number": number, "made": _now()})
    earlier = () if before is None else (before.current, *before.earlier)[: section.keep - 1]
    made = Rollout(current=wanted, earlier=earlier, last=number)
    rollout.write(folder, made)
    rollout.sweep(folder, made)
    return wanted


def _end(folder: Path, section: Config, before: Rollout, name: str) -> Deployment:
    present = before.current
    named = [part.name for part in (*present.variants, *present.shadows)]
    if name not in named:
        raise InputError(f"--variant {name}: there is none of that name; there are: {', '.join(named) or 'none'}")
    return _ask(folder, section, before, present.without(name))


def _required(before: Rollout | None, folder: Path) -> Rollout:
    if before is None:
        raise InputError(f"{folder}: nothing is deployed yet; run `recsys deploy` without --variant and --shadow first")
    return before


def _salt(config: RunConfig, before: Rollout | None) -> str:
    return f"{config.run.name}-{1 if before is None else before.last + 1}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _link(source: str, target: str) -> None:
    """A second name of a file; a copy where the disk is another one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
