"""`report`: from a sweep's file to a page, a Markdown text and a JSON document.

Knows files and options. Does NOT know metrics, wording or HTML.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from gateway.evaluation.embeddings import Embedder
from gateway.evaluation.findings import Judged, find, read_verification
from gateway.evaluation.metrics import score
from gateway.evaluation.page import page
from gateway.evaluation.progress import Say
from gateway.evaluation.rows import SweepError, read_rows
from gateway.evaluation.study import Objective, Options
from gateway.evaluation.text import markdown

Format = Literal["html", "md", "json"]


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`out` is the file without its ending (None: the sweep's own name); `lang` the language shown first, and that of
    the Markdown ("auto": English). `verification` is a file that `verify --json` wrote."""

    sweep: Path
    out: Path | None = None
    formats: tuple[Format, ...] = ("html", "md", "json")
    lang: Literal["auto", "en", "zh"] = "auto"
    verification: Path | None = None
    objective: Objective = "max_diversity_st_quality"
    allow_toy: bool = False
    toy: bool | None = None
    embeddings_url: str | None = None
    embeddings_model: str = ""
    embeddings_key: str | None = None


def report(options: ReportOptions, say: Say) -> list[Path]:
    """Write the report's files and return their paths. Raises SweepError, or ClientError for embeddings."""
    header, samples = read_rows(options.sweep)
    embed = None
    if options.embeddings_url is not None:
        embed = Embedder(options.embeddings_url, options.embeddings_model, options.embeddings_key)
    say(f"{len(samples)} samples of {header.setup.model}: scoring")
    scored = score(header, samples, embed)
    if not scored.cases:
        raise SweepError(f"{options.sweep}: no prompt has two samples at every temperature yet")
    judged = Judged(
        verification=_verification(options.verification),
        toy=options.toy,
        allow_toy=options.allow_toy,
        options=Options(objective=options.objective),
    )
    findings = find(header, samples, scored, judged)
    stem = options.out or options.sweep.with_suffix("")
    stem = stem.with_suffix("") if stem.suffix in (".html", ".md", ".json") else stem
    written = []
    for kind in options.formats:
        path = stem.with_name(f"{stem.name}.{kind}")
        if kind == "html":
            content = page(findings, options.lang).encode()
        elif kind == "md":
            content = markdown(findings, "zh" if options.lang == "zh" else "en").encode()
        else:
            content = findings.json()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        say(f"{path} ({len(content) / 1000:.0f} kB)")
        written.append(path)
    return written


def _verification(path: Path | None) -> dict[str, object] | None:
    if path is None:
        return None
    try:
        return read_verification(path.read_bytes())
    except OSError as error:
        raise SweepError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SweepError(f"{path}: {error}") from error
