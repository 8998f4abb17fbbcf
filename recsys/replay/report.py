"""The page of a replay: one HTML file with a verdict, tables and plots drawn as SVG inside of it, for no server."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from features.manifest import write_text

TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column names the row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[tuple[int, int]] = frozenset()
    """Cells (row, column) that stand out, such as the best of a column."""
    words: frozenset[int] = frozenset()
    """Columns of words, which are aligned to the left; the others hold numbers."""


@dataclass(frozen=True)
class Plot:
    """A figure with what it shows."""

    figure: Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page: what it says, then its table, then its plots."""

    heading: str
    paragraphs: Sequence[str] = ()
    table: Table | None = None
    figures: Sequence[Plot] = ()


def write(directory: Path, title: str, verdict: str, sections: Sequence[Section]) -> Path:
    """Write `report.html`; figures are best drawn under `matplotlib.rc_context(rc=recsys.report.STYLE)`.

    Args:
        directory: where to.
        title: what was replayed.
        verdict: what has come out, in a sentence.
        sections: in the order of the page.

    Returns:
        The page.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = directory / "report.html"
    drawn = [(section, [(_svg(plot.figure), plot.caption) for plot in section.figures]) for section in sections]
    write_text(page, environment.get_template(TEMPLATE).render(title=title, verdict=verdict, sections=drawn))
    return page


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()[text.getvalue().index("<svg") :]
