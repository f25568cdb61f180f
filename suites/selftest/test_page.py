"""The page of a run: what stands in it, and how it behaves in a real browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_runs import case, run_of

from bench.adapters.config import AdapterConfig
from bench.baselines import StoredRun, compare, gate
from bench.baselines.runlog import ledger_digest
from bench.errors import BenchError
from bench.models.architectures import load_model
from bench.reports.reached import SAVED, Branch, ModelTree, ScenarioTree, folded_tree, run_trees
from bench.scenarios.subjects import Subject
from bench.targets import match

pytest.importorskip("jinja2", reason="pip install 'lora-target-bench[report]'")
from bench.reports.page import page

MIB = 2**20
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def measured(scenario: str, precision: str, ms: float, mib: float, **more: Any) -> dict[str, Any]:
    metrics = {
        "step_seconds": [ms / 1e3] * 5,
        "peak_allocated_bytes": round(mib * MIB),
        "trainable_parameters": 1000,
        "total_parameters": 100_000,
        "adapted_layers": 4,
    }
    return case("opt", precision, scenario=scenario, metrics=metrics) | more


def sample_run(name: str = "mine", peaks: tuple[float, float] = (40, 30)) -> StoredRun:
    return run_of(
        measured("query", "fp32", 20, peaks[0]),
        measured("value", "fp32", 30, peaks[1]),
        measured("all", "fp32", 45, 90),
        measured("query", "nf4", 100, 10),
        measured(HOSTILE, "nf4", 50, 12),
        case("bert", None, metrics={"trainable_parameters": 7, "adapted_layers": 2}),
        name=name,
    )


TREES = [
    ModelTree(
        "opt",
        (ScenarioTree("query r8", (Branch("q_proj", state="adapted"),), ("gate_proj dead",)),),
    )
]


def sample_page() -> str:
    baseline = sample_run("before", (20, 60))  # the first got worse, the second better
    verdicts = compare(baseline, sample_run())
    return page(
        [sample_run()], baseline, verdicts=verdicts, failing=gate(verdicts), trees=TREES
    )  # fmt: skip


class Text(HTMLParser):
    """The text of a page without its scripts and styles, and every tag in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data


def test_a_hostile_name_is_text() -> None:
    html = sample_page()
    parsed = Text(html)
    assert HOSTILE in parsed.text
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in parsed.tags]


def test_nothing_is_fetched() -> None:
    parsed = Text(sample_page())
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    policy = [a for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a]
    assert "default-src 'none'" in str(policy)


def test_what_changed_stands_first_and_regressions_before_all() -> None:
    text = Text(sample_page()).text
    assert text.index("What changed") < text.index("Choose your scenario")
    changed = text[text.index("What changed") : text.index("Choose your scenario")]
    assert "FAILED" in changed
    rows = changed[changed.index("verdict") :]
    assert rows.index("regressed") < rows.index("improved")


def test_every_row_has_a_link_of_its_own() -> None:
    parsed = Text(sample_page())
    ids = [a["id"] for tag, a in parsed.tags if tag == "tr" and "id" in a]
    links = [a["href"] for tag, a in parsed.tags if tag == "a" and "aria-label" in a]
    assert len(ids) == len(set(ids)) == 6
    assert links == [f"#{name}" for name in ids]


def test_two_thousand_rows_are_less_than_two_megabytes() -> None:
    many = run_of(*(measured(f"scenario-{n}", "fp32", 20 + n, 40 + n) for n in range(2000)))
    assert len(page([many]).encode()) < 2_000_000


def test_a_run_without_a_case_has_no_page() -> None:
    with pytest.raises(BenchError, match="without a case"):
        page([run_of()])


def test_layers_that_are_alike_are_told_once() -> None:
    states = {f"h.{n}.{p}": "adapted" if n != 2 or p == "q" else "frozen"
              for n in range(5) for p in "qv"} | {"lm_head": SAVED}  # fmt: skip
    tree = folded_tree(states, [f"h.{n}" for n in range(5)])
    assert [(b.name, b.note) for b in tree] == [
        ("h.0 … 1", "2 layers alike"), ("h.2", "1 layer"), ("h.3 … 4", "2 layers alike"),
        ("lm_head", ""),
    ]  # fmt: skip
    assert [(leaf.name, leaf.state) for leaf in tree[1].children] == [
        ("q", "adapted"), ("v", "frozen"),
    ]  # fmt: skip


def test_trees_are_matched_again_and_held_against_the_recorded_digest() -> None:
    def record(digest: str) -> dict[str, Any]:
        metrics = {"ledger_digest": digest, "trainable_parameters": 7}
        return case("opt-125m", "fp32", scenario="query-value", metrics=metrics)

    (tree,) = run_trees(run_of(record("0" * 16)))
    assert "something else" in tree.scenarios[0].warning
    (unknown,) = run_trees(run_of(case("mine", "fp32", metrics={"ledger_digest": "0" * 16})))
    assert "not a registered model" in unknown.missing


def test_a_configuration_of_ones_own_has_its_tree_where_it_is_at_hand() -> None:
    """The page of the run itself has it; that of a stored run has the dead entries in it."""
    subject = Subject(load_model("opt-125m"), "own", AdapterConfig(("q_proj", "dead")))
    ledger = match(subject.model.table, subject.adapter, subject.model.role_of)
    metrics = {"ledger_digest": ledger_digest(ledger), "adapted_layers": 12}
    detail = {"dead_entries": ["dead"], "adapter": {"r": 8}}
    own = case("mine", None, scenario="own", outcome="failed", metrics=metrics, detail=detail)
    run = run_of({**own, "model": "opt-125m"})
    (here,) = run_trees(run, [subject])
    assert (here.missing, here.scenarios[0].warning) == ("", "")
    assert here.scenarios[0].tree[0].name == "model.decoder.layers.0 … 11"
    assert here.scenarios[0].dead == ("dead reaches nothing",)
    (stored,) = run_trees(run_of(own))
    assert "not a registered model" in stored.missing
    assert stored.scenarios == (ScenarioTree("own r8: 12 modules", (), ("dead reaches nothing",)),)
    shown = page([run_of(own)], trees=[stored])
    assert "<li>failed: own r8" in shown
    assert "<li>dead: dead reaches nothing on mine (own r8)" in shown


# --- in a browser ---------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pip install playwright: the page's browser tests need it"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on the path: the page's browser tests need it")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield started
        started.close()


@pytest.fixture
def shown(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The sample page, open; the test fails if the console said anything."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    tab.on("request", lambda request: said.append(request.url)
           if not request.url.startswith("file:") else None)  # fmt: skip
    file = tmp_path / "page.html"
    file.write_text(sample_page(), encoding="utf-8")
    tab.goto(file.as_uri())
    yield tab
    tab.close()
    assert said == []


def visible(tab: Any, column: int = 0) -> list[str]:
    rows = tab.locator("#cases tbody tr:visible").all()
    return [row.locator("td").nth(column).inner_text() for row in rows]


def test_it_sorts_by_any_column(shown: Any) -> None:
    shown.get_by_role("button", name="step time [ms]").click()
    assert visible(shown)[:3] == ["query", "value", "all"]
    assert shown.locator("th[aria-sort=ascending]").inner_text().startswith("step time")
    shown.get_by_role("button", name="step time [ms]").click()
    assert visible(shown)[0] == "query"
    assert visible(shown)[-1] == "query"  # 100 ms in nf4 first, 20 ms last
    shown.get_by_role("button", name="scenario").click()
    assert visible(shown)[1:] == ["all", "query", "query", "value"]


def test_it_filters_by_any_column(shown: Any) -> None:
    assert len(visible(shown)) == 5  # measured alone
    shown.get_by_label("filter precision").fill("nf4")
    assert len(visible(shown)) == 2
    shown.get_by_label("filter peak allocated [MiB]").fill("<11")
    assert visible(shown) == ["query"]
    assert shown.locator("#count").inner_text().startswith("1 of 6 cases")
    shown.get_by_role("button", name="Clear filters and selection").click()
    assert len(visible(shown)) == 5
    shown.get_by_label("filter step time [ms]").fill("30-45")
    assert visible(shown) == ["value", "all"]
    shown.get_by_label("filter step time [ms]").fill("")
    shown.get_by_label("measured cases only").uncheck()
    shown.get_by_label("Search").fill("bert")
    assert len(visible(shown)) == 1


def test_a_point_selects_its_row_by_mouse_and_keyboard(shown: Any) -> None:
    assert shown.locator("#plot svg g[role=button]").count() == 5
    point = shown.get_by_role("button", name=re.compile("^value fp32"))
    point.click()
    assert point.get_attribute("aria-pressed") == "true"
    shown.get_by_role("button", name=re.compile("^all fp32")).focus()
    shown.keyboard.press("Enter")
    shown.get_by_label("selected only").check()
    assert visible(shown) == ["value", "all"]
    assert "2 selected" in shown.locator("#count").inner_text()


def test_a_link_leads_to_its_row(shown: Any) -> None:
    links = shown.locator("#cases tbody a")
    target = links.nth(5).get_attribute("href")  # counted, and so hidden at first
    shown.goto(shown.url.partition("#")[0] + target)
    shown.reload()
    assert shown.locator(target).is_visible()
    assert shown.locator(target).evaluate("row => row.matches(':target')")


def test_many_rows_are_shown_when_asked_for(browser: Any, tmp_path: Path) -> None:
    many = run_of(*(measured(f"scenario-{n}", "fp32", 20 + n, 40 + n) for n in range(250)))
    file = tmp_path / "page.html"
    file.write_text(page([many]), encoding="utf-8")
    tab = browser.new_page()
    tab.goto(file.as_uri() + "#case-mine-opt-scenario-249-r8-fp32")
    rows = tab.locator("#cases tbody tr:visible")
    assert rows.count() == 201  # the first 200, and the one that the link names
    assert "250 of 250 cases, the first 200 shown" in tab.locator("#count").inner_text()
    tab.get_by_role("button", name="step time [ms]").click()
    tab.get_by_role("button", name="step time [ms]").click()
    assert visible(tab)[0] == "scenario-249"  # what is sorted is all of them
    tab.get_by_role("button", name="Show all").click()
    assert rows.count() == 250
    tab.close()


def test_dark_and_light(shown: Any) -> None:
    def ground() -> str:
        return shown.evaluate("getComputedStyle(document.body).backgroundColor")

    before = ground()
    shown.get_by_role("button", name="Switch between light and dark").click()
    assert ground() != before


def test_it_fits_a_phone_and_paper(shown: Any) -> None:
    shown.set_viewport_size({"width": 390, "height": 800})
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    shown.emulate_media(media="print")
    assert not shown.locator("#controls").is_visible()
    assert shown.locator("#cases").is_visible()


@pytest.mark.evidence
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(shown: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    shown.emulate_media(color_scheme=scheme)
    shown.locator("details").first.evaluate("d => { d.open = true }")
    found = axe.Axe().run(shown)
    assert found.violations_count == 0, found.generate_report()
