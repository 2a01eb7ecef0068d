"""The report page in headless Chromium: nothing is loaded or executed, search, order, player and charts work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from evaluation.report.__main__ import main
from tests.report_browser import check_report, check_width, needs_chromium, opened_page, shown, started_browser

pytestmark = needs_chromium
HOSTILE = [
    "<script>window.executed = 1</script>",
    '</script><img src=x onerror="window.executed = 1">',
    '"><svg/onload=window.executed=1> {{ 7 * 7 }} $$x$$ @{y}',
    "</ol></section><iframe src='javascript:parent.executed = 1'></iframe> \u202e\ud800 end",
]


@pytest.fixture(scope="module")
def page_file(programs, chain, tmp_path_factory) -> Path:
    """The page of a real evaluated run: its first samples, its classes and its name are replaced by hostile texts."""
    trained = tmp_path_factory.mktemp("browser") / "diff"
    shutil.copytree(chain / "diff", trained)
    shutil.rmtree(trained / "evaluation", ignore_errors=True)  # of other tests, which share the run
    assert programs.again("diffusion", trained, "--eval --num_samples 40") == 0
    folder = trained.rename(trained.with_name("<img src=x onerror=executed=1>"))
    evaluation = folder / "evaluation"
    path = evaluation / "eval-valid-seed42-greedy-samples.json"
    samples = json.loads(path.read_text())
    path.write_text(json.dumps(HOSTILE + samples[len(HOSTILE) :]))
    names = HOSTILE[:2]
    shares = {"classes": [0, 1], "mauve": {HOSTILE[0]: [[1, 0], [0, 1]]}, "predicted_shares": [[1, 0, 0], [0, 1, 0]]}
    (evaluation / "eval-valid-classes.json").write_text(json.dumps({"class_names": names, HOSTILE[1]: shares}))
    pair = {"source": HOSTILE[0], "reference": HOSTILE[1], "sample": HOSTILE[2], "chosen": HOSTILE[3]}
    (evaluation / "eval-valid-seed42-greedy-pairs.json").write_text(json.dumps([pair | {"candidates": HOSTILE}]))
    trajectory = json.loads((evaluation / "trajectory.json").read_text())
    trajectory["views"][0]["texts"][0] = HOSTILE[0]
    (evaluation / "trajectory.json").write_text(json.dumps(trajectory))
    assert main([str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with started_browser() as started:
        yield started


@pytest.fixture
def open_page(browser, page_file):
    """A function: options of a context -> the loaded page. Afterwards: no error, no request, nothing executed."""
    with ExitStack() as stack:
        yield lambda file=page_file, **options: stack.enter_context(opened_page(browser, file, **options))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_fits_and_draws_its_charts(width, scheme, open_page):
    page = open_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    check_width(page, width)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")


def test_search_filters_and_order_sorts(open_page, page_file):
    page = open_page()
    samples = json.loads((page_file.parent / "evaluation/eval-valid-seed42-greedy-samples.json").read_text())
    assert len(shown(page)) == 25 and page.locator("#samples [data-count]").inner_text() == "25 of 40 texts"
    page.locator("#samples [data-more]").click()
    assert len(shown(page)) == 40 and not page.locator("#samples [data-more]").is_visible()

    page.locator("#samples [data-search]").fill("WINDOW.executed svg")
    assert len(shown(page)) == 1 and "svg/onload" in shown(page)[0]
    assert "1 found in 40" in page.locator("#samples [data-count]").inner_text()
    page.locator("#samples [data-search]").fill("no such text anywhere")
    assert shown(page) == []
    page.locator("#samples [data-search]").fill("")

    page.locator("#samples [data-sort]").select_option("words")
    page.locator("#samples [data-more]").click()

    def lengths() -> list[int]:
        return [int(row.get_attribute("data-words")) for row in page.locator("#samples [data-row]:visible").all()]

    falling = lengths()
    assert len(falling) == len(samples) and falling == sorted(falling, reverse=True)
    page.locator("#samples [data-direction]").click()
    page.locator("#samples [data-more]").click()
    assert lengths() == sorted(falling)


def test_the_player_moves(open_page):
    page = open_page()
    player = page.locator("[data-player]")
    slider, output = player.locator("input"), player.locator("output")
    assert player.locator("[data-step]:visible").count() == 1
    assert "step 2 of 2" in output.inner_text()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert "step 1 of 2" in output.inner_text()
    assert HOSTILE[0] in player.locator("[data-step]:visible p.sample").first.inner_text()
    player.locator("[data-play]").click()
    player.locator("output", has_text="step 2 of 2").wait_for()
    player.locator("[data-play]", has_text="▶").wait_for()


def test_hostile_texts_are_shown_as_texts(open_page):
    page = open_page()
    texts = "\n".join(shown(page))
    for text in HOSTILE[:3]:
        assert text in texts
    assert HOSTILE[0] in page.locator("#pairs").inner_text()
    assert page.locator("iframe, img[src=x], section svg[onload]").count() == 0
    assert page.locator("#samples mark, #samples .row").count() > 0
    assert "onerror=executed=1" in page.locator("header").inner_text()


def test_a_click_on_the_legend_hides_a_line(open_page):
    page = open_page()
    figure = page.locator("figure", has=page.locator("[data-plot='loss']"))
    figure.scroll_into_view_if_needed()
    page.wait_for_selector("[data-plot='loss'][data-drawn]")
    button = figure.locator("[data-series]").first
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    visible = """[...Bokeh.documents].flatMap((document) => [...document._all_models.values()])
        .filter((model) => model.type === "GlyphRenderer" && !model.visible).length"""
    assert page.evaluate(visible) >= 1
    button.click()
    assert page.evaluate(visible) == 0


def test_everything_can_be_read_without_javascript(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("#samples [data-row]:visible").count() == 40
    assert page.locator("[data-player] [data-step]:visible").count() == 2
    images = page.locator("[data-plot] img:visible")
    assert images.count() == page.locator("[data-plot]").count() > 5
    assert page.locator(".toolbar:visible, .controls:visible, [data-more]:visible").count() == 0
    box = images.first.bounding_box()
    assert box and box["width"] > 200 and box["height"] > 80


@pytest.mark.slow
def test_the_page_of_a_real_corpus_with_classes(browser, open_page, programs, tmp_path):
    corpus = Path(os.environ.get("DATA_DIR", "")) / "ag_news"
    if not (corpus / "train.jsonl").is_file():
        pytest.skip("ag_news is not in DATA_DIR")
    for split, count in {"train": 800, "valid": 200, "test": 200}.items():
        lines = (corpus / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:count]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    own = type(programs)(tmp_path, programs.scorer)
    assert own.pretrain(tmp_path / "lm", "--vocab_size 2000 --num_train_steps 20") == 0
    assert own.autoencoder(tmp_path / "lm", tmp_path / "ae", "--l2_normalize_latents") == 0
    flags = "--class_conditional"
    assert own.diffusion(f"--latent_model_path {tmp_path / 'ae'}", tmp_path / "diff", flags) == 0
    assert own.again("diffusion", tmp_path / "diff", "--eval --class_id all --num_samples 8") == 0
    assert main([str(tmp_path / "diff")]) == 0

    page = open_page(tmp_path / "diff/report.html")
    assert page.locator("#samples [data-row]").count() == 8 * 4
    page.locator("#samples [data-set]").select_option("2")
    assert page.locator("#samples [data-row]:visible").count() == 8
    for chart in page.locator("#classes [data-plot]").all():
        chart.scroll_into_view_if_needed()
    page.wait_for_selector("#classes [data-plot]:not([data-drawn])", state="detached")
    assert page.locator("#classes [data-plot][data-drawn]").count() >= 3
    assert page.locator("[data-player] .chip:visible").count() == 6  # the class of each text
    check_report(browser, tmp_path / "diff/report.html")
