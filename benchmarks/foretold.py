"""What the simulation and the measurements say, told: the check of a run, the one command, its part of docs/scale.md.

Used by benchmarks/simulate.py. Knows where runs are kept and how the page looks; simulates nothing itself.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks import paced, plan, simulate

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- written by benchmarks/simulate.py --all -->", "<!-- end of what is written -->"
STREAMS = plan.STREAMS


def last_document(command: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every line of JSON that a command prints but the last, and the last. Raises CalledProcessError."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines += [json.loads(line)] if line.startswith("{") else []
    if process.returncode or not lines:
        raise subprocess.CalledProcessError(process.returncode, command)
    return lines[:-1], lines[-1]


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """One run: CPU per request, then paced streams through one gateway and through two."""
    now = datetime.now()
    _, overhead = last_document([str(HERE / "overhead.py"), "--seconds", "2", "--reps", str(options.reps)])
    command = [str(HERE / "scaleout.py"), "--streams", options.streams, "--seconds", str(options.seconds)]
    command += ["--reps", str(options.reps), "--engine", paced.ENGINE, "--client", paced.CLIENT]
    rows, summary = last_document(command)
    return {
        "date": now.strftime("%Y-%m-%d %H:%M"),
        "request_us": overhead["requests"]["cpu_us_per_request"],
        "pace": 20,
        "seconds": options.seconds,
        "reps": options.reps,
        "chunks_per_stream": paced.CHUNKS,
        "cores": summary["cores"],
        "rows": rows,
        "summary": {name: summary[name] for name in summary if name != "best"},
    }


def check(path: Path) -> bool:
    """Whether the run is reproduced, told line by line."""
    found = told(json.loads(path.read_text(encoding="utf-8")), path.stem)
    print(json.dumps({"run": path.stem, "tolerance": simulate.TOLERANCE, "good": found[1]}))
    return found[1]


def told(run: Mapping[str, Any], name: str) -> tuple[list[simulate.Line], bool, simulate.Costs]:
    costs = simulate.calibrated(run)
    lines = simulate.compare(run, costs)
    print(f"{name}: {costs}")
    for line in lines:
        role = "test" if line.judged else "calibration" if line.gateways == 1 else "information"
        print(
            f"{line.gateways} gateway(s), {line.name:26} measured {line.measured:9,.0f}  "
            f"simulated {line.simulated:9,.0f}  error {line.error:+7.1%}  ({role})"
        )
    return lines, simulate.passed(lines), costs


def one_worker(streams: int, costs: simulate.Costs) -> dict[str, Any]:
    """So many streams through one worker at the plan's pace; engines and clients have machines of their own."""
    value = {name: figure.value for name, figure in plan.FIGURES.items()}
    pace, chunks = simulate.SECOND / value["chunk_rate"], int(value["reply"])
    # Streams as short as keeps the simulation short; requests cost accordingly less.
    short = 40
    costs = simulate.Costs(costs.gateway, costs.engine, costs.client, costs.request * short / chunks)
    return simulate.simulate(simulate.Setup(streams, pace, costs, (0,), chunks=short, seconds=1.0))


def most(costs: simulate.Costs) -> int:
    """The most streams of which one worker delivers all chunks within half their pace (p99), to 2%."""
    low, high = 100, 200_000
    half = 0.5 * simulate.SECOND / plan.FIGURES["chunk_rate"].value
    guess = 2_000
    while high - low > 0.02 * low:
        low, high = (guess, high) if one_worker(guess, costs)["p99"] <= half else (low, guess)
        guess = min(2 * low, (low + high) // 2)
    return low


def extrapolated(costs: simulate.Costs) -> Iterator[str]:
    """The table for more streams. Workers share nothing, so one of them is simulated."""
    yield "| streams | workers of the plan | streams of one | its core is busy | late: median, p99 ms |"
    yield "|---:|---:|---:|---:|---:|"
    for streams in STREAMS:
        workers = int(plan.needs(streams)["workers"])
        each = math.ceil(streams / workers)
        found = one_worker(each, costs)
        busy = found["cores_used"]["gateways"]
        yield (
            f"| {streams:,} | {workers} | {each:,} | {busy:.0%} | {found['p50'] / 1e3:.2f}, {found['p99'] / 1e3:.2f} |"
        )
    yield ""
    yield (
        f"By the simulation one worker keeps up to {float(f'{most(costs):.2g}'):,.0f} streams (p99 in half the pace); "
        f"the plan gives it {plan.streams_per_worker():,}."
    )


def markdown(run: Mapping[str, Any], name: str, result: tuple[list[simulate.Line], bool, simulate.Costs]) -> str:
    """The page's part about one run."""
    lines, good, costs = result
    rows = [
        f"Run `benchmarks/runs/{name}.json` ({run['date']}, {run['cores']} cores, a chunk every {run['pace']} ms, "
        f"median of {run['reps']}). **{'Passed' if good else 'Not passed'}**"
        + ("." if good else ": nothing is extrapolated from it."),
        "",
        "| gateways | what | measured | simulated | error | |",
        "|---:|---|---:|---:|---:|---|",
    ]
    for line in lines:
        role = "**test**" if line.judged else "calibration" if line.gateways == 1 else "information"
        numbers = f"{line.measured:,.0f} | {line.simulated:,.0f} | {line.error:+.0%}"
        rows.append(f"| {line.gateways} | {line.name} | {numbers} | {role} |")
    rows += [
        "",
        "| streams, gateways | CPU us per chunk: gateways, engine, clients | cores used by others |",
        "|---|---|---:|",
    ]
    for row in run["rows"]:
        used = ", ".join(str(value) for value in row["cpu_us_per_chunk"].values())
        rows.append(f"| {row['streams']:,}, {row['gateways']} | {used} | {row['cores_used']['others']} |")
    summary = run["summary"]
    rows += [
        "",
        f"Two gateways carried {summary['ratio'].get('2', math.nan)} times what one carried; at these costs no "
        + f"more than {summary['highest_ratio_here']} could be seen on {summary['cores']} cores, "
        + f"and two gateways can show their worth on {summary['cores_needed_for_two']}.",
    ]
    if good:
        rows += ["", *extrapolated(costs)]
    return "\n".join(rows)


def keep(options: argparse.Namespace) -> Path:
    """A run, measured and kept."""
    run = measured(options)
    path = plan.RUNS / f"scaleout-{run['date'].replace(' ', '-').replace(':', '')}.json"
    path.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    return path


def page(path: Path) -> bool:
    """docs/scale.md written anew from a run and benchmarks/plan.py; whether the simulation passed."""
    run = json.loads(path.read_text(encoding="utf-8"))
    result = told(run, path.stem)
    part = markdown(run, path.stem, result)
    text = plan.page(plan.PAGE.read_text(encoding="utf-8"))
    before, rest = text[: text.index(BEGIN)], text[text.index(END) :]
    plan.PAGE.write_text(f"{before}{BEGIN}\n\n{part}\n\n{rest}", encoding="utf-8")
    print(part)
    print(json.dumps({"run": path.stem, "tolerance": simulate.TOLERANCE, "good": result[1]}))
    return result[1]
