"""A card as a page: one HTML file, readable without a server, and the same as JSON beside it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from features.manifest import write_json, write_text
from recsys.card.content import content
from recsys.logbook_words import told_span
from recsys.plan import size
from recsys.stages import Run

TEMPLATE = "card.html.jinja"
METRIC = "ndcg@10"
SYSTEMS = ("recall@10", "ndcg@10", "mrr", "coverage@10")


def place(directory: Path) -> Path:
    """Where the card of a run is."""
    return directory / "reports" / "card.html"


def write(run: Run) -> tuple[Path, dict[str, Any]]:
    """Write `card.html` and `card.json` from what the stages of a run have left; the page's path and the content."""
    found, out = content(run), place(run.directory)
    write_json(out.with_suffix(".json"), found)
    write_text(out, render(found))
    return out, found


def render(card: dict[str, Any]) -> str:
    """The page of a card."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda number: f"{number:,.0f}",
        "share": lambda value: "under 1%" if 0 < value < 0.01 else f"{value:.0%}",
        "day": lambda ms: f"{datetime.fromtimestamp(ms / 1000, UTC):%-d %B %Y}",
        "moment": lambda text: f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}",
        "span": told_span,
        "size": size,
        "words": lambda name: name.replace("_", " "),
    }
    return environment.get_template(TEMPLATE).render(card=card, metric=METRIC, columns=SYSTEMS, scale=_scale(card))


def _scale(card: dict[str, Any]) -> dict[str, float]:
    """Where the bars of groups begin and end, and the mean of all people."""
    ends = [row["high"] for rows in card.get("groups", {}).values() for row in rows if "high" in row]
    systems = card.get("quality", {}).get("systems")
    mean = systems["retriever + ranker"][METRIC] if systems else 0.0
    return {"end": max([*ends, mean], default=0.0) or 1.0, "mean": mean}
