"""The report is one file that holds everything, asks for nothing, and shows texts as texts."""

import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evaluation.studies import absent, grid, picture, result, study
from handful.evaluation.evaluate import Failure
from handful.evaluation.study import Decisions, Study
from handful.reports.paper_tables import markdown
from handful.reports.study_page import write_html

NASTY = '<script>alert("x")</script> & <img src=http://evil.example/x.png onerror=alert(1)> \'"'
VOID = {"meta", "img", "br", "link", "input", "hr"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Every element with its attributes, and what is written in each; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def says(self, words: str) -> bool:
        return words in re.sub(r"\s+", " ", " ".join(text for _, text in self.texts))


def written(one: Study, folder: Path) -> tuple[Page, str]:
    write_html(one, folder / "report.html")
    text = (folder / "report.html").read_text("utf-8")
    return Page(text), text


def full(**changes: object) -> Study:
    rows = grid(
        ["fate", "unet"],
        lambda configuration, n, case: 0.5 + 0.05 * n + 0.01 * case + (0.1 if configuration == "fate" else 0),
    )
    rows += grid(["by an annotator"], lambda configuration, n, case: 0.9, annotator="box")
    rows += [result(configuration="unet", shots=4, case="case-9", dice=0.0, status="missed", name="spleen", label=2)]
    rows += [
        result(configuration="fate", shots=4, case="case-9", dice=0.0, status="false_positive", name="kidney", label=3)
    ]
    about: dict[str, object] = {"pictures": (picture(), picture("case-1", 0.2), picture("case-2", 0.3)), "trials": 30}
    return study(rows, **about | {"done": 27} | changes)


def test_the_report_contains_all_of_a_study(tmp_path: Path):
    page, _ = written(full(), tmp_path)
    sections = [attributes["id"] for attributes in page.named("section")]
    assert sections == ["curves", "table", "tests", "labels", "worst", "failures", "cost", "origin"]
    assert [attributes["href"] for attributes in page.named("a")] == [f"#{key}" for key in sections]
    assert page.says("handful experiment run plan.toml -o out")
    assert page.says("Not complete: 27 of 30 fits done.")
    assert page.says("upper bounds for that amount of work, not automatic results")
    assert page.says("case-9 spleen missed")
    assert page.says("case-9 kidney false_positive")


def test_the_report_shows_what_fits_decided(tmp_path: Path):
    chosen = Decisions("hearts", "fate", 4, 0, ("chosen: unet", "no unlabelled scans"))
    others = (replace(chosen, shots=1, sentences=("of fewer cases",)), replace(chosen, split=2, sentences=("third",)))
    page, _ = written(full(decisions=(*others, chosen)), tmp_path)
    assert page.says("hearts fate chosen: unet no unlabelled scans")
    assert not page.says("of fewer cases")
    assert not page.says("third")


def test_the_report_loads_nothing_from_the_network(tmp_path: Path):
    page, text = written(full(), tmp_path)
    without_pictures = re.sub(r"data:image/webp;base64,[\w+/=]*", "", text)
    assert re.findall(r"https?:|//[a-z]", without_pictures) == []
    assert {name for name, _ in page.tags} & {"script", "link", "iframe", "object", "audio", "video"} == set()
    assert all(str(image["src"]).startswith("data:image/webp;base64,") for image in page.named("img"))
    policy = next(one["content"] for one in page.named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_names_are_displayed_as_text_and_never_as_markup(tmp_path: Path):
    rows = grid([NASTY, "other"], lambda configuration, n, case: 0.5 + 0.01 * case, data_set=NASTY, name=NASTY)
    rows.append(
        result(
            configuration="other",
            data_set=NASTY,
            case=NASTY,
            dice=0.0,
            status="missed",
            failure=NASTY,
            name=NASTY,
            shots=4,
        )
    )
    shown = replace(picture(NASTY, configuration=NASTY), data_set=NASTY)
    nasty = study(rows, title=NASTY, command=NASTY, failed=(Failure(NASTY, NASTY),), pictures=(shown,))
    page, text = written(nasty, tmp_path)
    assert not page.named("script")
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert [image["alt"] for image in page.named("img")] == [f"{NASTY}, case {NASTY}: prediction and reference"]
    assert text.count("</html>") == text.count("</body>") == 1
    assert {"h1", "pre", "title", "figcaption", "td"} <= {where for where, said in page.texts if said.startswith(NASTY)}


def test_a_name_that_unicode_cannot_encode_does_not_stop_the_report(tmp_path: Path):
    page, _ = written(study([result(case="scan-\udcff", status="missed", dice=0.0)]), tmp_path)
    assert page.says("scan-?")


def test_curves_have_a_point_for_every_number_of_shots(tmp_path: Path):
    page, _ = written(full(), tmp_path)
    lines = [str(one["points"]).split() for one in page.named("polyline")]
    assert [len(points) for points in lines] == [3] * 6  # three configurations, Dice and HD95
    charts = [one["aria-label"] for one in page.named("svg") if one.get("role") == "img"]
    assert charts[:2] == ["Dice over the number of labelled cases", "HD95 over the number of labelled cases"]
    assert page.says("fate, 4 labelled: Dice 0.")


def test_higher_scores_are_plotted_higher(tmp_path: Path):
    page, _ = written(study(grid(["fate"], lambda configuration, n, case: 0.1 + 0.2 * n + 0.001 * case)), tmp_path)
    heights = [float(point.split(",")[1]) for point in str(page.named("polyline")[0]["points"]).split()]
    assert heights == sorted(heights, reverse=True)


def test_only_the_worst_cases_have_pictures(tmp_path: Path):
    page, _ = written(full(), tmp_path)
    assert [image["alt"] for image in page.named("img")] == [
        f"fate, case {case}: prediction and reference" for case in ("case-0", "case-1")
    ]


def test_sure_differences_are_shaded_and_others_not(tmp_path: Path):
    def score(configuration: str, n: int, case: int) -> float:
        return 0.5 + 0.01 * case + {"clear": 0.2, "base": 0.0, "noise": 0.003 * (-1) ** case}[configuration]

    page, _ = written(study(grid(["base", "clear", "noise"], score)), tmp_path)
    cells = {str(one["title"]).split(":")[0]: one.get("class") for one in page.named("td") if one.get("title")}
    assert cells == {"base minus clear": "sure", "base minus noise": None, "clear minus noise": "sure"}


def test_configurations_without_a_case_in_common_have_no_difference(tmp_path: Path):
    one = study([absent(configuration="a"), result(configuration="b", status="false_positive", dice=0.0)])
    page, text = written(one, tmp_path)
    assert page.says("a – –")
    assert not re.search(r"\bnan\b", text)
    assert "| a − b | 0 | – | – | – |" in markdown(one)


def test_the_page_says_how_many_failures_it_leaves_out(tmp_path: Path):
    rows = [result(case=f"{case}", status="missed", dice=0.0, failure="no signal") for case in range(33)]
    page, text = written(study(rows), tmp_path)
    assert text.count("Not segmented: fate") == 30
    assert page.says("And 3 more not segmented; all are in results.csv.")


def test_a_study_of_nothing_is_a_page_all_the_same(tmp_path: Path):
    page, _ = written(Study(title="Nothing", results=(), command="handful compare"), tmp_path)
    assert page.says("Nothing has been measured yet.")
    assert page.says("handful compare")


@pytest.mark.parametrize("one", [study([result()]), study([result(status="missed", dice=0.0, unit="pixel")])])
def test_a_study_of_one_row_is_a_page(one: Study, tmp_path: Path):
    page, _ = written(one, tmp_path)
    assert page.says("fate")


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_whole_on_a_phone_and_on_a_desk(width: int, scheme: str, tmp_path: Path):
    playwright = pytest.importorskip("playwright.sync_api")
    rows = grid(
        [NASTY, "a configuration with a long name that goes on"], lambda configuration, n, case: 0.5 + 0.01 * case
    )
    write_html(study(rows, title=NASTY, pictures=(picture(NASTY, configuration=NASTY),)), tmp_path / "report.html")
    asked: list[str] = []
    trouble: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.set_default_timeout(240_000)
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: trouble.append(message.text))
        tab.on("dialog", lambda dialog: trouble.append("a dialog"))
        tab.goto((tmp_path / "report.html").as_uri())
        reach = tab.evaluate("document.documentElement.scrollWidth")
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        images = tab.evaluate("[...document.images].map(image => image.naturalWidth)")
        browser.close()
    assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
    assert trouble == []
    assert reach == width
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
    assert images == [24]
