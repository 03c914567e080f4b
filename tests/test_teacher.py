"""A teacher's soft labels are those of the images that the student sees."""

import dataclasses

import jax
import numpy as np
import pytest

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.training import batching
from ds4nn_jax.training.augmentation import Augmentation
from experiments import teacher

pytestmark = pytest.mark.slow

FLAGS = [
    *("--preset=digits", "--train_limit=200", "--batch_size=40", "--epochs=2"),
    *("--seed=3", "--augmentation.flip=true", "--augmentation.shift=1"),
    *("--teacher_width=1", "--teacher_blocks=1", "--teacher_epochs=2"),
]


@dataclasses.dataclass(frozen=True)
class Spy(Augmentation):
    """Notes the images of every step."""

    notes: list = dataclasses.field(default_factory=list, compare=False, hash=False)

    def apply(self, key, images):
        images = super().apply(key, images)
        jax.debug.callback(self._note, images, ordered=True)
        return images

    def _note(self, images):
        self.notes.append(np.array(images))


def test_the_images_of_a_run_are_those_that_its_steps_see():
    digits = data.load("digits")
    images, labels = digits.train_images[:200], digits.train_labels[:200]
    spy = Spy(shift=1, flip=True, rotation=20.0)
    config = ds.TrainConfig(
        spec="64-10", batch_size=40, epochs=2, seed=3, augmentation=spy
    )
    list(ds.train(config, images, labels))
    plain = Augmentation(spy.shift, spy.flip, spy.rotation)
    config = dataclasses.replace(config, augmentation=plain)
    kept, held = batching.split(config, labels)
    assert len(held) == 20 and len(spy.notes) == 2 * 4
    steps = iter(spy.notes)
    for epoch in (1, 2):
        batches = batching.epoch_batches(config, kept, epoch)
        seen = teacher.seen_in(config, images, batches, (epoch - 1) * len(batches))
        for part in np.split(np.asarray(seen), len(batches)):
            np.testing.assert_array_equal(part, next(steps))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """(folder, what `main` returns) of a teacher of the digits."""
    out = tmp_path_factory.mktemp("teacher") / "new"
    files = [
        f"--teacher_out={out}/weights.safetensors",
        f"--soft_labels_out={out}/a.npy",
    ]
    return out, teacher.main([*FLAGS, *files])


def test_soft_labels_are_of_what_each_epoch_sees(taught):
    out, result = taught
    soft = np.load(out / "a.npy", mmap_mode="r")
    assert (soft.shape, soft.dtype) == ((2, 200, 10), np.float16)
    np.testing.assert_allclose(soft.sum(axis=2, dtype=np.float32), 1, atol=1e-3)
    assert 0 <= result["test_accuracy"] <= 1
    digits = data.load("digits")
    images, labels = digits.train_images[:200], digits.train_labels[:200]
    config = ds.TrainConfig(
        batch_size=40, epochs=2, seed=3, augmentation=Augmentation(1, flip=True)
    )
    kept, held = batching.split(config, labels)
    training = [("images", images[kept]), ("labels", labels[kept])]
    network, variables = teacher._load(
        out / "weights.safetensors", teacher.digest("teacher", training)
    )
    views = images, images[:, :, ::-1]
    alone = [teacher.probabilities(network, variables, v, False) for v in views]
    np.testing.assert_allclose(soft[0, held], np.mean(alone, 0)[held], atol=2e-3)
    batches = batching.epoch_batches(config, kept, 2)
    seen = teacher.seen_in(config, images, batches, len(batches))
    expected = teacher.probabilities(network, variables, seen, True)
    np.testing.assert_allclose(soft[1, batches.ravel()], expected, atol=2e-3)


def test_a_teacher_serves_again_and_labels_have_their_share(taught, tmp_path):
    out, _ = taught
    weights = f"--teacher_from={out}/weights.safetensors"
    mixed = f"--soft_labels_out={tmp_path}/b.npy", "--label_share=0.75"
    teacher.main([*FLAGS, weights, *mixed])
    soft, mixed = np.load(out / "a.npy"), np.load(tmp_path / "b.npy")
    true = np.eye(10)[data.load("digits").train_labels[:200]]
    np.testing.assert_allclose(mixed, 0.75 * true + 0.25 * soft, atol=2e-3)
    for other in ("--seed=4", "--validation=0.2", "--train_limit=150"):
        with pytest.raises(SystemExit, match="learnt from other images"):
            teacher.main([*FLAGS, weights, f"--soft_labels={tmp_path}/c.npy", other])


def test_held_out_images_teach_nothing(taught, tmp_path, monkeypatch):
    """Weights are the same bytes whatever they are."""
    digits = data.load("digits")
    labels = digits.train_labels[:200]
    _, held = batching.split(ds.TrainConfig(seed=3), labels)
    images = digits.train_images.copy()
    images[held] = 255 - images[held]
    other = digits._replace(train_images=images)
    monkeypatch.setattr(data, "load", lambda *_: other)
    again = tmp_path / "again.safetensors"
    teacher.main([*FLAGS, f"--teacher_out={again}"])
    assert again.read_bytes() == (taught[0] / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--dataset=digits", "--soft_labels=x.npy", "--batch_size=9999"], "larger"),
        (["--soft_labels=x.npy"], "which data set"),
        (
            ["--preset=digits", "--soft_labels=x.npy", "--teacher_wide=3"],
            "teacher_wide",
        ),
    ],
)
def test_what_is_refused_before_any_work(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        teacher.main(flags)
    assert not list(tmp_path.iterdir())
