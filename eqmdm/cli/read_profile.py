"""The time of a training step by kind of operation, and the device's idle share.

    eqmdm train --dataset digits --steps 60 --run-dir RUN --profile
    eqmdm read-profile RUN

Reads the trace of one log interval that `--profile` wrote. XLA's operations are grouped
by kind; a fusion, which combines several, by the name that XLA gave it. An operation
that contains others, such as a loop, counts only for its own time, without theirs. The
idle share is the part of the time from the first operation to the last in which no
thread of the device runs an operation: the cost of the host's dispatch.
"""

import collections
import dataclasses
import gzip
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .fields import chosen, positional
from .parsing import parse


# The first pattern that matches XLA's name of an operation, on a CPU or a GPU.
_KINDS = {
    "convolution": r"conv(?!ert)|cudnn|implicit_gemm|xmma|wgrad|dgrad",
    # XLA's CPU names for these do not distinguish the two.
    "convolution or product": r"ynn|onednn",
    "matrix product": r"dot|gemm|matmul|cublas",
    "communication": r"all-reduce|all-gather|reduce-scatter|collective|nccl",
    "copy, transpose or pad": r"^(copy|transpose|pad|concatenate|slice|bitcast)",
    "reduction": r"reduce",
    "random number": r"rng|threefry|random",
    "element by element": r"fusion|^(add|subtract|multiply|divide|exponential|select)",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadProfileOptions:
    """Sum the trace of a training by kind of operation."""

    run: Path = positional("RUN")
    """The directory of a run of `eqmdm train --profile`."""
    output: Path | None = chosen("none")
    """A JSON file for the results."""


def kind_of(name: str) -> str:
    matches = (kind for kind, pattern in _KINDS.items() if re.search(pattern, name))
    return next(matches, "other")


def operations(trace: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of the device, each with its own time (`own`), in microseconds."""
    events = [
        event
        for event in trace
        if event.get("ph") == "X" and "hlo_op" in event.get("args", {})
    ]
    threads = collections.defaultdict(list)
    for event in events:
        threads[event["pid"], event["tid"]].append(event)
    for of_thread in threads.values():
        # An event contains those that start within it.
        open_events: list[dict[str, Any]] = []
        for event in sorted(of_thread, key=lambda e: (e["ts"], -e["dur"])):
            while open_events and event["ts"] >= _end(open_events[-1]):
                open_events.pop()
            event["own"] = event["dur"]
            if open_events:
                open_events[-1]["own"] -= event["dur"]
            open_events.append(event)
    return events


def idle_share(events: list[dict[str, Any]]) -> float:
    """The share of time in which no thread runs an operation."""
    busy, end = 0.0, float("-inf")
    ordered = sorted(events, key=lambda event: event["ts"])
    for event in ordered:
        busy += max(0.0, _end(event) - max(end, event["ts"]))
        end = max(end, _end(event))
    return 1 - busy / (end - ordered[0]["ts"])


def _end(event: dict[str, Any]) -> float:
    return event["ts"] + event["dur"]


def run(options: ReadProfileOptions) -> None:
    files = sorted(options.run.glob("profile/**/perfetto_trace.json.gz"))
    if not files:
        sys.exit(
            f"error: RUN must be the directory of a run with --profile; "
            f"{options.run} holds no perfetto_trace.json.gz."
        )
    with gzip.open(files[-1]) as file:
        events = operations(json.load(file)["traceEvents"])
    totals: collections.Counter[str] = collections.Counter()
    names: dict[str, collections.Counter[str]] = collections.defaultdict(
        collections.Counter
    )
    for event in events:
        # XLA appends a number to repeated names.
        name = re.sub(r"[.\d]+$", "", event["name"])
        totals[kind_of(name)] += event["own"]
        names[kind_of(name)][name] += event["own"]
    whole = sum(totals.values())
    print(f"{'kind of operation':24} {'share':>6}  the longest of them")
    results = []
    for kind, time in totals.most_common():
        longest = [name for name, _ in names[kind].most_common(3)]
        results.append({"kind": kind, "share": time / whole, "longest": longest})
        print(f"{kind:24} {time / whole:6.1%}  {', '.join(longest)}")
    idle = idle_share(events)
    print(f"the device is idle for {idle:.1%} of the interval")
    if options.output is not None:
        facts = json.loads((options.run / "options.json").read_text())
        kept = {name: facts[name] for name in ("options", "versions", "device", "seed")}
        # Paths do not affect the results.
        places = "run_dir", "data_dir"
        kept["options"] = {k: v for k, v in kept["options"].items() if k not in places}
        record = {"operations": results, "idle_share": idle} | kept
        options.output.write_text(json.dumps(record, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> None:
    run(parse(ReadProfileOptions, arguments, prog))
