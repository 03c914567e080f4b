"""`ds4nn predict`: one line a picture, by the network's own decision."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.cli import commands
from ds4nn_jax.networks import pretrained

NETWORK = ds.SpikingNetwork.from_spec("4-3", num_steps=10)
# Pixel k makes class k fire; the last pixel gives each class a little.
KERNEL = np.array([[100, 0, 0], [0, 100, 0], [0, 0, 100], [1, 3, 2]], np.float32)
NOTES = {
    "input_shape": [2, 2, 1],
    "class_names": ["cat", "dog", "eel"],
    "pictures": {"fit": "whole", "ground": "mixed", "light": [0, 1]},
}


@pytest.fixture
def weights(tmp_path):
    """Writes weights of `NETWORK` with the notes; the flag that names them."""

    def write(notes=NOTES, kernel=KERNEL):
        params = {"params": {"dense1": {"kernel": kernel}}}
        ds.save_weights(tmp_path / "w.safetensors", NETWORK, params, notes=notes)
        return f"--weights={tmp_path / 'w.safetensors'}"

    return write


@pytest.fixture
def picture(tmp_path):
    """Writes four pixels as a picture; its path."""

    def write(name, *pixels):
        Image.fromarray(np.array(pixels, np.uint8).reshape(2, 2)).save(tmp_path / name)
        return str(tmp_path / name)

    return write


def predicted(capsys, *argv):
    commands.main(["predict", *argv])
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_a_line_for_each_picture(capsys, weights, picture):
    files = [
        picture("cat.png", 255, 128, 0, 0),
        picture("dog.png", 0, 204, 0, 0),  # at step ⌊51/255 · 10⌋
        picture("quiet.png", 0, 0, 0, 255),
        picture("blank.png", 0, 0, 0, 0),
        picture("tied.png", 255, 255, 0, 0),
    ]
    assert predicted(capsys, *files, weights()) == [
        f"{files[0]}: cat (decided at step 0 of 10)",
        f"{files[1]}: dog (decided at step 2 of 10)",
        f"{files[2]}: dog (no output fired: the highest potential)",
        f"{files[3]}: no answer",
        "  the network sees nothing in it",
        f"{files[4]}: no answer",
        "  cat and dog are tied",
    ]
    flag = weights({"input_shape": [2, 2, 1]})  # classes are numbers then
    (numbered,) = predicted(capsys, files[0], flag)
    assert numbered == f"{files[0]}: 0 (decided at step 0 of 10)"
    (hurried,) = predicted(capsys, files[2], weights(), "--urgency=20")
    assert hurried.endswith("dog (decided at step 4 of 10)")  # 3 + 20·5 ≥ 100


def test_the_best_classes_and_json(capsys, weights, picture, tmp_path):
    file, quiet = picture("a.png", 0, 128, 204, 255), picture("b.png", 0, 0, 0, 0)
    cat, dog, eel = (
        {"name": "cat", "spike_time": None, "potential": 1.0},
        {"name": "dog", "spike_time": 4, "potential": 103.0},
        {"name": "eel", "spike_time": 2, "potential": 102.0},
    )
    lines = predicted(capsys, file, quiet, weights(), "--json")
    answer, none = map(json.loads, lines)
    assert answer == {
        "file": file,
        "label": "eel",
        "class": 2,
        "step": 2,
        "decided_by": "spike",
        "classes": [eel, dog, cat],
        "remarks": [],
    }
    assert [none[key] for key in ("label", "class", "step", "decided_by")] == 4 * [None]
    assert none["remarks"] == ["the network sees nothing in it"]
    (top,) = predicted(capsys, file, weights(), "--json", "--top=1")
    assert json.loads(top)["classes"] == [eel]
    assert predicted(capsys, file, weights(), "--top=99")[1:] == [
        "  1. eel, spike at step 2, 102.0 mV",
        "  2. dog, spike at step 4, 103.0 mV",
        "  3. cat, silent, 1.0 mV",
    ]


def test_it_is_the_networks_own_decision(capsys, images, tmp_path):
    pixels, _ = images
    if pixels.shape[1:] != (28, 28, 1):
        pytest.skip("no real MNIST at hand")
    files = [tmp_path / f"{k}.png" for k in range(10)]
    for file, image in zip(files, pixels, strict=False):
        Image.fromarray(image[..., 0]).save(file)
    lines = predicted(capsys, *map(str, files), "--json")
    network, params, _ = pretrained.load("mnist")
    decided = ds.infer(network, params, ds.encode(pixels[:10]))
    steps = [100 if (r := json.loads(x))["step"] is None else r["step"] for x in lines]
    assert [json.loads(line)["class"] for line in lines] == decided.label.tolist()
    assert steps == decided.step.tolist()


@pytest.mark.parametrize(
    "ground, pixels, flags, label, remark",
    [
        ("dark", [0, 255, 255, 255], [], "cat", "light ground, the network's is dark"),
        ("light", [0, 255, 0, 0], [], "cat", "dark ground, the network's is light"),
        ("dark", [0, 255, 0, 0], [], "dog", None),
        ("mixed", [0, 255, 255, 255], [], "dog", None),
        (None, [0, 255, 255, 255], [], "dog", "the network's is not noted"),
        ("mixed", [0, 255, 255, 255], ["--invert"], "cat", None),
        ("dark", [0, 255, 255, 255], ["--no-invert"], "dog", None),
    ],
)
def test_the_ground_is_that_of_the_training(
    capsys, weights, picture, ground, pixels, flags, label, remark
):
    kernel = KERNEL.copy()
    kernel[2:] = 0  # the pixels below are the ground's
    kernel[1, 1] = 101  # pixel 1 wins where both are light
    noted = {"pictures": NOTES["pictures"] | {"ground": ground}}
    noted = noted if ground else {"pictures": None}
    file, flag = picture("a.png", *pixels), weights(NOTES | noted, kernel)
    answer, *remarks = predicted(capsys, file, flag, *flags)
    assert f": {label} (" in answer
    assert [remark in r for r in remarks] == ([True] if remark else [])


def test_a_picture_unlike_the_training_names_other_networks(capsys, weights, picture):
    notes = NOTES | {"pictures": NOTES["pictures"] | {"light": [0.6, 0.9]}}
    (_, remark) = predicted(capsys, picture("a.png", 255, 0, 0, 0), weights(notes))
    assert "25% of it is light, of these 60% … 90%" in remark
    assert "networks of the library: fashion_mnist, fashion_mnist_sparse" in remark


def test_one_bad_file_costs_no_other(capsys, weights, picture, tmp_path):
    good, again = picture("a.png", 255, 0, 0, 0), picture("b.png", 0, 255, 0, 0)
    bad, absent = tmp_path / "bad\x1b[31m.png", tmp_path / "absent.png"
    bad.write_bytes(b"hello")
    argv = [good, str(bad), str(absent), again, weights()]
    with pytest.raises(SystemExit) as caught:
        commands.main(["predict", *argv])
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert [line.split(": ")[1][:3] for line in out.splitlines()] == ["cat", "dog"]
    name = f"{tmp_path}/bad\\x1b[31m.png"
    assert err.splitlines() == [
        f"ds4nn predict: {name}: cannot be read: cannot identify image file '{name}'",
        f"ds4nn predict: {absent}: no such file",
    ]
    with pytest.raises(SystemExit):
        commands.main(["predict", *argv, "--json"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["file"] for r in records] == argv[:-1]
    assert records[2] == {"file": str(absent), "error": "no such file"}


def test_figures(capsys, weights, picture, tmp_path):
    folder = tmp_path / "new" / "figures"
    (tmp_path / "other").mkdir()
    files = picture("a.png", 255, 0, 0, 0), picture("other/a.png", 0, 255, 0, 0)
    names = {"class_names": ["$cat$\x1b[2J", "犬", "eel"]}  # as nobody should
    lines = predicted(capsys, *files, weights(NOTES | names), f"--figure={folder}")
    assert lines[0] == f"{files[0]}: $cat$\\x1b[2J (decided at step 0 of 10)"
    paths = [folder / "a.predict-1.png", folder / "a.predict-2.png"]
    assert [line.split()[-1] for line in lines[1::2]] == list(map(str, paths))
    assert sorted(folder.iterdir()) == sorted(paths)
    first, second = (np.asarray(Image.open(path)) for path in paths)
    assert first.shape[1] == 1200 and len(first) > 1350
    assert (first[:450] != second[:450]).any()  # what the network saw


@pytest.mark.parametrize(
    "notes, message",
    [
        ({}, "its note input_shape must be .*, got None"),
        ({"input_shape": [28, 28, 1]}, "takes 4 inputs|do not fit the network"),
        *(
            ({"input_shape": shape}, "its note input_shape must be .H, W, C.")
            for shape in ([2, 2], [2, 1, 2], [10**9, 10**9, 3], "28", [True, 2, 1])
        ),
        (NOTES | {"class_names": ["a", "b"]}, "class_names must be 3 names"),
        (NOTES | {"pictures": NOTES["pictures"] | {"fit": "ink"}}, "28×28 .* alone"),
    ],
)
def test_refuses_notes(weights, notes, message):
    with pytest.raises(SystemExit, match=f"^ds4nn predict: .*({message})"):
        commands.main(["predict", "x.png", weights(notes)])


ONE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = ONE | st.lists(ONE, max_size=4) | st.dictionaries(st.text(max_size=3), ONE)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(JSON | st.just([2, 2, 1]), JSON | st.lists(st.text(), min_size=3, max_size=3))
@example([2, 2, 1], ["a", 1, None])
@example([4, 1, 1], {"a": 1, "b": 2, "c": 3})
def test_any_notes_give_answers_or_one_line(capsys, weights, picture, shape, names):
    fit = names if isinstance(names, dict) else None
    notes = {"input_shape": shape, "class_names": names, "pictures": fit}
    flag = weights(notes)
    refusal = ""
    try:
        commands.main(["predict", picture("a.png", 255, 0, 0, 0), flag])
    except SystemExit as end:
        refusal = end.code
    out, err = capsys.readouterr()
    assert bool(out) != bool(refusal)
    lines = *err.splitlines(), out.removesuffix("\n").split("\n")[0]
    assert all(line.isprintable() for line in (refusal, *lines))


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--weights=absent", "no file absent, and no shipped network: fashion_mnist"),
        ("--weights=.", "cannot be used"),
        ("--urgency=-1", "urgency must be"),
        ("--top=0", "--top must be at least 1, got 0"),
        ("--top=many", "invalid int value: 'many'"),
    ],
)
def test_refuses(flag, message, capsys):
    with pytest.raises(SystemExit) as caught:
        commands.main(["predict", "x.png", flag])
    assert message in str(caught.value) + capsys.readouterr().err


def test_pictures_of_any_size_for_a_trained_run(smoke_run, tmp_path, capsys):
    digits = data.load("digits")
    image = np.round(digits.test_images[0, ..., 0] * 255).astype(np.uint8)
    right, inverted, large = (str(tmp_path / f"{n}.png") for n in "abc")
    Image.fromarray(image).save(right)
    Image.fromarray(255 - image).save(inverted)
    Image.fromarray(np.kron(image, np.ones((5, 5), np.uint8))).save(large)
    flag = f"--weights={smoke_run[0] / 'best.safetensors'}"
    first, second, remark = predicted(capsys, right, large, flag)
    (third,) = predicted(capsys, inverted, "--invert", flag)
    assert remark == "  scaled from 40×40 to fit 8×8"
    answers = {line.split(": ")[1] for line in (first, second, third)}
    assert len(answers) == 1 and answers.pop()[0].isdigit()
