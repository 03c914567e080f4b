"""The pages that `ds4nn report` and `python -m experiments.report` write."""

import html
import json
import re
import shutil
import struct
import subprocess

import jax
import matplotlib
import numpy as np
import pytest

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import commands, figures, measures, report
from experiments import digits
from experiments import report as papers

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
EVIL = '<script>document.title = "it ran"</script>'
NAMES = [f"{EVIL}![x](y) {k}" for k in range(10)]
PAPER = papers.PaperChapters()


def text_of(markup):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", markup)).split())


def rows_of(page):
    """Tables as rows of texts."""
    rows = re.findall("<tr>(.*?)</tr>", page)
    return [[*map(text_of, re.findall(r"<t[hd]>(.*?)</t[hd]>", row))] for row in rows]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with a data set that is none of those shipped for."""
    images, where = data.load("digits"), tmp_path_factory.mktemp("data")
    (where / "kmnist").mkdir()
    for stem, pixels, labels in (
        ("train", images.train_images[:200], images.train_labels[:200]),
        ("t10k", images.test_images[:30], images.test_labels[:30]),
    ):
        for kind, array in (("images-idx3", pixels[..., 0]), ("labels-idx1", labels)):
            header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            content = header + array.astype(np.uint8).tobytes()
            (where / "kmnist" / f"{stem}-{kind}-ubyte").write_bytes(content)
    return where


@pytest.fixture(scope="module")
def built(smoke_run, root, tmp_path_factory):
    """The page of the digits' smoke run and a run whose every text is hostile."""
    (run, _), folder = smoke_run, tmp_path_factory.mktemp("hostile")
    network, params, _ = ds.load_weights(run / "best.safetensors")
    bad = folder / "a $x$ <b>run"
    bad.mkdir()
    notes = {"dataset": "kmnist", "seed": EVIL, "epoch": f"{EVIL}\ud800"}
    ds.save_weights(bad / "best.safetensors", network, params, notes=notes)
    (bad / "flags.cfg").write_text(f"--out_dir={EVIL}\n")
    out = folder / "page"
    argv = ["report", f"--run_dir={run}", f"--run_dir={bad}"]
    named = data._CLASS_NAMES | {"kmnist": tuple(NAMES)}
    # What a user has set, LaTeX here, is not for these figures.
    with (
        pytest.MonkeyPatch.context() as patch,
        matplotlib.rc_context({"text.usetex": True, "savefig.dpi": 3}),
    ):
        patch.setattr(data, "_CLASS_NAMES", named)
        commands.main([*argv, f"--data_dir={root}", f"--out_dir={out}"])
    return out / "report.html"


def test_prints_what_the_run_reached(built, smoke_run):
    page, test = built.read_text("utf-8"), smoke_run[1]
    rows, text = rows_of(page), text_of(page)
    pooled = test.layer_spikes[2]
    counts = test.spikes, test.spikes - pooled, test.layer_spikes[0], pooled
    every, unpooled, sent, pooled = (f"{n:.{int(n < 100)}f}" for n in counts)
    for row in (
        ["strict accuracy", f"{test.accuracy:.2%}"],
        ["mean decision step", f"{test.decision_step:.1f} of 100"],
        ["mean spikes up to the decision", every],
        ["… without pooling neurons", unpooled],
        ["input spikes up to it, apart", sent],
        ["pool1", "P2", pooled, f"{test.layer_dead[1]:.1%}"],
    ):
        assert row in rows
    seven = next(row for row in rows if row[0] == "7")
    assert seven[1] == f"{test.firing_times[7, 7]:.1f}"
    # 8×8 → 8C3 → P2 → 4×4×8 = 128 → 10
    relu, _ = (row for row in rows if row[0].startswith("ReLU network"))
    assert relu[1] == f"{64 * 9 * 8 + 128 * 10:,}"
    moved, _ = (row for row in rows if row[0].startswith("the same shape"))
    assert moved[4] == f"{2 * int(relu[1].replace(',', '')) + 64 * 8 + 10:,}"
    assert "reference spikes of" not in text  # there is no urgency
    assert "Fig. " not in text and "Table " not in text  # the paper's
    assert f"ds4nn_jax {ds.__version__}" in text


def test_the_page_needs_no_other_file_and_shows_files_as_text(built):
    page = built.read_text("utf-8")
    sources = re.findall('(?:src|href)="(.*?)"', page)
    images = [s for s in sources if s.startswith("data:image/svg+xml;base64,")]
    anchors = [s for s in sources if s.startswith("#")]
    # A comparison for each of two data sets, five of each network, a learning curve.
    assert len(images) == page.count("<img") == 2 + 5 * 2 + 1
    assert sorted(images + anchors) == sorted(sources)
    assert all(f'id="{anchor[1:]}"' in page for anchor in anchors) and anchors
    assert "<script" not in page and "<b>" not in page
    assert text_of(page).count(EVIL) > 10
    assert NAMES[3] in [row[0] for row in rows_of(page)]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
@pytest.mark.parametrize("width", [1280, 390])
def test_opens_in_a_browser_without_scrolling_sideways(built, tmp_path, width):
    """Looked at from a frame of that width, since windows have a least one."""
    look = tmp_path / "look.html"
    look.write_text(
        f'<iframe src="{built.as_uri()}" '
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
    options = "headless no-sandbox disable-gpu dump-dom virtual-time-budget=5000"
    options += " allow-file-access-from-files window-size=1400,900"
    command = [CHROMIUM, *(f"--{option}" for option in options.split())]
    command += [f"--user-data-dir={tmp_path}", look.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(re.search(r'<p id="found">(.*?)</p>', dom)[1])
    assert found["page"] <= width and found["right"] <= width and found["images"]
    assert found["title"] == "ds4nn_jax: report"  # no script has changed it


@pytest.mark.slow
def test_a_run_on_a_data_set_and_a_grid_of_its_own(root, tmp_path, capsys, monkeypatch):
    """Other T, other data, no metrics, an urgency; found in the folder `runs`."""
    monkeypatch.chdir(tmp_path)
    digits.main(
        ["digits", "--dataset=kmnist", f"--data_dir={root}", "--preset=smoke"]
        + [
            "--spec=8C3-P2-10",
            "--num_steps=40",
            "--output_rule.offset=5",
            "--epochs=1",
            "--urgency=0.07",
        ]
        + ["--out_dir=runs/run"]
    )
    (tmp_path / "runs/run/metrics.jsonl").unlink()
    report.main([f"--out_dir={tmp_path / 'page'}"])
    said = capsys.readouterr().out
    assert f"run: IDX files in {root / 'kmnist'}" in said  # where its flags say
    assert said.splitlines()[-1] == f"report in {tmp_path / 'page/report.html'}"
    page = (tmp_path / "page/report.html").read_text("utf-8")
    assert "No metrics.jsonl beside the weights" in text_of(page)
    rows = {row[0]: row[1:] for row in rows_of(page)}
    step, steps = rows["mean decision step"][0].split(" of ")
    assert steps == "40"
    (apart,) = (row[0] for name, row in rows.items() if "spikes of 0.07" in name)
    cost = rows["… of these for reference spikes"][0]
    assert float(cost) == pytest.approx(10 * float(apart), abs=1)  # ten outputs
    at = [*rows].index("u (mV)")
    # "0" is a class above, too.
    assert [*rows][at + 1 : at + 7] == "0.05 0.07 0.1 0.2 0.3 0.5".split()
    assert rows["0.07"][0] == rows["strict accuracy"][0]
    silent = float(rows["0.07"][2].rstrip("%")) / 100
    assert float(apart) == pytest.approx(float(step) + 1 - silent, abs=0.11)


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
    test = ds.evaluate(network, params, *some)
    reports = result.urgencies.values()
    expected = [
        ds.evaluate(network.clone(urgency=u), params, *some) for u in result.urgencies
    ]
    for one, other in zip([result.test, *reports], [test, *expected], strict=True):
        assert one.summary() == pytest.approx(other.summary())
    plain, urged = reports
    assert urged.decision_step < plain.decision_step
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


MNIST, FASHION = "64C3-P2-128C3-P2-10", "128C3-P2-128C3-P2-128C3-10"


@pytest.mark.parametrize(
    "dataset, spec, options, expected",
    [
        ("mnist", MNIST, {}, ["Table 2: ", "Fig. 4. ", "", True]),
        (
            "fashion_mnist",
            FASHION,
            {"urgency": 0.25},
            ["Table 4: ", "Fig. 6. ", "2,709", True],
        ),
        ("kmnist", MNIST, {}, ["", "", "", False]),
        ("mnist", "784-400-10", {}, ["", "", "", True]),
        ("mnist", MNIST, {"num_steps": 50}, ["", "", "", False]),
    ],
)
def test_only_the_papers_networks_bear_its_numbers(dataset, spec, options, expected):
    """A ceiling is known of a data set and a number of steps."""
    additions = PAPER.additions(dataset, ds.SpikingNetwork.from_spec(spec, **options))
    found = [additions["labels"].get(name, "") for name in ("comparison", "confusion")]
    found += additions["columns"].get("spikes, the paper", [""])[:1]
    assert [*found, "test_accuracy" in additions["ceiling"]] == expected


def test_rows_of_several_seeds(tmp_path):
    for seed, accuracy in ((0, 0.99), (2, 0.98)):
        test = {"test_accuracy": accuracy, "test_spikes": 100.0 + seed}
        test |= {"test_layer_spikes": [7, 40 + seed, 30, 20, 9, 1]}
        text = (
            json.dumps({"epoch": 1})
            + "\n"
            + json.dumps(test | {"test_decision_step": 9})
        )
        (tmp_path / f"mnist-{seed}.jsonl").write_text(text)
    (tmp_path / "fashion-0.jsonl").write_text(
        '{"test_accuracy": 0.9, "test_spikes": 5, "test_decision_step": 9}\n'
    )
    (runs,) = papers.reported("mnist", tmp_path)
    assert runs.spread() == "98.50 (98.00–99.00)"
    assert runs.title() == "mnist.cfg, seeds 0, 2"
    # Without pooling and the input.
    point = figures.Point("mnist.cfg", MNIST, 0.985, 101, 9, 41 + 20 + 1)
    assert runs.point() == pytest.approx(point)
    (fashion,) = papers.reported("fashion_mnist", tmp_path)
    assert fashion.point().unpooled is None  # it has pooling, and tells no layers
    assert fashion.spread() == "90.00" and fashion.title() == "fashion.cfg, seed 0"
    assert papers.reported("kmnist", tmp_path) == []


def test_accuracy_against_bits():
    """Beside the network that they were trained on from, real numbers last; others are
    left out."""
    row = {"test_spikes": 80.0, "test_silent": 0.01}

    def runs(name, accuracy, start="", **config):
        test = row | {"test_accuracy": accuracy}
        return papers.Runs(name, ds.TrainConfig(**config), (0,), (test,), start)

    four = runs("mnist_4bit", 0.98, "mnist", bits=4)
    every = [four, runs("mnist", 0.99), runs("mnist_x", 0.9)]
    every.append(runs("mnist_1bit", 0.97, "mnist", bits=1))
    (part,) = papers.of_bits(every)
    expected = [("1", "97.00"), ("4", "98.00"), ("real", "99.00")]
    assert [row[1:3] for row in part.rows] == expected
    assert papers.of_bits(every[1:3]) == []


def test_the_papers_tables_stand_beside_reported_runs():
    network = ds.SpikingNetwork.from_spec(MNIST)
    parts = PAPER.compare("mnist", [network], [])
    assert [part.title for part in parts] == [
        "Table 2: Accuracies and their cost",
        "Accuracy against bits a weight",
        "Table 1: parameters",
        "Table 3: dead neurons under three kinds of target",
    ]
    rows = {row[0]: row for part in parts for row in part.rows}
    assert rows["DS4NN, the paper"][2:] == ("99.3", "1,126", "", "15.6")
    (ours,) = (
        r for name, r in rows.items() if name.endswith(" mnist.cfg, seeds 0, 1, 2")
    )
    assert ours[1] == MNIST
    paper, better = rows["optimizer.learning_rate"][1:]
    assert paper == "0.1" != better
    assert rows["initial_weights.ranges"][1].startswith("0.0:80.0,0.0:50.0")
    assert [row[2] for row in parts[-1].rows] == ["95.4%", "61.0%", "95.0%"]


@pytest.mark.parametrize(
    "notes, metrics, message",
    [
        (None, "", "best.safetensors"),
        ({}, "", "does not name its data set: --dataset=NAME"),
        ({"dataset": "../x"}, "", "'../x' is no data set name"),
        ({"dataset": "kmnist"}, "", "(?s)no data set 'kmnist' found.*--data_dir=DIR"),
        ({"dataset": "digits"}, '{"epoch": 1}\n[2]\n', "metrics.jsonl has a line that"),
    ],
)
def test_says_what_is_missing_before_any_work(
    smoke_run, tmp_path, notes, metrics, message
):
    if notes is not None:
        network, params, _ = ds.load_weights(smoke_run[0] / "best.safetensors")
        ds.save_weights(tmp_path / "best.safetensors", network, params, notes=notes)
    (tmp_path / "metrics.jsonl").write_text(metrics)
    argv = [f"--run_dir={tmp_path}", f"--data_dir={tmp_path}"]
    with pytest.raises(SystemExit, match=message):
        report.main([*argv, f"--out_dir={tmp_path / 'page'}"])
    assert not (tmp_path / "page").exists()


def test_weights_that_do_not_fit_the_images_are_refused_before_any_work(
    smoke_run, tmp_path, capsys
):
    """Nothing that was measured of others is lost."""
    network = ds.SpikingNetwork.from_spec("8C3-P2-10")
    params = network.init(jax.random.key(0), np.zeros((1, 12, 12, 1), np.float32))
    file = tmp_path / "other.safetensors"
    ds.save_weights(file, network, params, notes={"dataset": "digits"})
    argv = [f"--run_dir={smoke_run[0]}", f"--run_dir={file}"]
    with pytest.raises(SystemExit, match="ds4nn report: .*dense2"):
        report.main([*argv, f"--out_dir={tmp_path / 'page'}"])
    assert "drawing" not in capsys.readouterr().out
    assert not (tmp_path / "page").exists()


def test_fronts_join_what_none_beats_in_both():
    """The ceiling lies beside the points, against the step alone."""
    points = [
        figures.Point("cheap", "", 0.90, 100.0, 50.0),
        figures.Point("worse and dearer", "", 0.85, 300.0, 60.0),
        figures.Point("paper", "", 0.99, 1000.0, None, ours=False),
        figures.Point("quick", "", 0.80, None, 10.0, ours=False),
    ]
    ceiling = [0, 30, 99], [0.1, 0.95, 0.99]
    figure = figures.fronts(points, title="Both", ceiling=ceiling)
    spikes, steps = figure.axes
    *dots, front = spikes.lines
    np.testing.assert_allclose(front.get_xydata(), [[100, 90], [1000, 99]])
    np.testing.assert_allclose([dot.get_xdata()[0] for dot in dots], [100, 300, 1000])
    hollow = [dot.get_markerfacecolor() == "none" for dot in dots]
    assert hollow == [False, False, True]
    *dots, front, dotted = steps.lines
    np.testing.assert_allclose(front.get_xydata(), [[10, 80], [50, 90]])
    np.testing.assert_allclose(dotted.get_xydata(), [[0, 10], [30, 95], [99, 99]])
    assert steps.get_xlim()[1] < 99
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["cheap", "worse and dearer", "paper", "quick"]
