"""The page of a comparison in Chromium: what a reader sees, and what the data cannot do."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmft.reports.comparison import write_comparison_report
from llmft.results.comparison import ComparisonResult, SliceTable, SliceValue
from llmft.results.evaluation import RowResult
from tests.reports.made_up import make_comparison

playwright_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.launched,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)><b id=planted>bold</b>"
VARIANTS = ("distillation", "instruction", ATTACK)

# WCAG 2.2, 1.4.3: contrast of every text with what it stands on; pictures of markers aside.
LOW_CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const read = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) =>
    0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const findGround = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = read(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, svg, .glyph, :disabled")) continue;
    const values = [read(getComputedStyle(element).color), findGround(element)].map(luminance);
    const ratio = (Math.max(...values) + 0.05) / (Math.min(...values) + 0.05);
    if (ratio < 4.5) low.push([element.outerHTML.slice(0, 80), ratio]);
  }
  return low;
}"""


def make_classified() -> ComparisonResult:
    results = make_comparison(label_type="class", names=["calm", "loud"], variants=("a", "b", "c"))
    outputs = {"a": [0.9, 0.1], "b": [0.2, 0.8], "c": [0.7, 0.3]}
    values = [SliceValue(value=value, num_rows=2, metrics={}) for value in ("up to 9", "10 to 20")]
    rows = [
        RowResult(
            id=f"row-{i}",
            labels=label,
            outputs=outputs if i % 2 else {variant: [0.6, 0.4] for variant in outputs},
            errors=dict.fromkeys(outputs, 0.4),
            predicted={
                v: "calm" if o[0] > 0.5 or not i % 2 else "loud" for v, o in outputs.items()
            },
            text="text",
            slices={"length": ("10 to 20", "up to 9")[i // 2], "true class": label},
        )
        for i, label in enumerate(("calm", "calm", "loud", "loud"))
    ]
    length = SliceTable(name="length", metric="accuracy", values=values)
    return results.replace(slices=[length], rows=rows)


def make_results(num_rows: int, variants: tuple[str, ...] = VARIANTS) -> ComparisonResult:
    results = make_comparison(variants=variants)
    generator = random.Random(0)
    languages = ({"language": "de"}, {"language": "en"}, {})
    rows = [
        RowResult(
            id=f"article-{i}",
            labels={"severity": 3.0, "stress": 7.0},
            outputs={variant: [generator.uniform(0, 10), 5.0] for variant in variants},
            errors={variant: i + j / 10 for j, variant in enumerate(variants)},
            predicted={},
            text=f"Article number {i} on markets. " + ATTACK * (i % 2),
            slices={**languages[i % 3], "tier": ATTACK},
        )
        for i in range(num_rows)
    ]
    return results.replace(
        why="the gain of 0.317 is significantly above the margin of 0.2", rows=rows
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        # Chromium's sandbox needs rights that a container, and root, do not have.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_comparison_report(make_results(120), folder=tmp_path_factory.mktemp("report"))
    return path.as_uri()


class Visit:
    """An open page, and all that it did which a report must not do."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.faults: list[str] = []
        self.page = browser.new_page(**options)
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("dialog", lambda dialog: self.faults.append("a dialog opened"))
        self.page.on(
            "request", lambda request: None if request.url == address
            else self.faults.append(request.url),
        )  # fmt: skip
        self.page.goto(address)
        self.page.wait_for_selector("#row-table tbody tr")

    def list_ids(self) -> list[str]:
        return [text.strip() for text in self.page.locator("tr.row > th").all_inner_texts()]

    def is_in_sight(self, selector: str) -> bool:
        box = self.page.locator(selector).first.bounding_box()
        return bool(box) and box["y"] + box["height"] <= self.page.viewport_size["height"]


@pytest.fixture
def visit(browser: Any, report: str) -> Iterator[Visit]:
    visit = Visit(browser, report, viewport=DESKTOP)
    yield visit
    visit.page.close()
    assert visit.faults == []


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE])
def test_verdict_and_why_are_on_the_first_screen(browser: Any, report: str, viewport: Any) -> None:
    visit = Visit(browser, report, viewport=viewport)
    for selector in (".token", ".decision", "h1", "p.why", "ul.reasons"):
        assert visit.is_in_sight(selector), selector
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    visit.page.locator("tr.row button").first.click()
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    visit.page.close()
    assert visit.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_light_and_dark(browser: Any, report: str, scheme: str) -> None:
    visit = Visit(browser, report, viewport=DESKTOP, color_scheme=scheme)
    visit.page.locator("tr.row button").first.click()
    visit.page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert visit.page.evaluate(LOW_CONTRAST) == []
    visit.page.close()


def test_text_from_data_makes_no_element_and_runs_nothing(visit: Visit) -> None:
    page = visit.page
    for button in page.locator("tr.row button").all()[:4]:
        button.click()
    page.select_option("[data-slice='1']", ATTACK)
    assert ATTACK in page.locator("td.opened p").first.inner_text()
    assert page.locator("#planted, main img, td b").count() == 0
    assert page.evaluate("document.scripts.length") == 2


def test_the_largest_errors_of_the_winner_come_first_and_any_column_sorts(visit: Visit) -> None:
    page = visit.page
    assert visit.list_ids()[:2] == ["article-119", "article-118"]
    heads = page.locator("#row-table > thead th")
    heads.nth(0).locator("button").click()
    assert visit.list_ids()[:3] == ["article-0", "article-1", "article-2"]
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"
    heads.nth(0).locator("button").click()
    assert visit.list_ids()[0] == "article-119"
    assert heads.nth(0).get_attribute("aria-sort") == "descending"
    language = heads.filter(has_text="language").locator("button")
    language.click()
    assert visit.list_ids()[0] == "article-0"  # "de"; rows without a language come last
    page.locator("#row-last").click()
    assert visit.list_ids()[-1] == "article-119"
    assert page.locator("#row-page").inner_text() == "101 to 120"


def test_rows_are_filtered_by_text_and_by_slice(visit: Visit) -> None:
    page = visit.page
    page.fill("#row-search", "NUMBER 11")
    assert page.locator("#row-count").inner_text() == "11 of 120 rows"
    page.select_option("[data-slice='0']", "en")
    assert set(visit.list_ids()) == {"article-112", "article-115", "article-118"}
    page.fill("#row-search", "no such text")
    assert page.locator("tr.row").count() == 0
    assert page.locator("#row-next").is_disabled()
    assert "no row matches" in page.locator("#row-table tbody").inner_text()
    page.get_by_role("button", name="clear the filters").click()
    assert page.locator("#row-count").inner_text() == "120 of 120 rows"


def test_classes_show_what_was_predicted_and_who_is_wrong(browser: Any, tmp_path: Path) -> None:
    path = write_comparison_report(make_classified(), folder=tmp_path)
    visit = Visit(browser, path.as_uri(), viewport=DESKTOP)
    heads = visit.page.locator("#row-table > thead th").all_inner_texts()
    assert "label" in heads and "true class" not in heads
    options = visit.page.locator("[data-slice='0'] option").all_inner_texts()
    assert options == ["all", "up to 9", "10 to 20"]  # in the order of the slicing
    assert visit.page.locator("tr.row td small").all_inner_texts().count("loud") == 2
    for outcome, ids in (("1", ["row-1", "row-2"]), ("2", ["row-2", "row-3"]),
                         ("disagree", ["row-1", "row-3"])):  # fmt: skip
        visit.page.select_option("#row-outcome", outcome)
        assert sorted(visit.list_ids()) == ids
    visit.page.close()
    assert visit.faults == []


def test_no_column_of_the_variants_is_out_of_sight(visit: Visit) -> None:
    boxes = visit.page.locator(".scroll").first.evaluate("(e) => [e.scrollWidth, e.clientWidth]")
    assert boxes[0] <= boxes[1]


def test_a_row_opens_by_mouse_and_by_keyboard(visit: Visit) -> None:
    page = visit.page
    page.locator("tr.row td").first.click()
    opened = page.locator("td.opened")
    assert "Article number 119" in opened.inner_text()
    assert opened.locator("tbody th").all_inner_texts()[-1] == "label"
    assert opened.locator("tbody tr").last.locator("td").all_inner_texts() == ["3.00", "7.00", "–"]
    page.locator("tr.row td").first.click()
    assert opened.count() == 0

    page.locator("#row-search").focus()
    for _ in range(40):  # through the filters, the table and its heads
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "article-119":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.ariaExpanded") == "true"
    assert "Article number 119" in opened.inner_text()


def test_without_a_script_everything_else_is_there(browser: Any, report: str) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto(report)
    assert page.get_by_role("heading", name="Rows with the largest errors").is_visible()
    assert not page.locator("#rows").is_visible()
    assert page.get_by_role("heading", name="Side by side").is_visible()
    page.close()


def test_many_rows_of_five_variants_open(browser: Any, tmp_path: Path) -> None:
    """In under 3 seconds on two cores; what is asserted here is that they do."""
    results = make_results(20_000, variants=("a", "b", "c", "d", "e"))
    long = [row.replace(text=row.text + "word " * 300) for row in results.rows]
    results = results.replace(rows=long)
    visit = Visit(browser, write_comparison_report(results, folder=tmp_path).as_uri())
    assert visit.page.locator("tr.row").count() == 50
    assert visit.page.locator("#row-count").inner_text() == "20000 of 20000 rows"
    visit.page.close()
    assert visit.faults == []
