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
    *(
        "--dataset=digits",
        "--preset=digits",
        "--train_limit=200",
        "--batch_size=40",
        "--epochs=2",
    ),
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
        spec="64-10", batch_size=40, epochs=2, seed=3, augmentation=spy, num_steps=20
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
    """(soft labels, what `main` returns, network, its variables) of the digits."""
    trained, train = [], teacher._train
    file = tmp_path_factory.mktemp("teacher") / "new/a.npy"

    def noted(network, *args):
        trained.extend((network, train(network, *args)))
        return trained[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "_train", noted)
        result = teacher.main([*FLAGS, f"--soft_labels={file}"])
    return np.load(file), result, *trained


def test_soft_labels_are_of_what_each_epoch_sees(taught):
    soft, result, network, variables = taught
    assert (soft.shape, soft.dtype) == ((2, 200, 10), np.float16)
    np.testing.assert_allclose(soft.sum(axis=2, dtype=np.float32), 1, atol=1e-3)
    assert 0 <= result["test_accuracy"] <= 1
    digits = data.load("digits")
    images, labels = digits.train_images[:200], digits.train_labels[:200]
    config = ds.TrainConfig(
        batch_size=40, epochs=2, seed=3, augmentation=Augmentation(1, flip=True)
    )
    kept, held = batching.split(config, labels)
    views = images, images[:, :, ::-1]
    alone = [teacher.probabilities(network, variables, v, False) for v in views]
    np.testing.assert_allclose(soft[0, held], np.mean(alone, 0)[held], atol=2e-3)
    batches = batching.epoch_batches(config, kept, 2)
    visible = teacher.seen_in(config, images, batches, len(batches))
    expected = teacher.probabilities(network, variables, visible, True)
    np.testing.assert_allclose(soft[1, batches.ravel()], expected, atol=2e-3)


def test_held_out_images_teach_nothing_and_labels_have_their_share(
    taught, tmp_path, monkeypatch
):
    digits = data.load("digits")
    labels = digits.train_labels[:200]
    kept, held = batching.split(ds.TrainConfig(seed=3), labels)
    images = digits.train_images.copy()
    images[held] = 255 - images[held]
    other = digits._replace(train_images=images)
    monkeypatch.setattr(data, "load", lambda *_: other)
    file = tmp_path / "b.npy"
    teacher.main([*FLAGS, f"--soft_labels={file}", "--label_share=0.75"])
    expected = 0.75 * np.eye(10)[labels] + 0.25 * np.float64(taught[0])
    np.testing.assert_allclose(np.load(file)[:, kept], expected[:, kept], atol=5e-4)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--dataset=digits", "--soft_labels=x.npy", "--batch_size=9999"], "larger"),
        (["--dataset=digits", "--soft_labels=x.npy", "--teacher_wide=3"], "_wide"),
        (["--soft_labels=x.npy"], "2"),  # argparse's status
    ],
)
def test_what_is_refused_before_any_work(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        teacher.main(flags)
    assert not list(tmp_path.iterdir())
