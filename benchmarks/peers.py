"""Against other spiking libraries: one network, same images, spike times and weights.

    bash benchmarks/peers_env.sh                        # once
    python -m benchmarks.peers --data_dir=DIR [--write]
    python -m benchmarks.peers --data_dir=DIR --plot [--write]

64C3-P2-128C3-P2-10 on MNIST. Each library runs in a process of its own, and for each of
them one of ours beside it: they take turns, so that a ratio is of times taken under the
same conditions. Prints Markdown; `--write` also writes it to `benchmarks/results`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import ds4nn_jax as ds
from benchmarks.engines import machine
from benchmarks.peers_models import with_ours
from ds4nn_jax import data

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SPEC = "64C3-P2-128C3-P2-10"
MIB = 2**20
EXHAUSTED = ("llocate memory", "MemoryError", "EXHAUSTED", "bad_alloc", "ut of memory")


@dataclasses.dataclass(frozen=True)
class Library:
    """A module of `peers_models`, and which of its ways to run the network."""

    name: str
    module: str
    variant: str


OURS = {
    engine: Library(f"ds4nn_jax, {engine}", "with_ours", engine)
    for engine in ("event", "scan", "auto")
}
PEERS = {
    "snntorch": Library("snnTorch", "with_snntorch", "loop"),
    "snntorch-layers": Library("snnTorch, by layer", "with_snntorch", "layers"),
    "spikingjelly": Library("SpikingJelly", "with_spikingjelly", "multi-step"),
    "spikingjelly-timing": Library(
        "SpikingJelly, timing_based", "with_spikingjelly_timing", "cubic"
    ),
    "spyx": Library("spyx", "with_spyx", "scan"),
    "jaxpike": Library("jaxpike", "with_jaxpike", "unroll"),
    "jaxpike-checkpointed": Library(
        "jaxpike, checkpointed", "with_jaxpike", "checkpointed"
    ),
}


class Failed(Exception):
    """A library could not do what was asked; the reason is its message."""


class Worker:
    """A process of `peers_models/worker.py`, asked over pipes."""

    def __init__(self, library: Library, inputs: Path, args: argparse.Namespace):
        ours = library.module == "with_ours"
        python = sys.executable if ours else str(args.peers_python)
        script = HERE / "peers_models" / "worker.py"
        self.limit, self.gibibytes = args.limit, args.memory
        self.process = subprocess.Popen(
            [python, script, library.module, inputs, f"{args.memory:.1f}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if args.verbose else subprocess.DEVNULL,
            text=True,
        )

    def ask(self, do: str, **arguments) -> dict:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
        stream = self.process.stdout
        if not select.select([stream], [], [], self.limit)[0]:
            raise Failed(f"took longer than {self.limit:.0f} s")
        answer = stream.readline()
        if not answer:
            raise Failed(
                f"ended by status {self.process.wait()}, "
                f"memory limited to {self.gibibytes:.0f} GiB"
            )
        answer = json.loads(answer)
        error = answer.get("error", "")
        if any(word in error for word in EXHAUSTED):
            raise Failed(f"does not fit into {self.gibibytes:.0f} GiB")
        if error:
            raise Failed(error)
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def in_turns(workers: list[Worker], kind: str, seconds: float):
    """Median s of a step of each; the first of each compiles and does not count.

    And whether the last one's steps differ more than twofold, which is to say that
    something else ran. At least three turns, but no more once a minute is spent.
    """
    for worker in workers:
        worker.ask(kind, seconds=0)
    taken = [[] for _ in workers]
    turns, spent = 0, 0.0
    while spent < seconds or (turns < 3 and spent < 60):
        for worker, times in zip(workers, taken, strict=True):
            times += worker.ask(kind, seconds=seconds / 8)["times"]
        turns, spent = turns + 1, max(map(sum, taken))
    unsteady = max(taken[-1]) > 2 * min(taken[-1])
    return [statistics.median(times) for times in taken], unsteady


@dataclasses.dataclass
class Row:
    """A peer and ours beside it, at one batch: images/s, bytes; or why not."""

    name: str
    batch: int
    train: float | None = None
    infer: float | None = None
    our_train: float | None = None
    our_infer: float | None = None
    memory: dict | None = None
    our_memory: dict | None = None
    unsteady: bool = False
    failed: str = ""


def measure(peer: Library, batch: int, inputs: Path, versions: dict, args) -> Row:
    row = Row(peer.name, batch)
    ours = OURS[args.engine]
    with Worker(ours, inputs, args) as our, Worker(peer, inputs, args) as their:
        for library, worker in ((ours, our), (peer, their)):
            try:
                built = worker.ask(
                    "build", batch=batch, steps=args.steps, variant=library.variant
                )
            except Failed as reason:
                row.failed = f"{library.name}: {reason}"
                return row
            versions.update(built["versions"])
        failed = {}
        for kind in ("train", "infer"):
            try:
                (mine, other), unsteady = in_turns([our, their], kind, args.seconds)
            except Failed as reason:
                failed.setdefault(str(reason), kind)
                continue
            setattr(row, f"our_{kind}", batch / mine)
            setattr(row, kind, batch / other)
            row.unsteady |= unsteady
            if kind == "train":
                row.our_memory, row.memory = our.ask("memory"), their.ask("memory")
        row.failed = "; ".join(f"{kind}: {reason}" for reason, kind in failed.items())
    return row


def number(x: float | None) -> str:
    """Three significant digits, thousands separated."""
    if x is None:
        return "–"
    if x >= 100:
        return f"{float(f'{x:.3g}'):,.0f}"
    return f"{x:.2f}" if x < 10 else f"{x:.1f}"


def mebibytes(memory: dict | None, key: str) -> str:
    size = (memory or {}).get(key)
    return "–" if size is None else number(size / MIB)


def ratio(ours: float | None, theirs: float | None) -> str:
    return number(ours / theirs) if ours and theirs else "–"


def middle(values) -> float | None:
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def tables(rows: list[Row], ours: str, batches: list[int]) -> list[str]:
    lines = [
        "| library | batch | training, images/s | ours / it | inference, images/s "
        "| ours / it | peak memory, MiB | XLA temporary, MiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for batch in batches:
        beside = [row for row in rows if row.batch == batch]
        train = middle(row.our_train for row in beside)
        infer = middle(row.our_infer for row in beside)
        memory = next((row.our_memory for row in beside if row.our_memory), None)
        lines.append(
            f"| **{ours}** | {batch} | {number(train)} | 1 | {number(infer)} | 1 "
            f"| {mebibytes(memory, 'peak')} | {mebibytes(memory, 'temporary')} |"
        )
        for row in beside:
            lines.append(
                f"| {row.name}{' †' * row.unsteady} | {batch} "
                f"| {number(row.train)} | {ratio(row.our_train, row.train)} "
                f"| {number(row.infer)} | {ratio(row.our_infer, row.infer)} "
                f"| {mebibytes(row.memory, 'peak')} "
                f"| {mebibytes(row.memory, 'temporary')} |"
            )
    if any(row.unsteady for row in rows):
        lines += ["", "† Its steps differ more than twofold: the machine was busy."]
    lines += [
        "",
        "Best over these batches, ours over theirs:",
        "",
        "| library | training | inference |",
        "|---|---:|---:|",
    ]
    best = {}
    for kind in ("train", "infer"):
        theirs = [getattr(row, f"our_{kind}") for row in rows]
        best[kind] = max((x for x in theirs if x), default=None)
    for name in dict.fromkeys(row.name for row in rows):
        cells = []
        for kind in ("train", "infer"):
            each = [getattr(row, kind) for row in rows if row.name == name]
            cells.append(ratio(best[kind], max((x for x in each if x), default=None)))
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    failures = [
        f"- {row.name}, batch {row.batch}: {row.failed}" for row in rows if row.failed
    ]
    if failures:
        lines += ["", "Could not be measured:", "", *failures]
    return lines


def growth(libraries: list[Library], inputs: Path, versions: dict, args) -> dict:
    """Seconds of a training step by library and T; None where it failed."""
    taken = {library.name: [] for library in libraries}
    for steps in args.growth_steps:
        for library in libraries:
            with Worker(library, inputs, args) as worker:
                try:
                    built = worker.ask(
                        "build",
                        batch=args.growth_batch,
                        steps=steps,
                        variant=library.variant,
                    )
                    versions.update(built["versions"])
                    (seconds,), unsteady = in_turns([worker], "train", args.seconds)
                except Failed as reason:
                    print(f"T = {steps}, {library.name}: {reason}", file=sys.stderr)
                    seconds, unsteady = None, False
                taken[library.name].append(seconds)
                report(f"T = {steps}, {library.name}: {seconds} s" + " †" * unsteady)
    return taken


def growth_table(taken: dict, args) -> list[str]:
    steps = args.growth_steps
    lines = [
        f"Milliseconds of one training step, batch {args.growth_batch}:",
        "",
        "| library | " + " | ".join(f"T = {t}" for t in steps) + " |",
        "|---|" + "---:|" * len(steps),
    ]
    for name, seconds in taken.items():
        cells = [number(s and s * 1e3) for s in seconds]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def draw(taken: dict, path: Path, args) -> None:
    """Time against T, log-log; each line is named at its right end."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    # Okabe and Ito's colours, darkened to be read as text; markers tell lines apart
    # without colour.
    colours = ("#0072B2", "#000000", "#D55E00", "#B07D00", "#009E73", "#B0508F")
    colours += ("#5A5A5A", "#2E9BD6", "#8C4A2F")
    markers, dashes = "osD^vPXh*", ("-", "-", *["--"] * 7)
    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    ends = {}
    for (name, seconds), colour, marker, dash in zip(
        taken.items(), colours, markers, dashes, strict=False
    ):
        points = [
            (t, s * 1e3)
            for t, s in zip(args.growth_steps, seconds, strict=True)
            if s is not None
        ]
        if not points:
            continue
        style = dict(color=colour, marker=marker, linestyle=dash, markersize=5)
        axes.plot(*zip(*points, strict=True), lw=1.8, **style)
        ends[name] = (*points[-1], colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(args.growth_steps, [str(t) for t in args.growth_steps])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(args.growth_steps[0] / 1.1, args.growth_steps[-1] * 3.2)
    axes.set_xlabel("time steps T")
    axes.set_ylabel("one training step, ms")
    axes.set_title(f"{SPEC}, batch {args.growth_batch}, {os.cpu_count()} CPU cores")
    axes.grid(which="major", color="0.88", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = np.log10(axes.get_ylim())
    gap, last = 0.055 * (high - low), -np.inf
    for name, (t, ms, colour) in sorted(ends.items(), key=lambda end: end[1][1]):
        last = max(np.log10(ms), last + gap)  # names do not cover each other
        axes.annotate(
            name,
            (t, ms),
            xytext=(args.growth_steps[-1] * 1.09, 10**last),
            color=colour,
            va="center",
            fontsize=9,
            arrowprops=dict(
                arrowstyle="-", color=colour, lw=0.6, relpos=(0, 0.5), shrinkB=4
            ),
        )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)


def prepare(folder: Path, args) -> Path:
    """Images, their spike times for every T, and initial weights, in one .npz."""
    images, labels = (lambda d: (d.train_images, d.train_labels))(
        data.load("mnist", args.data_dir)
    )
    weights = with_ours.initial_weights(images[:200])
    count = max(*args.batches, args.growth_batch)
    images, labels = images[:count], labels[:count]
    times = {
        f"times{steps}": np.asarray(ds.encode(images, num_steps=steps))
        for steps in {args.steps, *args.growth_steps}
    }
    path = folder / "inputs.npz"
    np.savez(path, images=images, labels=labels, **times, **weights)
    return path


def shown(argv: list[str] | None) -> list[str]:
    """The command line without the paths of this machine."""
    hidden, kept = False, []
    for word in sys.argv[1:] if argv is None else argv:
        path = word.startswith(("--data_dir", "--peers_python"))
        if not (hidden or path or word == "--write"):
            kept.append(word)
        hidden = path and "=" not in word
    return kept


def report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def available_gibibytes() -> float:
    with contextlib.suppress(OSError), open("/proc/meminfo") as lines:
        sizes = dict(line.split(":") for line in lines)
        return int(sizes["MemAvailable"].split()[0]) / 2**20
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data_dir", help="MNIST's IDX files; without, as ds4nn_jax.data.load")
    add("--engine", default="event", choices=list(OURS))
    add("--peers", default=",".join(PEERS), help="which of them")
    add("--batches", type=integers, default=[1, 32, 128])
    add("--steps", type=int, default=100, help="T")
    add("--seconds", type=float, default=5, help="for each measurement, at least")
    add("--limit", type=float, default=600, help="seconds of one step, at most")
    add("--memory", type=float, help="GiB of each process; default: 85%% of the free")
    add("--peers_python", type=Path, default=".venv-peers/bin/python")
    add("--plot", action="store_true", help="time against T instead of the tables")
    add("--growth_steps", type=integers, default=[25, 50, 100, 200, 400])
    add("--growth_batch", type=int, default=8)
    add("--write", action="store_true", help="also into benchmarks/results")
    add("--verbose", action="store_true", help="show what the libraries print")
    args = parser.parse_args(argv)
    args.memory = args.memory or 0.85 * available_gibibytes()
    if not args.peers_python.exists():
        parser.error(f"{args.peers_python} is missing: bash benchmarks/peers_env.sh")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    peers = [PEERS[name] for name in args.peers.split(",") if name]
    versions, load = {}, os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        inputs = prepare(Path(folder), args)
        if args.plot:
            libraries = [OURS["event"], OURS["scan"], *peers]
            taken = growth(libraries, inputs, versions, args)
            lines, name = growth_table(taken, args), "time_against_T"
            draw(taken, RESULTS / f"{name}.png", args)
        else:
            rows = []
            for batch in args.batches:
                for peer in peers:
                    rows.append(measure(peer, batch, inputs, versions, args))
                    report(str(rows[-1]))
            lines = tables(rows, OURS[args.engine].name, args.batches)
            name = "peers"
    named = ", ".join(f"{package} {version}" for package, version in versions.items())
    command = " ".join(["python -m benchmarks.peers", *shown(argv)])
    lines = [
        f"# {SPEC} on MNIST against other libraries",
        "",
        f"`{command}` on {machine()}; {named}; load {load:.1f} at the start. Medians "
        f"of {args.seconds:g} s or three steps after a first one"
        + ("." if args.plot else f"; T = {args.steps}."),
        "",
        *lines,
    ]
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if args.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(text)


if __name__ == "__main__":
    main()
