"""The pages that `ds4nn report` and `python -m experiments.report` write."""

import itertools
import json
import os
import re
import shutil
import struct
import subprocess
from html.parser import HTMLParser

import jax
import matplotlib
import numpy as np
import pytest
from PIL import Image

import ds4nn_jax as ds
from ds4nn_jax import data, plots
from ds4nn_jax.cli import commands, figures, measures, page, report
from ds4nn_jax.cli.chapters import Network, Trained
from experiments import animate, chapters, digits
from experiments import report as papers

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
EVIL = '<script>document.title = "it ran"</script>'
NAMES = [f"{EVIL}![x](y) {k}" for k in range(10)]


PAPER = chapters.PaperChapters()


class Seen(HTMLParser):
    """Tags and texts of a page, its tables as rows of texts."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self._text, self._in = [], [], "", []
        self.sources = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self._text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in.append(tag)
        self.sources += [dict(attrs)[a] for a in ("src", "href") if a in dict(attrs)]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, text):
        self._text += text
        if {"td", "th"} & set(self._in):
            self.rows[-1][-1] += text


def idx(path, array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a data set that is none of those shipped for."""
    images, where = data.load("digits"), tmp_path_factory.mktemp("data")
    (where / "kmnist").mkdir()
    for stem, pixels, labels in (
        ("train", images.train_images[:200], images.train_labels[:200]),
        ("t10k", images.test_images[:30], images.test_labels[:30]),
    ):
        idx(where / "kmnist" / f"{stem}-images-idx3-ubyte", pixels[..., 0])
        idx(where / "kmnist" / f"{stem}-labels-idx1-ubyte", labels)
    return where


@pytest.fixture(scope="module")
def made(smoke_run, tmp_path_factory):
    """The page of the digits' smoke run."""
    (run, test), out = smoke_run, tmp_path_factory.mktemp("page")
    # What a user has set, LaTeX here, is not for these figures.
    with matplotlib.rc_context({"text.usetex": True, "savefig.dpi": 3}):
        commands.main(["report", f"--run_dir={run}", f"--out_dir={out}"])
    return out, test


def test_prints_what_the_run_reached(made):
    out, test = made
    seen = Seen((out / "report.html").read_text("utf-8"))
    pooled = test.layer_spikes[2]
    counts = (test.spikes, test.spikes - pooled, test.layer_spikes[0], pooled)
    every, unpooled, sent, pooled = (
        f"{count:.0f}" if count >= 100 else f"{count:.1f}" for count in counts
    )
    for row in (
        ["strict accuracy", f"{test.accuracy:.2%}"],
        ["mean decision step", f"{test.decision_step:.1f} of 100"],
        ["mean spikes up to the decision", every],
        ["… without pooling neurons", unpooled],
        ["input spikes up to it, apart", sent],
        ["pool1", "P2", pooled, f"{test.layer_dead[1]:.1%}"],
    ):
        assert row in seen.rows
    seven = next(row for row in seen.rows if row[0] == "7")
    assert seven[1] == f"{test.firing_times[7, 7]:.1f}"
    # 8×8 → 8C3 → P2 → 4×4×8 = 128 → 10
    (relu,) = (row for row in seen.rows if row[0].startswith("ReLU network"))
    assert relu[1] == f"{64 * 9 * 8 + 128 * 10:,}"
    (moved,) = (row for row in seen.rows if row[0].startswith("the same shape"))
    assert moved[4] == f"{2 * int(relu[1].replace(',', '')) + 64 * 8 + 10:,}"
    assert "reference spikes of" not in seen.text  # there is no urgency
    assert "Fig. " not in seen.text and "Table " not in seen.text  # the paper's
    assert f"ds4nn_jax {ds.__version__}" in seen.text
    assert "chosen on held-out training images" in seen.text


def test_the_page_needs_no_other_file(made):
    html = (made[0] / "report.html").read_text("utf-8")
    seen = Seen(html)
    assert seen.tags.count("img") == 8 and "script" not in seen.tags
    inside = [s for s in seen.sources if s.startswith("data:image/svg+xml;base64,")]
    anchors = [s for s in seen.sources if s.startswith("#")]
    assert len(inside) == 8 and sorted(inside + anchors) == sorted(seen.sources)
    assert all(f'id="{anchor[1:]}"' in html for anchor in anchors) and anchors


@pytest.fixture(scope="module")
def hostile(smoke_run, root, tmp_path_factory):
    """A page of a run whose every text is hostile, next to what cannot be shown."""
    (run, _), folder = smoke_run, tmp_path_factory.mktemp("hostile")
    network, params, _ = ds.load_weights(run / "best.safetensors")
    bad = folder / "a $x$ <b>run"
    bad.mkdir()
    notes = {"dataset": "kmnist", "seed": EVIL, "epoch": f"{EVIL}\ud800"}
    ds.save_weights(bad / "best.safetensors", network, params, notes=notes)
    (bad / "flags.cfg").write_text(f"--out_dir={EVIL}\n")
    notes = {"dataset": f"../{EVIL}"}
    ds.save_weights(folder / "lost.safetensors", network, params, notes=notes)
    (folder / "damaged.safetensors").write_bytes(b"no weights")
    out = folder / "page"
    named = data._CLASS_NAMES | {"kmnist": tuple(NAMES)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_CLASS_NAMES", named)
        with pytest.raises(SystemExit) as left:
            papers.main(
                [
                    f"--run_dir={bad}",
                    f"--run_dir={folder / 'lost.safetensors'}",
                    f"--run_dir={folder / 'damaged.safetensors'}",
                    f"--data_dir={root}",
                    f"--out_dir={out}",
                ]
            )
    return out, left.value.code


def test_what_comes_from_files_is_shown_as_text(hostile):
    out, _ = hostile
    text = (out / "report.html").read_text("utf-8")
    seen = Seen(text)
    assert "script" not in seen.tags and "b" not in seen.tags
    assert seen.text.count(EVIL) > 10 and NAMES[3] in [row[0] for row in seen.rows]


def test_what_is_missing_is_told_in_its_place_and_at_the_end(hostile):
    out, told = hostile
    html = (out / "report.html").read_text("utf-8")
    notices = re.findall('<p class="missing">(.*?)</p>', html)
    assert len(notices) == 2 and all("\n" not in notice for notice in notices)
    assert "is no data set name" in notices[0]
    assert "damaged.safetensors is truncated" in notices[1]
    assert told.startswith(f"report in {out / 'report.html'}, without: ")
    assert "lost.safetensors" in told and "damaged.safetensors" in told
    assert "strict accuracy" in html


def test_a_fault_beside_the_networks_costs_none_of_them(smoke_run, tmp_path):
    def damaged(dataset):
        raise ValueError("results are damaged")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapters, "reported", damaged)
        with pytest.raises(SystemExit, match="without: .*: results are damaged"):
            papers.main([f"--run_dir={smoke_run[0]}", f"--out_dir={tmp_path}"])
    html = (tmp_path / "report.html").read_text("utf-8")
    (notice,) = re.findall('<p class="missing">(.*?)</p>', html)
    assert "results are damaged" in notice and "strict accuracy" in html


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
@pytest.mark.parametrize("width", [1280, 390])
def test_opens_in_a_browser_without_scrolling_sideways(hostile, tmp_path, width):
    """Looked at from a frame of that width, since windows have a least one."""
    out, _ = hostile
    look = tmp_path / "look.html"
    look.write_text(
        f'<iframe src="{(out / "report.html").as_uri()}" '
        f'style="width:{width}px;height:800px;border:0"></iframe><p id="found"></p>'
        "<script>onload = () => {"
        "const d = document.querySelector('iframe').contentDocument, e ="
        " d.documentElement, right = [...d.querySelectorAll('p, h1, h2, h3, h4, img,"
        " .table, li, summary')].map(x => x.getBoundingClientRect().right);"
        "document.querySelector('#found').textContent = JSON.stringify({"
        "page: e.scrollWidth, right: Math.max(...right), title: d.title,"
        "images: [...d.images].every(i => i.complete && i.naturalWidth > 0)})}"
        "</script>"
    )
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000"]
    command += ["--allow-file-access-from-files", "--window-size=1400,900"]
    dom = subprocess.run(
        [*command, look.as_uri()], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(re.search(r'<p id="found">(.*?)</p>', dom)[1])
    assert found["page"] <= width and found["right"] <= width
    assert found["title"] == "ds4nn_jax: report"  # no script has changed it
    assert found["images"]


@pytest.mark.slow
def test_a_run_on_a_data_set_and_a_grid_of_its_own(root, tmp_path, capsys, monkeypatch):
    """Other T, other data, no metrics, an urgency; found in the folder `runs`."""
    monkeypatch.chdir(tmp_path)
    digits.main(
        ["digits", "--dataset=kmnist", f"--data_dir={root}", "--preset=digits_smoke"]
        + ["--num_steps=40", "--output_rule.offset=5", "--epochs=1", "--urgency=0.07"]
        + ["--out_dir=runs/run"]
    )
    (tmp_path / "runs/run/metrics.jsonl").unlink()
    report.main([f"--out_dir={tmp_path / 'page'}"])
    said = capsys.readouterr().out
    assert f"run: IDX files in {root / 'kmnist'}" in said  # where its flags say
    assert said.splitlines()[-1] == f"report in {tmp_path / 'page/report.html'}"
    seen = Seen((tmp_path / "page/report.html").read_text("utf-8"))
    (step,) = (row[1] for row in seen.rows if row[0] == "mean decision step")
    assert step.endswith(" of 40")
    assert "No metrics.jsonl beside the weights" in seen.text
    (apart,) = (row[1] for row in seen.rows if "reference spikes of 0.07" in row[0])
    (cost,) = (row[1] for row in seen.rows if row[0].startswith("… of these for ref"))
    assert float(cost) == pytest.approx(10 * float(apart), abs=1)  # ten outputs
    at = next(k for k, row in enumerate(seen.rows) if row[0] == "u (mV)")
    grid = {row[0]: row[1:] for row in seen.rows[at + 1 : at + 8]}
    assert list(grid) == ["0", "0.05", "0.07", "0.1", "0.2", "0.3", "0.5"]
    (accuracy,) = (row[1] for row in seen.rows if row[0] == "strict accuracy")
    assert grid["0.07"][0] == accuracy
    assert float(apart) == pytest.approx(
        float(step.split()[0]) + 1 - float(grid["0.07"][2].rstrip("%")) / 100, abs=0.11
    )


def test_measures_are_those_of_evaluate(rng):
    """However the images are cut; other urgencies and output potentials come on top of
    the pulses of the output."""
    images = data.load("digits")
    some = images.test_images[:25], images.test_labels[:25]
    network = ds.SpikingNetwork.from_spec("4C3-P2-10", num_steps=40, pulses=(3, 5))
    times = network.encode(some[0])
    params = network.init(jax.random.key(0), times)
    for layer in params["params"].values():
        layer["pulses"] = rng.normal(5, 30, layer["pulses"].shape).astype(np.float32)
    counts = []
    options = dict(urgencies=(0.0, 2.0), on_batch=counts.append, batch_size=7)
    result = measures.measure(network, params, *some, **options)
    assert counts == [7, 14, 21, 25]
    for urgency, urged in result.urgencies.items():
        other = ds.evaluate(network.clone(urgency=urgency), params, *some)
        assert urged.summary() == pytest.approx(other.summary())
    reports = result.urgencies.values()
    drawn = figures.by_urgency(result.urgencies).axes
    accuracy, steps, _ = (axes.lines[0].get_ydata() for axes in drawn)
    np.testing.assert_allclose(accuracy, [100 * report.accuracy for report in reports])
    np.testing.assert_allclose(steps, [report.decision_step for report in reports])
    assert steps[1] < steps[0]
    test = ds.evaluate(network, params, *some)
    assert result.test.summary() == pytest.approx(test.summary())
    assert result.decided_by_step[-1] == pytest.approx(1 - test.silent)
    assert result.accuracy_by_step[-1] == pytest.approx(test.accuracy)
    trace = network.apply(params, times, method="trace")
    running = np.asarray(measures.output_potentials(network, params, trace))
    first = np.asarray(trace.times[-1]).astype(int).clip(max=39)
    at_spikes = np.take_along_axis(running, first[None], 0)[0]
    np.testing.assert_allclose(at_spikes, trace.potentials, atol=1e-3)
    assert measures.reference(network, params) == "reference spikes"
    alone = network.clone(pulses=(), urgency=0.3)
    assert measures.reference(alone, params) == "reference spikes of 0.3 mV"


def network(dataset, spec, **options):
    none = np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0, np.int32)
    images = data.Dataset(dataset, *none, *none, ("a",), "nowhere")
    weights = ds.Weights(ds.SpikingNetwork.from_spec(spec, **options), {}, {})
    return Network(Trained("x", "", weights), images, None)


def test_only_the_papers_networks_bear_its_numbers():
    mnist, fashion = "64C3-P2-128C3-P2-10", "128C3-P2-128C3-P2-128C3-10"
    label, ours = PAPER.label, network("mnist", mnist)
    assert label(ours, "confusion") == "Fig. 4. "
    assert label(ours, "classes") == "" and PAPER.by_class(ours) == {}
    urged = network("fashion_mnist", fashion, urgency=0.25)
    assert label(urged, "classes") == "Table 5: "  # Fashion-MNIST's
    assert PAPER.by_class(urged)["spikes, the paper"][0] == "2,709"
    for other in (
        network("kmnist", mnist),
        network("mnist", "784-400-10"),
        network("mnist", mnist, num_steps=50),
    ):
        assert label(other, "confusion") == label(other, "comparison") == ""


def test_a_ceiling_is_drawn_where_it_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "_HERE", tmp_path)
    (tmp_path / "results").mkdir()
    known = {"steps": [0, 5, 9], "test_accuracy": [0.1, 0.7, 0.9], "spec": "8C3-10"}
    text = json.dumps(known | {"held_out_accuracy": 0.8})
    (tmp_path / "results/known-emnist_letters.json").write_text(text)
    ceiling, sentence = PAPER.ceiling("emnist/letters", 10)
    assert ceiling == ([0, 5, 9], [0.1, 0.7, 0.9]) and "80.00% on held" in sentence
    assert PAPER.ceiling("emnist/letters", 100) == (None, "")  # of other steps
    assert PAPER.ceiling("mnist", 10) == (None, "")


def test_rows_of_several_seeds(tmp_path):
    for seed, accuracy in ((0, 0.99), (2, 0.98)):
        test = {"test_accuracy": accuracy, "test_spikes": 100.0 + seed}
        test["test_layer_spikes"] = [7, 40 + seed, 30, 20, 9, 1]
        rows = [{"epoch": 1}, test]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"mnist-{seed}.jsonl").write_text(text)
    (tmp_path / "fashion-0.jsonl").write_text('{"test_accuracy": 0.9}\n')
    (runs,) = chapters.reported("mnist", tmp_path)
    assert runs.spread() == "98.50 (98.00–99.00)"
    assert runs.mean("spikes") == 101
    assert runs.without_pooling() == 41 + 20 + 1  # pooling and the input left out
    assert runs.config.spec == "64C3-P2-128C3-P2-10"
    assert runs.title() == "mnist.cfg, seeds 0, 2"
    (fashion,) = chapters.reported("fashion_mnist", tmp_path)
    assert fashion.without_pooling() is None  # it has pooling, and tells no layers
    assert fashion.spread() == "90.00" and fashion.title() == "fashion.cfg, seed 0"
    assert chapters.reported("kmnist", tmp_path) == ()


def test_accuracy_against_bits():
    """Beside the network that they were trained on from; others are left out."""
    row = {"test_spikes": 80.0, "test_silent": 0.01}

    def runs(name, accuracy, start="", **config):
        test = row | {"test_accuracy": accuracy}
        return chapters.Runs(name, ds.TrainConfig(**config), (0,), (test,), start)

    four = runs("mnist_4bit", 0.98, "mnist", bits=4)
    every = [four, runs("mnist", 0.99), runs("mnist_x", 0.9)]
    every.append(runs("mnist_1bit", 0.97, "mnist", bits=1))
    heading, _, table, drawing = chapters.of_bits(every)
    assert [row[1:3] for row in table.rows] == [
        ("1", "97.00"),
        ("4", "98.00"),
        ("real", "99.00"),
    ]
    assert len(drawing.figure.axes[0].lines) == 1
    assert not list(chapters.of_bits(every[1:3]))


def test_refuses_what_is_no_run(tmp_path):
    with pytest.raises(SystemExit, match="nothing to report: .*best.safetensors"):
        report.main([f"--run_dir={tmp_path}", f"--out_dir={tmp_path / 'page'}"])
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(
    "notes, metrics, message",
    [
        ({}, "", "do not name their data set: --dataset=NAME"),
        ({"dataset": "kmnist"}, "", "no data set 'kmnist' found in .*--data_dir=DIR"),
        ({"dataset": "digits"}, '{"epoch": 1}\n[2]\n', "metrics.jsonl, line 2"),
        ({"dataset": "mnist", "dataset ": ""}, "", "no data set 'mnist' found in"),
    ],
)
def test_says_in_one_line_what_is_missing(
    smoke_run, tmp_path, notes, metrics, message, capsys
):
    network, params, _ = ds.load_weights(smoke_run[0] / "best.safetensors")
    ds.save_weights(tmp_path / "best.safetensors", network, params, notes=notes)
    (tmp_path / "metrics.jsonl").write_text(metrics)
    with pytest.raises(SystemExit, match=message) as left:
        report.main([f"--run_dir={tmp_path}", f"--data_dir={tmp_path}"])
    assert "\n" not in str(left.value)
    assert not re.search(message, capsys.readouterr().out), "it is said once"


def test_numbers_stand_right_and_names_left(tmp_path):
    table = page.Table(("run", "spec", "share"), [("a", page.code("8C3"), "1")], 2)
    drawing = page.Drawing(plots.spikes_per_layer([1], ["a"]), "<i>c</i>")
    blocks = [page.Heading(2, "One & two"), table, drawing]
    page.write_html("T", blocks, tmp_path / "t.html")
    html = (tmp_path / "t.html").read_text("utf-8")
    assert (
        '<tr><td>a</td><td><code>8C3</code></td><td class="number">1</td></tr>' in html
    )
    assert '<h2 id="s0">One &amp; two</h2>' in html
    assert 'href="#s0"' in html and "<i>" not in html


@pytest.mark.slow
def test_animates_a_test_image_of_a_run(smoke_run, tmp_path, capsys):
    weights, film = str(smoke_run[0] / "best.safetensors"), tmp_path / "film.gif"
    with matplotlib.rc_context({"text.usetex": True}):
        animate.main([weights, f"--out={film}", "--image=3"])
    said = capsys.readouterr().out
    assert said == f"{film}: {film.stat().st_size:,} bytes\n"
    network, params, _ = ds.load_weights(weights)
    times = ds.encode(data.load("digits").test_images[3:4])
    step = int(ds.infer(network, params, times).step[0])
    with Image.open(film) as image:
        assert image.n_frames == step // (step // 40 + 1) + 1  # no more than 40
    for argv, message in (
        ([weights, "--image=359"], r"--image must lie in 0 … 358, got 359"),
        (["none.safetensors"], "experiments.animate: .*none.safetensors"),
        ([weights, f"--out={tmp_path / 'film.mp4'}"], "--out must end in .gif"),
    ):
        with pytest.raises(SystemExit, match=message):
            animate.main(argv)


def test_the_papers_tables_stand_beside_reported_runs():
    blocks = list(PAPER.of_dataset("mnist", ()))
    rows = {r[0]: r for b in blocks if isinstance(b, page.Table) for r in b.rows}
    assert rows["DS4NN, the paper"][2:] == ("99.3", "1,126", "", "15.6")
    (ours,) = (r for name, r in rows.items() if "mnist.cfg, seeds 0, 1, 2" in name)
    assert ours[1] == "64C3-P2-128C3-P2-10"
    (paper, better), *_ = [rows["optimizer.learning_rate"][1:]]
    assert paper == "0.1" != better
    assert rows["initial_weights.ranges"][1].startswith("0.0:80.0,0.0:50.0")
    assert [b.text for b in blocks if isinstance(b, page.Heading)] == [
        "Accuracies and their cost",
        "Accuracy against bits a weight",
        "Table 1: parameters",
    ]
    (_, dead) = (b for b in chapters._dead_neurons() if not isinstance(b, page.Heading))
    assert [row[2] for row in dead.rows] == ["95.4%", "61.0%", "95.0%"]


# Figures


def test_by_bits_puts_real_numbers_last():
    lines = {"one": [(1, 0.9), (4, 0.95), (None, 0.99)], "two": [(8, 0.8)]}
    axes = chapters.by_bits(lines).axes[0]
    drawn = [line.get_xydata().tolist() for line in axes.lines]
    assert drawn == [[[0, 90], [1, 95], [3, 99]], [[2, 80]]]
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == ["1", "4", "8", "real"]


def test_fronts_join_what_none_beats_in_both():
    """The ceiling lies beside the points, against the step alone, and does not move
    the frame."""
    points = [
        figures.Point("cheap", 0.90, 100.0, 50.0),
        figures.Point("worse and dearer", 0.85, 300.0, 60.0),
        figures.Point("paper", 0.99, 1000.0, None, ours=False),
        figures.Point("quick", 0.80, None, 10.0, ours=False),
    ]
    free = figures.fronts(points, title="Both").axes[1]
    ceiling = [0, 30, 99], [0.1, 0.95, 0.99]
    spikes, steps = figures.fronts(points, title="Both", ceiling=ceiling).axes
    *dots, front = spikes.lines
    np.testing.assert_allclose(front.get_xydata(), [[100, 90], [1000, 99]])
    np.testing.assert_allclose([dot.get_xdata()[0] for dot in dots], [100, 300, 1000])
    hollow = [dot.get_markerfacecolor() == "none" for dot in dots]
    assert hollow == [False, False, True]
    *dots, front, dotted = steps.lines
    np.testing.assert_allclose(front.get_xydata(), [[10, 80], [50, 90]])
    np.testing.assert_allclose(dotted.get_xydata(), [[0, 10], [30, 95], [99, 99]])
    names = [text.get_text() for text in steps.texts if text.get_text()]
    assert names == ["cheap", "worse and dearer", "quick"]
    assert spikes.get_xscale() == "log"
    assert (steps.get_xlim(), steps.get_ylim()) == (free.get_xlim(), free.get_ylim())
    (alone,) = figures.fronts(points[2:3], title="").axes
    assert "spikes" in alone.get_xlabel()


def test_names_of_close_points_are_apart_and_inside():
    points = [
        figures.Point(f"network number {k}", 0.99 + 0.0001 * k, 1000 + k, 20 + k)
        for k in range(8)
    ]
    points.append(figures.Point("far away", 0.9, 9000, 90))
    figure = figures.fronts(points, title="")
    figure.savefig(os.devnull, format="png")  # lays the figure out
    for axes in figure.axes:
        boxes = [t.get_window_extent() for t in axes.texts if t.get_text()]
        assert len(boxes) == 9
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        assert all((axes.bbox.min <= box.min).all() for box in boxes)
        assert all((box.max <= axes.bbox.max).all() for box in boxes)
