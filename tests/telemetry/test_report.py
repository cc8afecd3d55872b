"""The report is one well-formed, self-contained, reproducible page for every kind of run."""

import math
import os
import re
from html.parser import HTMLParser

import pytest

from moesaic.config.run import RunConfig
from moesaic.telemetry.metrics import MetricsFile, read_metrics
from moesaic.telemetry.report import format_setting, tabulate_config, write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}
SUMMARY = {
    "baselines": {"unigram": 6.31, "bigram": 4.12},
    "samples": [{"prompt": "def ", "text": "f(x):\n    return x"}],
}


class PageReader(HTMLParser):
    """Checks that tags nest, and collects headings, ids and attributes."""

    def __init__(self, page):
        super().__init__()
        self.open_tags, self.tags, self.headings, self.attributes = [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open_tags

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open_tags.pop() == tag

    def handle_data(self, data):
        if self.open_tags and self.open_tags[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


@pytest.fixture
def write(tmp_path, fake_config):
    """A function that writes a report and returns its page."""

    def write(rows, summary=SUMMARY, config=fake_config, run_name="tiny"):
        write_report(run_name, rows, config, summary, tmp_path / "report.html")
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return write


def test_page_of_a_moe_run_has_every_section_in_order(write, fake_rows):
    page = PageReader(write(fake_rows()))
    assert page.headings == [
        "tiny",
        *("Loss", "Cross-entropy of the next token"),
        *("Speed and optimizer", "Speed", "Learning rate", "Gradient norm"),
        *("Expert load over time", "Layer 0", "Layer 1"),
        *("Expert load at the end", "All MoE layers, step 37"),
        *("Balance over time", "Worst overload (MaxVio)", "Load entropy", "Balance loss", "Router z-loss"),
        "Samples",
        *("Settings", "model", "optim"),
    ]


def test_page_of_a_dense_run_does_not_speak_of_experts(write, fake_rows):
    page = write(fake_rows(num_layers=0), config={"train": {"steps": 40}})
    assert "expert" not in page.lower()
    assert "balance" not in page.lower()


@pytest.mark.parametrize("num_layers", [0, 2])
@pytest.mark.parametrize("held_out_every", [0, 1])
def test_run_of_one_step_renders(write, fake_rows, num_layers, held_out_every):
    page = write(fake_rows(1, num_layers=num_layers, held_out_every=held_out_every), {})
    assert "1 step over" in page
    PageReader(page)


def test_run_without_a_step_renders(write):
    page = write([], {})
    assert "No step was recorded." in page
    assert PageReader(page).headings == ["tiny", "Settings", "model", "optim"]


def test_diverged_run_renders_from_its_file(write, fake_rows, tmp_path):
    rows = fake_rows()
    for row in rows[20:]:
        row["loss"] = row["grad_norm"] = math.nan
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        for row in rows:
            file.append(row)
    page = write(read_metrics(tmp_path / "metrics.jsonl"))
    assert "Loss" in PageReader(page).headings
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)


def test_equal_input_gives_equal_bytes(write, fake_rows):
    assert write(fake_rows()) == write(fake_rows())


def test_every_chart_has_a_title_and_a_description(write, fake_rows):
    page = write(fake_rows())
    charts = re.findall(r"<svg[^>]*role=\"img\"[^>]*>.{0,200}", page)
    assert len(charts) >= 10
    assert all(re.search(r'aria-label="[^"]{20,}"><title>[^<]+</title>', chart) for chart in charts)


def test_ids_are_unique(write, fake_rows):
    ids = [value for key, value in PageReader(write(fake_rows())).attributes if key == "id"]
    assert len(ids) == len(set(ids))


def test_page_holds_everything_it_shows(write, fake_rows):
    page = write(fake_rows())
    assert re.findall(r"https?://\S{0,40}", page) == []
    assert not {"script", "link", "iframe"} & set(PageReader(page).tags)
    outside = [
        value
        for key, value in PageReader(page).attributes
        if key in ("src", "href", "xlink:href") and not value.startswith(("#", "data:image/png;base64,"))
    ]
    assert outside == []
    assert "@import" not in page


def test_text_of_others_is_escaped(write, fake_rows):
    attack = "<script>alert(1)</script>\"'&"
    page = write(
        fake_rows(),
        {"samples": [{"prompt": attack, "text": attack}], "baselines": {attack: 4.0}},
        {attack: {attack: attack, "list": [attack]}},
        attack,
    )
    assert "<script" not in page
    assert "script" not in PageReader(page).tags
    assert page.count("&lt;script&gt;alert(1)") >= 8


@pytest.mark.parametrize(("clip_norm", "is_told"), [(0, False), (0.5, True)])
def test_page_tells_clipping_only_when_a_resolved_recipe_clips(write, fake_rows, clip_norm, is_told):
    model = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    recipe = RunConfig.model_validate(
        {
            "model": model | {"intermediate_size": 24},
            "data": {"source": "text.txt"},
            "train": {"out": "runs/first", "steps": 40, "batch_size": 8},
            "optim": {"clip_norm": clip_norm},
        }
    )
    assert ("Clipped above" in write(fake_rows(), config=recipe.model_dump(mode="json"))) == is_told


@pytest.mark.parametrize("run_name", ["", ".", "..", "../.."])
def test_title_is_the_folder_of_the_report_when_the_name_says_nothing(write, tmp_path, monkeypatch, run_name):
    assert PageReader(write([], run_name=run_name)).headings[0] == tmp_path.name
    monkeypatch.chdir(tmp_path)
    write_report(run_name, [], {}, {}, "report.html")
    assert f"<h1>{tmp_path.name}</h1>" in (tmp_path / "report.html").read_text()


def test_report_before_stays_whole_when_the_next_cannot_be_written(write, tmp_path, monkeypatch):
    before = write([], run_name="before")

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write([], run_name="after")
    assert (tmp_path / "report.html").read_text() == before
    assert os.listdir(tmp_path) == ["report.html"]


def test_sample_keeps_its_white_space(write, fake_rows):
    assert '<div class="sample"><b>def </b>f(x):\n    return x</div>' in write(fake_rows())


def test_settings_are_told_section_by_section(fake_config):
    (run, model, optim) = tabulate_config({**fake_config, "version": 1})
    assert (run.title, run.settings) == ("run", [("version", "1")])
    assert dict(model.settings)["head_dim"] == "unset"
    assert dict(optim.settings)["betas"] == "[0.9, 0.95]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unset"),
        (True, "true"),
        ("adamw", "adamw"),
        (1e-8, "1e-08"),
        ([{"source": "ü"}], '[{"source": "ü"}]'),
    ],
)
def test_setting_is_told_as_a_recipe_writes_it(value, text):
    assert format_setting(value) == text


@pytest.mark.slow
def test_page_of_a_long_run_of_a_wide_model_stays_below_two_megabytes(write, fake_rows):
    rows = fake_rows(100_000, num_layers=0, held_out_every=100)
    shares = {str(layer): [1 / 256 + (expert % 7 - 3) / 9e3 for expert in range(256)] for layer in range(32)}
    for index, row in enumerate(rows):
        row |= {"balance_loss": 1.1, "max_violation": 0.4 + index % 10 / 100}
        if index % 1000 == 0:
            row["expert_load"] = {"layers": shares}
    assert len(write(rows)) < 2_000_000
