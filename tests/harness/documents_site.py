"""Hands the repository's pages to MkDocs under the paths that they have here: each link means the same in both.

Knows files, links and how two dialects of Markdown differ; does not know what a page says, nor how a site looks.
MkDocs loads it by its path (`hooks` of mkdocs.yml), so it imports no file of ours.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("*.md", "docs/**/*.md", "ops/**/*.md")
NOT_OURS = {"node_modules", "__pycache__"}
SECRET = {"secrets", ".env"}  # what a deployment puts below ops/ is never a part of a site

FENCED = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
WIDE = ".md-grid { max-width: 92rem; }\n"
ITEM = re.compile(r"(?:[*-]|\d+\.) +")


def pages() -> list[Path]:
    """Return every document of the repository, none of them of another's package."""
    found = (path for pattern in PAGES for path in ROOT.glob(pattern))
    return sorted(path for path in found if _may_be_shown(path.relative_to(ROOT)))


def linked(page: Path) -> set[Path]:
    """Return the files and folders of ours that a page leads to."""
    text = CODE.sub("", FENCED.sub("", page.read_text()))
    targets = {(page.parent / target).resolve() for target in LINK.findall(text) if "://" not in target}
    return {target for target in targets if target.exists() and target.is_relative_to(ROOT)}


def folder_page(folder: Path) -> str:
    """Return a page that lists the files of a folder, which the hosts of repositories show by themselves."""
    names = [path.relative_to(folder).as_posix() for path in files_of(folder)]
    return "\n".join([f"# {folder.relative_to(ROOT).as_posix()}", "", *(f"* [{name}]({name})" for name in names), ""])


def files_of(folder: Path) -> list[Path]:
    """Return what a folder holds, without what was installed into it, and without secrets."""
    inside = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in inside if _may_be_shown(path.relative_to(folder)))


def _may_be_shown(path: Path) -> bool:
    return not (NOT_OURS | SECRET) & {*path.parts}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the files of the theme, and ours: every page, and whatever a page leads to."""
    folders = {target for page in pages() for target in linked(page) if target.is_dir()}
    lists = [folder for folder in folders if not (folder / "README.md").exists()]
    ours = {*pages(), *(target for page in pages() for target in linked(page) if target.is_file())}
    ours |= {path for folder in lists for path in files_of(folder)}
    site = Files([file for file in files if file.src_dir != config.docs_dir])
    for path in sorted(ours):
        site.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    site.append(File.generated(config, "assets/wide.css", content=WIDE))
    for folder in lists:
        uri = f"{folder.relative_to(ROOT).as_posix()}/index.md"
        site.append(File.generated(config, uri, content=folder_page(folder)))
    return site


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name headings as the hosts of repositories do: an anchor that leads there leads here."""
    config.mdx_configs["toc"] = {**config.mdx_configs.get("toc", {}), "slugify": anchor}
    return config


def anchor(heading: str, separator: str) -> str:
    """Return the name of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Return the page in the dialect of MkDocs."""
    at = ROOT / Path(page.file.src_uri).parent
    return LINK.sub(lambda found: to_a_page(found, at), "\n".join(dialect(markdown.splitlines())))


def to_a_page(found: re.Match[str], at: Path) -> str:
    """Let a link to a folder lead to the page that stands for it."""
    target = found[1]
    if "://" in target or not (at / target).is_dir():
        return found[0]
    name = "README.md" if (at / target / "README.md").exists() else "index.md"
    return found[0].replace(target, f"{target.rstrip('/')}/{name}")


def dialect(lines: list[str]) -> Iterator[str]:
    """Indent what belongs to a list's item by four, set a list apart, and take the backslash from a pipe in code."""
    width, fenced, before, parts = 0, False, "", False  # parts: the item has paragraphs
    for line in lines:
        item = None if fenced else ITEM.match(line)
        if line.startswith("```"):
            width, fenced = 0, not fenced
        elif item:
            if before and (parts or not width):
                yield ""
            width, parts = len(item[0]), False
        elif line and not line.startswith(" ") and not before:
            width = 0
        inside = bool(width and not item and line.startswith(" " * width))
        parts = bool(width and (parts or not line))
        yield _pipes(" " * 4 + line[width:] if inside else line)
        before = line


def _pipes(line: str) -> str:
    return CODE.sub(lambda code: code[0].replace(r"\|", "|"), line) if line.startswith("|") else line
