"""Reads a site that was built: its links, what its pages load, and how often each kind of element stands in them.

Knows HTML; does not know what a page says, nor what made it.
"""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
IN_STYLES = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)")


class ReadPage(HTMLParser):
    """One page: where it leads, what it loads, which names lead into it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.names: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] += 1
        for name, value in attrs:
            if name == "id" and value:
                self.names.add(value)
            elif tag == "a" and name == "href" and value is not None:
                self.links.append(value)
            elif LOADS.get(tag) == name and value:
                self.loads.append(value)


def read_site(root: Path) -> dict[Path, ReadPage]:
    """Return every page of a site, read."""
    return {path: ReadPage(path.read_text()) for path in sorted(root.rglob("*.html"))}


def foreign(address: str) -> bool:
    """Return whether an address is of another server."""
    return bool(urlsplit(address).netloc)


def loads_of_others(root: Path) -> list[str]:
    """Return what the site's pages and styles load from other servers, each with its file."""
    by_pages = [(path, each) for path, page in read_site(root).items() for each in page.loads if foreign(each)]
    by_styles = [(path, each) for path in root.rglob("*.css") for each in IN_STYLES.findall(path.read_text())]
    return [f"{path.relative_to(root)}: {each}" for path, each in by_pages + by_styles]


def dead_links(root: Path) -> list[str]:
    """Return the links within the site that lead to no file of it, or to no name in that file."""
    pages = read_site(root)
    return [
        f"{path.relative_to(root)}: {link}"
        for path, page in pages.items()
        for link in page.links + page.loads
        if not urlsplit(link).scheme and not foreign(link) and not _alive(link, path, root, pages)
    ]


def _alive(link: str, path: Path, root: Path, pages: dict[Path, ReadPage]) -> bool:
    target = urlsplit(link)
    start = root if target.path.startswith("/") else path.parent
    leads_to = (start / unquote(target.path).lstrip("/")).resolve() if target.path else path
    names = pages[leads_to].names if leads_to in pages else set()
    return leads_to.is_file() and (not target.fragment or unquote(target.fragment) in names)
