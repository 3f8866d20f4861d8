"""The documents agree with the code and with each other: links, events, settings, statuses, decisions, words."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from worker.cancellation.outcome import ALARMING_REASONS
from worker.cancellation.status import TRANSITIONS
from worker.ledger.redaction import PERSONAL
from worker.ledger.schema import metadata
from worker.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "worker"
DECISIONS = ROOT / "ops" / "decisions"
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "ops/**/*.md")
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)
SOURCES = sorted(WORKER.rglob("*.py"))
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__).resolve())
PACKAGES = sorted(path.parent.name for path in WORKER.glob("*/__init__.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def table_rows(text: str, header: str) -> list[list[str]]:
    """Return the cells of the table whose first line begins so."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header))
    rows: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


# ---- links

FENCED = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def links(path: Path) -> list[str]:
    text = CODE.sub("", FENCED.sub("", path.read_text()))
    return [target for target in LINK.findall(text) if "://" not in target]


def anchors(path: Path) -> list[str]:
    """Return the anchors of a page's headings, as the hosts of repositories make them."""
    headings = HEADING.findall(FENCED.sub("", path.read_text()))
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(path: Path) -> None:
    broken = []
    for link in links(path):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(link)

    assert [] == broken


@pytest.mark.parametrize(
    "name",
    [
        "docs/api.md",
        "docs/architecture.md",
        "docs/contract/README.md",
        "docs/data.md",
        "docs/operate.md",
        "docs/glossary.md",
        "docs/integrate.md",
        "docs/metrics.md",
        "docs/one-machine.md",
        "docs/threats.md",
        "docs/upgrade.md",
        "docs/webhooks.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "ops/runbook.md",
        "ops/reliability.md",
        "ops/performance.md",
        "ops/decisions/README.md",
    ],
)
def test_the_readme_leads_to_every_other_document(name: str) -> None:
    assert name in links(ROOT / "README.md")


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_file_of_ours_that_a_document_names_is_there(path: Path) -> None:
    text = FENCED.sub("", path.read_text())
    from_the_top = re.findall(r"`((?:worker|tests|migrations|ops|docs)/[\w./]*\w)`", text)
    in_a_package = re.findall(rf"`((?:{'|'.join(PACKAGES)})/\w+\.py)`", text)

    assert [] == [each for each in from_the_top if not (ROOT / each).exists()]
    assert [] == [each for each in in_a_package if not (WORKER / each).exists()]


# ---- headings of the README, terms of the glossary


def test_the_readme_has_the_headings_that_people_look_for() -> None:
    second = re.findall(r"^## (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)

    assert [
        "Quick start",
        "Usage",
        "How it works",
        "Outcomes",
        "Rate limits and holds",
        "Configuration",
        "Deploy",
        "Operations",
        "Monitoring",
        "Performance",
        "Troubleshooting",
        "Project",
    ] == second


def test_the_readme_names_every_setting() -> None:
    cells = [row[0] for row in table_rows((ROOT / "README.md").read_text(), "| name | default |")]
    stated = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}

    assert set() == {name.upper() for name in Settings.model_fields} - stated


def test_the_glossary_defines_each_term_once_and_in_order() -> None:
    terms = re.findall(r"^### (.+)$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)

    assert sorted(set(terms)) == terms


# ---- statuses and threads


def test_the_diagram_of_statuses_shows_every_legal_transition_and_no_other() -> None:
    drawn = re.findall(r"^ +(\w+) --> (\w+)", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    legal = sorted((str(source), str(target)) for source, targets in TRANSITIONS.items() for target in targets)

    assert legal == sorted(drawn)


def test_the_glossary_names_every_status() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    entry = text.partition("\n### status\n")[2].partition("\n###")[0]

    assert {str(status) for status in TRANSITIONS} == set(re.findall(r"`(\w+)`", entry)) - {"run_at", "send_by"}


def test_the_architecture_names_every_thread() -> None:
    rows = table_rows((ROOT / "docs" / "architecture.md").read_text(), "| thread | file |")
    threads = {row[0] for row in rows}

    assert set() == set(loops()) - threads


# ---- what is kept: data.md

DATA = (ROOT / "docs" / "data.md").read_text()
COLUMNS = [
    (*re.findall(r"`(\w+)`", table), name, personal, kept)
    for table, names, personal, kept in table_rows(DATA, "| table | columns |")
    for name in re.findall(r"`(\w+)`", names)
]


def test_each_column_of_the_ledger_has_one_line() -> None:
    there = [(table.name, column.name) for table in metadata.tables.values() for column in table.columns]

    assert sorted(there) == sorted((table, name) for table, name, *_ in COLUMNS)


def test_each_column_with_words_of_others_is_one_that_redact_erases() -> None:
    stated = {(table, name) for table, name, personal, _ in COLUMNS if personal.startswith(("**yes**", "free text"))}

    assert {("cancellations", name) for name in PERSONAL} | {
        *(("documents", name) for name in ("order_snapshot", "unused_fields")),
        *(("dead_letters", name) for name in ("raw", "error")),
        *(("attempts", "error"), ("audit", "reason")),
    } == stated


def test_each_setting_of_retention_is_stated_with_its_default() -> None:
    stated = {row[0].strip("`"): float(row[1]) for row in table_rows(DATA, "| setting | default |")}

    assert {
        name.upper(): field.default
        for name, field in Settings.model_fields.items()
        if name in {"retention_days", "snapshot_days", "dead_letter_days"}
    } == stated


@pytest.mark.parametrize("word", sorted(set(re.findall(r"`([A-Z]+_[A-Z_]+)`", DATA))))
def test_each_setting_that_it_names_is_one(word: str) -> None:
    assert word.lower() in Settings.model_fields


def test_each_key_in_redis_has_its_line() -> None:
    said = {name for path in SOURCES for name in re.findall(r'"(cancellations:[a-z:-]+)"', path.read_text())}
    keys = said - {"cancellations:probe"}  # of doctor: nothing is done to it
    stated = {
        name.rstrip("*")
        for row in table_rows(DATA, "| key | what |")
        for name in re.findall(r"`([\w:.<>*-]+)`", row[0])
    }

    assert 6 < len(keys)
    assert set() == keys - stated


# ---- the runbook

LEVELS = {"log.warning", "log.error", "log.exception", "log.critical", "alert", "report_bug"}
BY_REASON = "f'cancellation.{row.reason}'"
KNOWN_OTHERWISE = {"f'{self.name}.crashed'", "event"}  # of every `Loop`; what `alert` and `report_bug` pass on


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield ast.unparse(node.func), node


def loops() -> dict[str, str]:
    """Return the threads of a worker, each with the errors that it waits out."""
    return {
        str(ast.literal_eval(call.args[0])): ast.unparse(
            next(word.value for word in call.keywords if word.arg == "expected")
        )
        for called, call in calls()
        if called == "Loop" and call.args
    }


def said_by_threads() -> set[str]:
    """Return what threads say. Who waits out no error is never unavailable, and who waits out all never crashes."""
    return {f"{name}.unavailable" for name, expected in loops().items() if expected != "()"} | {
        f"{name}.crashed" for name, expected in loops().items() if expected != "(Exception,)"
    }


def said_at_warning_or_above() -> set[str]:
    found = said_by_threads() | {"log.dropped"}  # written as bytes by `LogStream`, which cannot log
    for called, call in calls():
        if called not in LEVELS or not call.args:
            continue
        first = call.args[0]
        if isinstance(first, ast.Constant):
            found.add(str(first.value))
        elif ast.unparse(first) == BY_REASON:
            found.update(f"cancellation.{reason}" for reason in ALARMING_REASONS)
        else:
            assert ast.unparse(first) in KNOWN_OTHERWISE, "an event whose name does not stand in the code"
    return found


def test_the_runbook_names_every_event_from_warning_up() -> None:
    text = (ROOT / "ops" / "runbook.md").read_text()

    assert [] == sorted(event for event in said_at_warning_or_above() if f"`{event}`" not in text)


def test_the_runbook_names_no_event_that_nobody_says() -> None:
    text = (ROOT / "ops" / "runbook.md").read_text()
    first_cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    events = {name for cell in first_cells for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", cell)}

    assert set() == events - said_at_warning_or_above()


# ---- decisions

PAGES = sorted(DECISIONS.glob("[0-9]*.md"))


def without_links(text: str) -> str:
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


def indexed() -> dict[str, list[str]]:
    """Return number, title, date and status of each page, by its file."""
    rows = table_rows((DECISIONS / "README.md").read_text(), "| number |")
    return {LINK.findall(row[0])[0]: [without_links(cell) for cell in row] for row in rows}


def test_every_decision_is_in_the_index_in_order() -> None:
    assert [path.name for path in PAGES] == list(indexed())


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_a_decision_says_the_same_as_the_index(path: Path) -> None:
    title, _, date, status, *_ = path.read_text().splitlines()
    number, _, name = title.removeprefix("# ").partition(". ")

    assert indexed()[path.name] == [
        number,
        name,
        date.removeprefix("- Date: "),
        without_links(status.removeprefix("- Status: ")),
    ]
    assert int(path.name[:4]) == int(number)
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", date.removeprefix("- Date: "))
    assert status.startswith(("- Status: accepted", "- Status: superseded by"))


def test_a_decision_is_changed_by_later_ones_only() -> None:
    changed = {
        int(number): [int(by) for by in re.findall(r"\d+", status)] for number, _, _, status in indexed().values()
    }

    assert [] == [(number, by) for number, later in changed.items() for by in later if not number < by <= len(PAGES)]


# ---- words

# Names that are gone, each with the one that took its place. Written so that ordinary English does not match.
GONE = {
    r"[Bb]erths?\b": "slots",
    r"\btell_when_free\b": "notify_when_free",
    r"\b[Dd]oors?\b": "the intake judges; Handlers",
    r"\bOwnList\b": "WorkerQueue",
    r"\bSteadyConsumer\b": "SelfRestartingConsumer",
    r"[Mm]achinery\b": "supervisor, executor",
    r"\bledger[./]turns\b|\bimport turns\b|\bturns\.\w+\(": "selection",
    r"\bSenders?\b|\bsenders\b": "ReadyConnection",
    r"hand_back": "release, give back",
    r"\b[Aa]genda\b": "deadlines",
    r"take_back": "withdraw, requeue, release",
    r"\bworn_out\b": "past_retry_horizon",
    r"[Hh]urried|HURRY": "at_risk",
    r"\bMove[(\],|]|[:>] Move\b": "Transition",
    r"\bledger[./]moving\b|\bimport moving\b": "transitions",
    r"\bLEGAL\b": "TRANSITIONS",
    r"\b[Ff]ence\b": "lease, fencing token",
    r"\bby_hand\b": "transitions, an operator",
    r"\b(worker\.ledger\.|ledger/)(reading|engine|tables|sqltypes)\b": "queries, database, schema, dialects",
    r"\b(worker\.ledger\.|ledger/)(accepting|recording|migrating|credentials)\b": "acceptance, results, vault",
    r"\bsqltypes\b": "dialects",
    r"\bReading[(\],|]|\bSight\b": "ReadBack, OrderState",
    r"\bbury\b|\bKeptLetter\b|\bUnknownLetterError\b|\b_brought\b|\b_letter\b": "dead letters",
    r"\b_TOLD\b": "_FORWARDED_FIELDS",
    r"\b_?tell_\w+\(": "log_, alert_on_",
    r"\bPause\b": "OutageBackoff",
    r"(?i)\bgulps?\b|GULP": "refill",
    r"(?i)\blumps?\b|LUMP": "AGING_BATCH",
    r"\bcancellation[./]sharing\b|\bimport sharing\b": "fairness",
    r"\bmost_for\b": "fair_limit",
    r"longest_waiting": "aged, aging_quota",
    r"\bSHARE\b": "TARGET_UTILISATION",
    r"\bGrant[(\],|]|[:>] Grant\b": "Reservation",
    r"(?i)\bpermits?\b": "send slot",
    r"\busual_rate\b": "default_rate",
    r"\bTools[(\],|]|[:>] Tools\b": "AttemptContext",
    r"\blook_up\b": "read_refused",
    r"\bRecorded[(\],|]|\b_on_recorded\b": "CommitSummary, on_committed",
    r"\bas_rows\b": "bind_rows",
    r"\bfound_by\b": "joined_by_id",
    r"\bunindexed\b": "hidden_from_planner",
    r"\bone_statement\b": "autocommit",
    r"\bseal(ed|s)?\b": "encrypted",
    r"\bannounce_leased\b|\bannounce\(": "add_leased_events, add_events",
    r"\b_?settle_interpreter\b": "_tune_gc_and_gil",
    r"\b(MOST|LEAST)_[A-Z]": "MAX_, MIN_",
    r"\bself\._settle\b|\bintake\._settle\b": "_store_and_ack",
    r"\b_faults_in_a_sentence\b": "_ledger_errors",
    r"\bJudgement\b|\b_judge\b": "OutageDecision, _evaluate",
}


def lines() -> Iterator[tuple[Path, int, str]]:
    for path in (*SOURCES, *TESTS, *DOCUMENTS):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            yield path, number, line


@pytest.mark.parametrize("word", GONE, ids=GONE.get)
def test_a_word_that_is_gone_stands_nowhere(word: str) -> None:
    gone = re.compile(word)

    assert [] == [f"{named(path)}:{number}: {line.strip()}" for path, number, line in lines() if gone.search(line)]
