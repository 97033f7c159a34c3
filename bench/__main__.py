"""Command line of the harness."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence

import bench
from bench import environment
from bench.cases import CPU_CASES, CPU_TABLES, DRAWN_TABLES, DTYPE_TABLES, GATES, NO_CELL, PLAIN, Case, in_dtype
from bench.options import file_path, one_of, pattern, positive_integer, positive_seconds, thread_count
from bench.peers import PEERS, Peer

INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """All options. The rounds and the time have no default here, because `--quick` changes them."""
    parser = argparse.ArgumentParser(
        "python -m bench", description=bench.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cells = [*GATES, NO_CELL]
    table, cell, peer = one_of("table", CPU_TABLES), one_of("cell", cells), one_of("peer", list(PEERS))

    def add_names(option: str, kind: Callable[[str], str], text: str) -> None:
        parser.add_argument(option, nargs="+", metavar="NAME", type=kind, help=text)

    parser.add_argument("named", nargs="*", type=table, metavar="TABLE", help=f"tables: {', '.join(CPU_TABLES)}; all")
    add_names("--tables", table, "the same, as an option")
    add_names("--cells", cell, f"only these cells: {', '.join(cells)}")
    add_names("--peers", peer, f"only these: {', '.join(PEERS)}; all that are installed")
    parser.add_argument(
        "--dtype",
        choices=("float32", "float64", "bfloat16"),
        help=f"run the cases of {', '.join(DTYPE_TABLES)} in this dtype, and no others; each table's own",
    )
    parser.add_argument("--filter", type=pattern, help="only cases whose name this regular expression finds")
    parser.add_argument("--quick", action="store_true", help="few cases of each table, 5 rounds, half a second a case")
    parser.add_argument("--list", action="store_true", help="print the names of the cases chosen and stop")
    parser.add_argument("--rounds", type=positive_integer, help="most rounds of a case; 15")
    parser.add_argument("--seconds-per-case", type=positive_seconds, help="no round begins after this, save three; 2")
    parser.add_argument(
        "--threads",
        type=thread_count,
        default=min(2, environment.usable_cpus()),
        help="threads of every peer; 2, or 1 on one processor",
    )
    parser.add_argument(
        "--allocator",
        choices=list(environment.ALLOCATORS),
        default="keep",
        help="; ".join(f"{name}: {text}" for name, text in environment.ALLOCATORS.items()) + "; keep",
    )
    parser.add_argument(
        "--processes",
        type=positive_integer,
        default=1,
        help="repeat the run in so many fresh processes and take the medians over them; 1: in this process alone",
    )

    def add_file(option: str, suffix: str, text: str) -> None:
        parser.add_argument(option, type=file_path(suffix), metavar=f"FILE{suffix}", help=text)

    add_file("--output", ".json", "write everything measured to this file")
    add_file("--report", ".md", "write the tables to this file")
    add_file("--plot", ".png", "draw the rooflines of the tables train and infer; needs matplotlib")
    return parser


def choose_cases(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Case]:
    """The cases the options name; none is an error."""
    tables = {*options.named, *(options.tables or [])} or set(CPU_TABLES)
    chosen = [
        case
        for case in (CPU_CASES if options.dtype is None else in_dtype(CPU_CASES, options.dtype))
        if case.table in tables
        and (options.cells is None or case.cell in options.cells)
        and (options.filter is None or options.filter.search(case.name))
        and (case.quick or not options.quick)
    ]
    if not chosen:
        parser.error("no case is left: see --list without --cells, --dtype, --filter and --quick")
    return chosen


def choose_peers(options: argparse.Namespace, cases: Sequence[Case], parser: argparse.ArgumentParser) -> list[Peer]:
    """The peers named, which must all be installed; or all that are. Some case must have one."""
    wanted = [peer for name, peer in PEERS.items() if options.peers is None or name in options.peers]
    present = [peer for peer in wanted if peer.available()]
    missing = [peer.name for peer in wanted if peer not in present]
    if missing and options.peers is not None:
        parser.error(f"--peers: {', '.join(missing)} can't be imported here")
    if all(peer.refuses(case) for peer in present for case in cases):
        parser.error(f"none of these peers runs any of the cases: {', '.join(peer.name for peer in present)}")
    for name in missing:
        print(f"{name} can't be imported here and is left out", file=sys.stderr)
    return present


def check_plot(cases: Sequence[Case], parser: argparse.ArgumentParser) -> None:
    """Whether a plot can be made, told before anything is measured."""
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib")
    if not any(case.table in DRAWN_TABLES and case.cell in PLAIN for case in cases):
        parser.error(f"--plot needs the tables {' or '.join(DRAWN_TABLES)} and the cells {', '.join(PLAIN)}")


def warn(warnings: Sequence[str]) -> None:
    """Warnings go where the progress bar goes, so that the table can be piped."""
    for text in warnings:
        print(f"WARNING: {text}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the harness; 0 if every contestant agreed in every case, 1 if one failed or disagreed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["gpu"]:
        from bench.gpu.command import main as run_gpu

        return run_gpu(arguments[1:])
    parser = make_parser()
    options = parser.parse_args(arguments)
    cases = choose_cases(options, parser)
    if options.list:
        print("\n".join(case.name for case in cases))
        return 0
    if options.plot is not None:
        check_plot(cases, parser)
    warnings = environment.variable_warnings()
    environment.fix_threads(options.threads)
    peers = [peer.name for peer in choose_peers(options, cases, parser)]
    warnings += environment.busy_warnings()
    warn(warnings)

    # NumPy reads the number of threads when it is imported: not before this line.
    from bench import report
    from bench.runner import Settings
    from bench.session import Plan, execute, execute_often

    rounds, seconds = (5, 0.5) if options.quick else (15, 2.0)
    settings = Settings(options.rounds or rounds, options.seconds_per_case or seconds)
    plan = Plan(cases, peers, settings, options.threads, options.allocator)
    results = execute(plan) if options.processes == 1 else execute_often(plan, options.processes)
    print("allocator: {policy} ({meaning})".format(**results.facts["allocator"]))
    print(report.text(results, options.threads))
    late = results.warnings + report.late_warnings(results, options.threads)
    warn(late)
    if options.output is not None:
        report.write_json(options.output, results, options.threads, warnings + late)
    if options.report is not None:
        options.report.write_text(report.markdown(results, options.threads, warnings + late))
    if options.plot is not None:
        from bench.plot import draw

        draw(options.plot, results, options.threads)
    if not results.finished:
        return INTERRUPTED
    return int(any(row.errors for row in results.rows))


if __name__ == "__main__":
    sys.exit(main())
