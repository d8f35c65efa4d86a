import html.parser
import json
import re
import shutil
import subprocess

import msgspec
import pytest

pytest.importorskip("vl_convert", reason="charts need vl-convert-python")

from gateway.evaluation.charts import Dot, Frame, Line, draw, specification
from gateway.evaluation.embeddings import Embedder
from gateway.evaluation.figures import number
from gateway.evaluation.findings import Findings, Judged, find
from gateway.evaluation.metrics import score
from gateway.evaluation.page import page
from gateway.evaluation.published import FIGURES, TURN_TEMPERATURES, TURN_VECTORS
from gateway.evaluation.report import ReportOptions, report
from gateway.evaluation.rows import Header, Hot, Sample, Setting, Setup, SweepError
from gateway.evaluation.tiers import Chain, Estimate, Omnibus
from gateway.evaluation.turn import turn_paper
from gateway.evaluation.verify import AtTemperature, Verification
from gateway.evaluation.wire import Refused, Unreachable
from gateway.evaluation.words import BY_SCENARIO, DOUBTS, METRICS, OVERVIEW, TEXT
from tests.evaluation.test_metrics import make_case
from tests.fakes import FakeEngine, Fault

TEMPERATURES = [0.2, 0.6, 1.0]
NASTY = "<script>alert(1)</script> & \"quotes\" | 'x' cat\n```html\n</pre><b>"
SETTING = Setting(
    preset="own",
    title={"en": "My own", "zh": "自己的"},
    fields={"top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0},
    hot=Hot(1.0, {"repetition_penalty": 1.1}),
    default=0.5,
    low=0.3,
    high=0.8,
)
VERIFIED = Verification(
    base_url="http://127.0.0.1:8001",
    model="m-7b",
    preset=None,
    temperatures=[
        AtTemperature(
            asked=0.7,
            chain=Chain(temperature=0.7),
            tier_b=Estimate(z=0.4, temperature=0.71, error=0.02, positions=900, skipped=0),
            tier_c=Omnibus(g=12.0, p=0.41, draws=400, skipped=0),
        ),
        AtTemperature(asked=1.3, problem="the engine gives no top_logprobs"),
    ],
    warmth=None,
).document()


def make_sweep(*, prompts=20, toy=False, scenarios=("own",), model="m-7b"):
    """Quality falls and diversity rises with temperature, for every prompt."""
    cases = [make_case(i, scenario=s, lang=g) for s in scenarios for g in ("zh", "en") for i in range(prompts // 2)]
    setup = Setup(
        model=model,
        temperatures=TEMPERATURES,
        samples=4,
        max_tokens=20,
        seed=1,
        settings=dict.fromkeys(scenarios, SETTING),
        cases=cases,
    )
    header = Header(
        setup=setup, profile="dev", created="2026-01-02T03:04:05+00:00", parameters=7 * 10**9, toy=toy, revision="abc"
    )
    samples = [
        Sample(
            case=case.id, scenario=case.scenario, lang=case.lang, asked=t, temperature=t, sample=i, finish="stop",
            text=NASTY if (t, i) == (1.0, 0) else "a cat" if t < 0.9 else f"cat {i} {case.id}", tokens=9, tail_rate=0.0,
            surprisal=1.0, entropy=0.5 * t + 0.1, params={}, exchange="exchange-1", seconds=0.1,
        )
        for case in cases for t in TEMPERATURES for i in range(4)
    ]  # fmt: skip
    return header, samples


def findings_of(*, verification=None, toy=None, allow_toy=False, **sweep):
    header, samples = make_sweep(**sweep)
    judged = Judged(verification=verification, toy=toy, allow_toy=allow_toy)
    return find(header, samples, score(header, samples), judged)


@pytest.fixture(scope="module")
def findings():
    return findings_of(verification=VERIFIED)


@pytest.fixture(scope="module")
def whole(findings):
    return page(findings)


class Structure(html.parser.HTMLParser):
    """Every element is closed in order; collects what could reach out."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.faults = [], [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.links += re.findall(r"url\([^)]*\)", dict(attrs).get("style") or "")
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append((tag, self.getpos()))


def test_the_page_is_whole_and_reaches_out_to_nothing(whole):
    structure = Structure()
    structure.feed(whole)
    assert structure.faults == []
    assert structure.open == []
    assert structure.links == []
    assert "@import" not in whole
    assert set(re.findall(r"https?://[^\s\"'<)]+", whole)) <= {"http://www.w3.org/2000/svg"}
    assert len(whole) < 1_000_000


def test_what_a_model_wrote_is_text(whole):
    assert "<script>alert" not in whole
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in whole
    assert whole.count("<script>") == 1


def test_both_languages_are_in_it(whole):
    for key in ("title", "glance", "by_scenario", "outputs", "published", "doubts"):
        assert f'lang="en">{TEXT[key].en}<' in whole
        assert f'lang="zh-CN">{TEXT[key].zh}<' in whole
    assert "自己的" in whole
    assert "My own" in whole


def test_the_curves_carry_bands_ranges_and_values(findings, whole):
    assert whole.count("<figure>") == len(BY_SCENARIO) + 1 + len(FIGURES)  # one scenario: no pooled section
    assert whole.count('fill="var(--shade)"') == len(BY_SCENARIO) + 1
    assert "fill-opacity" in whole  # bands: 10 prompts a language
    assert re.search(r"<title>T 0\.2 · zh \d\.\d\d \[\d\.\d\d, \d\.\d\d\] · 10 × 4</title>", whole)
    assert "top_p 0.9, repetition_penalty 1.1 (T &gt; 1)" in whole or "repetition_penalty 1.1 (T > 1)" in whole


def test_a_recommendation_is_drawn_where_there_is_one(findings, whole):
    (advice,) = findings.recommendations
    assert advice.prompts == {"en": 10, "zh": 10}
    drawn = whole.count('fill="var(--good)"')
    assert drawn == (0 if advice.low is None else len(BY_SCENARIO) + 1)
    assert all(reason.split("'")[0][:20] in html.unescape(whole) for reason in advice.reasons)


def test_verification_is_shown_with_its_verdicts(whole):
    assert "0.71 ± 0.02" in whole
    assert "z +0.40 · p 0.410 · n = 900" in whole
    assert "the engine gives no top_logprobs" in whole
    assert 'class="fail"' in whole
    assert 'class="pass"' in whole


def test_no_intervals_and_no_bands_with_few_prompts():
    few = findings_of(prompts=6)
    assert all(point.low is None for point in few.points)
    assert "few_prompts" in few.doubts
    assert [advice.verdict for advice in few.recommendations] == ["insufficient_data"]
    assert "fill-opacity" not in page(few)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_toy_model_is_called_one_everywhere(lang, tmp_path):
    toy = findings_of(prompts=4, toy=True)
    assert toy.doubts[0] == "toy"
    assert toy.recommendations == []
    assert DOUBTS["toy"].say(lang) in html.unescape(page(toy, lang))
    header, samples = make_sweep(prompts=4, toy=True)
    sweep = write_sweep(tmp_path / "s.jsonl", header, samples)
    report(ReportOptions(sweep=sweep, formats=("md",), lang=lang), lambda line: None)
    assert DOUBTS["toy"].say(lang) in (tmp_path / "s.md").read_text()
    assert findings_of(prompts=4, toy=True, allow_toy=True).recommendations
    assert not findings_of(prompts=4, toy=True, allow_toy=False, verification=None).recommendations


def test_a_toy_can_be_overruled():
    overruled = findings_of(prompts=4, toy=True)
    header, samples = make_sweep(prompts=4, toy=True)
    grown = find(header, samples, score(header, samples), Judged(toy=False))
    assert (overruled.toy, grown.toy) == (True, False)
    assert "toy" not in grown.doubts


def write_sweep(path, header, samples):
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in (header, *samples)))
    return path


def test_three_files_from_one_sweep(tmp_path):
    header, samples = make_sweep(prompts=16, scenarios=("own", "creative"))
    sweep = write_sweep(tmp_path / "sweep.jsonl", header, samples)
    (tmp_path / "verified.json").write_text(json.dumps(VERIFIED))
    said = []
    options = ReportOptions(sweep=sweep, out=tmp_path / "sub" / "report.html", verification=tmp_path / "verified.json")
    written = report(options, said.append)
    assert [path.name for path in written] == ["report.html", "report.md", "report.json"]
    found = msgspec.json.decode(written[2].read_bytes(), type=Findings)
    assert found.prompts == {"own": {"zh": 8, "en": 8}, "creative": {"zh": 8, "en": 8}}
    text = written[1].read_text()
    assert "| Quality | Chinese | 16 × 4 |" in text
    assert "[" in text.split("| Quality | Chinese | 16 × 4 |")[1].splitlines()[0]  # its interval
    assert "0.71 ± 0.02" in text
    assert written[0].read_text().count("<figure>") == len(OVERVIEW) + 2 * len(BY_SCENARIO) + 1 + len(FIGURES)


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "expected the output of"), ("{", "verified"), ('{"passed": true}', "expected the output of")],
)
def test_a_verification_that_is_none(tmp_path, content, message):
    sweep = write_sweep(tmp_path / "s.jsonl", *make_sweep(prompts=2))
    (tmp_path / "verified.json").write_text(content)
    with pytest.raises(SweepError, match=message):
        report(ReportOptions(sweep=sweep, verification=tmp_path / "verified.json"), print)


def test_a_sweep_with_nothing_to_compare(tmp_path):
    header, samples = make_sweep(prompts=2)
    sweep = write_sweep(tmp_path / "s.jsonl", header, samples[:3])
    with pytest.raises(SweepError, match="no prompt has two samples at every temperature"):
        report(ReportOptions(sweep=sweep), print)
    with pytest.raises(SweepError, match="No such file"):
        report(ReportOptions(sweep=tmp_path / "absent.jsonl"), print)


# --- pieces


def test_a_chart_is_a_themed_svg():
    dots = [Dot(0.2, 0.3, 0.2, 0.4, "cold"), Dot(1.0, 0.7, 0.6, 0.8, 'hot "<&')]
    svg = draw(
        [Line(dots=dots, colour="var(--zh)")], Frame(x=(0, 1.1), y=(0, 1), shade=(0.3, 5), bar=(0.2, 0.2), rule=0.5)
    )
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert "<title>cold</title>" in svg
    assert "hot" in svg
    for colour in ("var(--zh)", "var(--shade)", "var(--good)", "var(--grid)"):
        assert colour in svg
    assert len(svg) < 12_000


def test_bands_only_where_there_are_intervals():
    with_band = specification([Line(dots=[Dot(0, 1, 0, 2), Dot(1, 1, 0, 2)], colour="red")], Frame(x=(0, 1)))
    without = specification([Line(dots=[Dot(0, 1), Dot(1, 1)], colour="red")], Frame(x=(0, 1)))
    assert len(with_band["layer"]) == len(without["layer"]) + 1


@pytest.mark.parametrize(
    ("value", "metric", "shown"),
    [
        (0.517, "quality", "0.52"),
        (0.336, "rep_4", "34%"),
        (0.0042, "rep_4", "0.4%"),
        (0.0001, "rep_4", "<0.1%"),
        (0.0, "rep_4", "0%"),
    ],
)
def test_numbers_as_they_are_read(value, metric, shown):
    assert number(value, metric) == shown


def test_published_figures_are_complete():
    for figure in FIGURES:
        assert figure.source
        assert set(figure.title) == set(figure.note) == {"en", "zh"}
        for series in figure.series:
            assert len(series.temperatures) == len(series.values)
    renze = FIGURES[0].series[0]
    assert dict(zip(renze.temperatures, renze.values, strict=True))[1.6] == 5
    for turning, vector in TURN_VECTORS:
        assert turn_paper(TURN_TEMPERATURES, vector) == turning


def test_every_metric_has_words_in_both_languages(findings):
    assert {point.metric for point in findings.points} <= set(METRICS)
    for words in (*METRICS.values(),):
        assert all((words.name.en, words.name.zh, words.about.en, words.about.zh))
    assert set(findings.doubts) <= set(DOUBTS)
    assert "diversity_alone" in findings.doubts


def test_embeddings_over_http():
    with FakeEngine.in_thread() as engine:
        embed = Embedder(f"http://127.0.0.1:{engine.port}/v1", engine.models[0])
        vectors = embed(["one", "two", ""])
        assert vectors.shape[0] == 3
        engine.fault = Fault(status=400, body={"error": {"message": "no embeddings here"}})
        with pytest.raises(Refused, match="no embeddings here"):
            embed(["one"])
    with pytest.raises(Unreachable):
        embed(["one"])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
@pytest.mark.parametrize(("lang", "theme"), [("en", "light"), ("zh", "dark")])
def test_a_browser_shows_it_in_the_language_and_theme_asked_for(tmp_path, whole, lang, theme):
    file = tmp_path / "report.html"
    file.write_text(whole)
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --dump-dom"
    )
    command = [
        "chromium",
        *flags.split(),
        f"--user-data-dir={tmp_path / 'profile'}",
        f"file://{file}#lang={lang}&theme={theme}",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert f'data-lang="{lang}"' in dom
    assert f'data-theme="{theme}"' in dom
