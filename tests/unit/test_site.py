"""The documents as a site: whole, without a dead link, asking nobody else, and saying what the repository shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness.built_site import ReadPage, dead_links, loads_of_others, read_site
from harness.documents_site import dialect, files_of, pages
from markdown_it import MarkdownIt

import worker

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "docs" / "api.md"
# Not shown by name: the Celery application is for Celery, the version is a text.
NOT_OF_THE_API = {"app", "__version__"}


class Configuration(yaml.SafeLoader):
    """MkDocs' own tags are of no interest here."""


Configuration.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
CONFIGURATION = yaml.load((ROOT / "mkdocs.yml").read_text(), Configuration)  # noqa: S506 - a SafeLoader


def in_nav(entries: object) -> list[str]:
    if isinstance(entries, str):
        return [entries]
    inside = entries.values() if isinstance(entries, dict) else entries
    return [page for entry in inside for page in in_nav(entry)]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does."""
    into = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(into)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=90)

    assert (0, False) == (done.returncode, "WARNING" in done.stderr), done.stderr
    return into


def built(site: Path, page: Path) -> ReadPage:
    name = re.sub(r"README$", "index", str(page.relative_to(ROOT).with_suffix("")))
    return ReadPage((site / f"{name}.html").read_text().partition("<article")[2].partition("</article>")[0])


def test_each_document_has_a_line_in_the_navigation() -> None:
    decisions = ROOT / "ops" / "decisions"
    documents = {str(page.relative_to(ROOT)) for page in pages() if page.parent != decisions}

    assert {*documents, "ops/decisions/README.md"} == set(in_nav(CONFIGURATION["nav"]))


def test_no_link_of_the_site_leads_nowhere(site: Path) -> None:
    assert len(pages()) < len(read_site(site))
    assert [] == dead_links(site)


def test_a_dead_link_and_a_dead_anchor_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html"></a><a href="#here"></a><a href="c.html"></a><p id="here">')
    (tmp_path / "c.html").write_text('<a href="a.html#here"></a><a href="a.html#there"></a>')

    assert ["a.html: b.html", "c.html: a.html#there"] == dead_links(tmp_path)


def test_the_site_asks_no_other_server(site: Path) -> None:
    assert [] == loads_of_others(site)


def test_what_is_asked_of_another_server_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<script src="https://cdn.example/a.js"></script><a href="https://other.example">'
    )
    (tmp_path / "a.css").write_text("@import '//fonts.example/a.css'; p { background: url(a.png) }")

    assert ["a.html: https://cdn.example/a.js", "a.css: //fonts.example/a.css"] == loads_of_others(tmp_path)


def test_the_site_names_no_place_where_it_was_built(site: Path) -> None:
    texts = [path for path in site.rglob("*") if path.suffix in {".html", ".json", ".xml", ".js", ".css"}]

    assert [] == [path for path in texts if str(ROOT) in path.read_text() or str(site) in path.read_text()]


@pytest.mark.parametrize("page", [page for page in pages() if page != API], ids=lambda page: page.name)
def test_a_page_has_the_lists_tables_and_code_that_the_repository_shows(site: Path, page: Path) -> None:
    there = ReadPage(MarkdownIt("commonmark").enable("table").render(page.read_text()))
    here = built(site, page)

    for tag in ("h1", "h2", "h3", "li", "tr", "img", "strong"):
        assert (tag, there.counts[tag]) == (tag, here.counts[tag])
    assert there.counts["pre"] == here.counts["pre"]


def test_the_api_page_shows_each_name_that_worker_exports(site: Path) -> None:
    exported = {f"worker.{name}" for name in worker.__all__ if name not in NOT_OF_THE_API}
    errors = {f"worker.{name}" for name in vars(worker.errors) if name.endswith("Error")}

    assert set() == (exported | errors) - built(site, API).names
    assert errors <= exported


def test_the_api_page_shows_types_and_errors(site: Path) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", (site / "docs" / "api.html").read_text()))

    assert "wait( cancellation_id: str, timeout: float | None = None ) -&gt; Cancellation" in text
    assert "Raises TimeoutError with what is known so far." in text
    assert "worker.testing.sandbox.TrackstarSandbox.advance" in built(site, API).names


def test_what_belongs_to_an_item_is_indented_for_the_site() -> None:
    page = ["Text:", "* an item", "  goes on", "", "      code", "", "Text."]

    assert ["Text:", "", "* an item", "    goes on", "", "        code", "", "Text."] == list(dialect(page))


def test_a_folder_that_is_linked_brings_no_secret_into_the_site(tmp_path: Path) -> None:
    for name in ("shown.yaml", "secrets/key", ".env", "node_modules/other/index.js"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    assert [tmp_path / "shown.yaml"] == files_of(tmp_path)
