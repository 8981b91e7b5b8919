"""What is ours against other ways to the same results; time, memory and quality, each with its target.

    python tests/benchmarks SUITE [--only P1,P3] [--repeats 3] [--markdown FILE] [--allow-missing]

Every part runs in a fresh process, with one thread of linear algebra unless it says otherwise, and takes turns between
the two sides. Times are CPU seconds of the process; those of all cores are wall seconds. `number` is the peer's time
over ours where nothing else is said. Exit code 1 where a target is missed or, without --allow-missing, not measured;
what needs a GPU is left out where there is none. The peers are the extra `bench`.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from measuring import Benchmark, Finding, MissingPeerError
from report import Named, print_table, write_markdown

SUITES = ("selection", "features", "training", "labels")
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")


def main() -> int:
    """Measure what the command line asks for."""
    options = _options()
    if options.part:
        _measure(options)
        return 0
    findings: list[Named] = []
    for benchmark in _wanted(options):
        print(f"{benchmark.name}: {benchmark.title}", file=sys.stderr, flush=True)
        findings += _findings_of(benchmark, options)
    print_table(findings)
    if options.markdown:
        write_markdown(findings, options.markdown)
    met = [finding.met for _, finding in findings]
    return int(False in met or (None in met and not options.allow_missing))


def _suite(name: str) -> tuple[Benchmark, ...]:
    benchmarks: tuple[Benchmark, ...] = importlib.import_module(f"{name}.catalogue").BENCHMARKS
    return benchmarks


def _wanted(options: argparse.Namespace) -> list[Benchmark]:
    """The benchmarks that were asked for and that this machine can run."""
    asked = [one for one in _suite(options.suite) if options.only is None or one.name in options.only]
    has_gpu = Path("/dev/nvidia0").exists()
    for benchmark in asked:
        if benchmark.needs_gpu and not has_gpu:
            print(f"{benchmark.name}: left out, no GPU here: {benchmark.title}", file=sys.stderr)
    return [benchmark for benchmark in asked if has_gpu or not benchmark.needs_gpu]


def _findings_of(benchmark: Benchmark, options: argparse.Namespace) -> list[Named]:
    """Run every part of a benchmark in a process of its own."""
    threads = {} if benchmark.threads is None else dict.fromkeys(THREADS, str(benchmark.threads))
    findings = []
    for number in range(len(benchmark.parts)):
        with tempfile.TemporaryDirectory() as folder:
            into = Path(folder) / "findings.json"
            part = f"{benchmark.name}:{number}"
            command = [sys.executable, str(Path(__file__).parent), options.suite, "--part", part, "--into", str(into)]
            command += ["--repeats", str(options.repeats)]
            status = subprocess.run(command, env={**os.environ, **threads}, stdout=sys.stderr, check=False).returncode
            rows = json.loads(into.read_text()) if into.exists() else []
        findings += [Finding(**row) for row in rows]
        if status:
            findings.append(Finding(workload=f"part {number} failed: exit status", number=abs(status), high=0))
    return [(benchmark.name, finding) for finding in findings]


def _measure(options: argparse.Namespace) -> None:
    """Run one part and write what it finds, also what it found before it failed."""
    name, number = options.part.split(":")
    benchmark = next(benchmark for benchmark in _suite(options.suite) if benchmark.name == name)
    findings = []
    try:
        for finding in benchmark.parts[int(number)](options.repeats):
            findings.append(asdict(finding))
            options.into.write_text(json.dumps(findings))
    except MissingPeerError as missing:
        options.into.write_text(json.dumps([*findings, asdict(Finding(workload=benchmark.title, peer=str(missing)))]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tests/benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAMES", help="some of the suite")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side; one that takes long has one")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table there")
    parser.add_argument("--allow-missing", action="store_true", help="peers that are not installed are no failure")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [benchmark.name for benchmark in _suite(options.suite)]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))} in {options.suite}: choose of {','.join(names)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
