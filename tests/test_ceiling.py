import json

import numpy as np
import pytest

from experiments import ceiling


def test_only_what_has_spiked_is_seen():
    """T = 4: 255, 128 and 64 spike at steps 0, 1 and 2, black never."""
    image = np.array([255, 128, 64, 0], np.uint8).reshape(1, 2, 2, 1)
    for step, left in enumerate(
        ([1, 0, 0], [1, 128 / 255, 0], [1, 128 / 255, 64 / 255])
    ):
        seen = np.asarray(ceiling.seen_by(image, np.array([step]), num_steps=4))
        np.testing.assert_allclose(seen[..., 0].ravel(), [*left, 0], rtol=1e-6)
        assert (seen[..., 1] == (step + 1) / 4).all()


@pytest.mark.slow
def test_ceiling_of_the_digits(tmp_path):
    """More is known later."""
    flags = ["--dataset=digits", "--spec=8C3-P2-10", "--epochs=8", "--batch_size=16"]
    result = ceiling.main([*flags, f"--out={tmp_path / 'new/known.json'}"])
    assert json.loads((tmp_path / "new/known.json").read_text()) == result
    by_step = result["test_accuracy"]
    assert len(by_step) == len(result["steps"]) == 21 and result["steps"][-1] == 99
    assert by_step[-1] > 0.85 and by_step[-1] > by_step[0] + 0.1
