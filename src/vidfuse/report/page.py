"""The frame of a page: sections with their contents list, figures, and one self-contained HTML file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files

from vidfuse import __version__
from vidfuse._tables import Table
from vidfuse.errors import InputError

__all__ = ["Section", "beside", "data_url", "facts", "figure", "page", "scrolled"]

MOST_PICTURE = 100_000
"""Bytes of a thumbnail: with twelve of them a page stays below 2 MB."""

_MANY = 6  # columns: in wider tables intervals stand below their numbers

_PICTURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        heading: What stands above it, and in the contents list.
        body: Its HTML.
        intro: A sentence or two that say what is seen.
    """

    heading: str
    body: str
    intro: str = ""

    @property
    def anchor(self) -> str:
        """The name that links lead to."""
        return re.sub(r"\W+", "-", self.heading.lower()).strip("-")

    def to_html(self) -> str:
        """Return the section's HTML."""
        intro = f"<p>{escape(self.intro)}</p>" if self.intro else ""
        return (
            f'<section id="{self.anchor}" aria-labelledby="{self.anchor}-heading">'
            f'<h2 id="{self.anchor}-heading">{escape(self.heading)}</h2>{intro}{self.body}</section>\n'
        )


def scrolled(table: Table) -> str:
    """Return a table between its title and notes, in a box of its own: what is wider than the page scrolls there."""
    name = table.title or ", ".join(column.heading for column in table.heads if column.heading and column.shown)
    title = f'<p class="caption">{escape(table.title)}</p>' if table.title else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    inner = replace(table, title="", notes=()).to_html()
    if sum(column.shown for column in table.heads) > _MANY:
        inner = inner.replace("<table>", '<table class="wide">', 1)
    return (
        f'<div class="table">{title}<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0">'
        f"{inner}</div>{notes}</div>"
    )


def figure(drawing: str, caption: str) -> str:
    """Return a drawing with its caption."""
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def beside(*parts: str) -> str:
    """Return parts that stand side by side where there is room."""
    return f'<div class="pair">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Return a strip of (name, value)."""
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{listed}</dl>'


def page(title: str, verdict: str, how: str, *, flatters: bool, strip: str, sections: Sequence[Section]) -> str:
    """Return the whole file.

    Args:
        title: The page's title.
        verdict: The answer, one sentence; the largest words of the page.
        how: On which videos the scores were taken.
        flatters: Whether they are too good, which the page then says loudly.
        strip: The facts; see `facts`.
        sections: What stands below, in this order.
    """
    style = files("vidfuse.report").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{section.anchor}">{escape(section.heading)}</a></li>' for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>\n{style}</style>\n</head>\n'
        f'<body>\n<header><p class="title">{escape(title)}</p><h1>{_unbroken(verdict)}</h1>'
        f'<p class="{"warning" if flatters else "how"}">{escape(how)}</p>{strip}</header>\n'
        f'<nav aria-label="Contents"><ol>{links}</ol></nav>\n'
        f"<main>\n{''.join(section.to_html() for section in sections)}</main>\n"
        f"<footer>Written by vidfuse {__version__}.</footer>\n</body>\n</html>\n"
    )


def _unbroken(text: str) -> str:
    """Return the text's HTML, in which no line ends within brackets of an interval, "12 %" or "p = 0.03"."""
    whole = r"(\(\S*\N{EN DASH}\S*\)|\d\S* %|\bp [=&<]\S* \d(?:\S*\d)?)"
    return re.sub(whole, r'<span class="whole">\1</span>', escape(text))


def data_url(image: bytes, name: str) -> str:
    """Return an image as the address of itself.

    Args:
        image: The bytes of a PNG, JPEG, GIF or WebP file.
        name: The video's id, for the error.

    Raises:
        InputError: it is of another format, or too large for a page.
    """
    if len(image) > MOST_PICTURE:
        raise InputError(
            f"the thumbnail of {name!r}: expected at most {MOST_PICTURE:,} bytes, got {len(image):,}; scale it down, "
            "320 pixels are enough"
        )
    for start, suffix in _PICTURES.items():
        if image.startswith(start):
            return f"data:image/{suffix};base64,{base64.b64encode(image).decode('ascii')}"
    raise InputError(f"the thumbnail of {name!r}: expected the bytes of a PNG, JPEG, GIF or WebP image")
