"""A document of tables and pictures, written as one HTML page and as Markdown."""

import base64
import html
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from string import Template
from typing import NamedTuple

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("page.html")

# Of text and axes. The page puts its own ink there, which differs by light and dark;
# elsewhere this grey reads on either.
INK = "#767676"
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color")
COLOURS = ("#3b82c4", "#d9730d", "#2f9e5b", "#9c6ade", "#d6589f", "#8a7a3c")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Table(NamedTuple):
    """A table; the first `names` columns are text, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


class Code(NamedTuple):
    """Preformatted text, folded under a title if it has one."""

    text: str
    title: str = ""


class Picture(NamedTuple):
    """A figure: as SVG for the page, as PNG for where SVG may not be shown."""

    name: str
    caption: str
    svg: str
    png: bytes


Block = Text | Table | Code | Picture


class Section(NamedTuple):
    """A title and what follows it."""

    title: str
    blocks: Sequence[Block]


def drawing() -> AbstractContextManager:
    """Return the context to draw in: colours that read on white and on black."""
    lines = cycler(color=COLOURS) + cycler(linestyle=DASHES)
    return matplotlib.rc_context(
        {
            **dict.fromkeys((*INKED, "xtick.color", "ytick.color"), INK),
            "axes.prop_cycle": lines,
            "svg.fonttype": "none",  # text stays text
            "svg.hashsalt": "l2f_jax",  # the same report, the same bytes
        }
    )


def picture(name: str, figure: Figure, caption: str) -> Picture:
    """Turn a figure made in `drawing()` into a block.

    name: a word that no other picture of the document has.
    """
    vector, pixels = io.StringIO(), io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(vector, format="svg", transparent=True, metadata=nothing)
    figure.savefig(pixels, format="png", transparent=True, dpi=150)
    svg = vector.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # All figures number their parts from 1, and several share a page.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    spoken = f'<svg role="img" aria-label="{html.escape(caption)}"'
    return Picture(name, caption, svg.replace("<svg", spoken, 1), pixels.getvalue())


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Write a page that needs no other file; it is well-formed XML too."""
    title = html.escape(title)
    lines = [f"<h1>{title}</h1>"]
    for section in sections:
        lines += ["<section>", f"<h2>{html.escape(section.title)}</h2>"]
        lines += [*map(_html, section.blocks), "</section>"]
    template = Template(TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=title, body="\n".join(lines))


def _html(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Table():
            rows = "\n".join(_html_row(row, block.names, "td") for row in block.rows)
            return (
                '<div class="wide"><table>\n'
                f"<thead>{_html_row(block.head, block.names, 'th')}</thead>\n"
                f"<tbody>\n{rows}\n</tbody></table></div>"
            )
        case Code(text, title):
            code = f"<pre>{html.escape(text)}</pre>"
            summary = f"<summary>{html.escape(title)}</summary>"
            return f"<details>{summary}\n{code}</details>" if title else code
        case Picture(_, caption, svg, _):
            words = f"<figcaption>{html.escape(caption)}</figcaption>"
            return f"<figure>\n{svg}{words}</figure>"


def _html_row(cells: Sequence[str], names: int, tag: str) -> str:
    line = ""
    for i, cell in enumerate(cells):
        start = f'{tag} class="name"' if i < names else tag
        # Where a number must wrap, it wraps before its interval.
        text = html.escape(cell).replace("± ", "±\N{NO-BREAK SPACE}")
        line += f"<{start}>{text}</{tag}>"
    return f"<tr>{line}</tr>"


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Write the same in Markdown, its pictures at the end of the text."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        parts += map(_markdown, section.blocks)
    blocks = [block for section in sections for block in section.blocks]
    for block in blocks:
        if isinstance(block, Picture):
            data = base64.b64encode(block.png).decode()
            parts.append(f"[{block.name}]: data:image/png;base64,{data}")
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Text(text):
            return _plain(text)
        case Table(head, rows, names):
            rule = ["---" if i < names else "---:" for i in range(len(head))]
            cells = [map(_plain, head), rule, *(map(_plain, row) for row in rows)]
            return "\n".join(f"| {' | '.join(row)} |" for row in cells)
        case Code(text, title):
            code = f"```\n{text}\n```"
            summary = f"<details><summary>{html.escape(title)}</summary>"
            return f"{summary}\n\n{code}\n\n</details>" if title else code
        case Picture(name, caption, _, _):
            return f"![{_plain(caption)}][{name}]\n\n{_plain(caption)}"


def _plain(text: str) -> str:
    """Escape what Markdown would read as markup."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(text, quote=False))
