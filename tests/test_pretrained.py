import conftest
import numpy as np
import pytest

import ds4nn_jax as ds
from ds4nn_jax import data, pretrained


@pytest.mark.parametrize("name", pretrained.names())
def test_decides_as_its_card_says(name):
    """A thousand real test images: within four standard errors of the card."""
    folder = conftest.real_data_dir(name)
    if folder is None:
        pytest.skip(f"no real {name} at hand")
    network, params, card = pretrained.load(name)
    images = data.load(name, folder)
    report = ds.evaluate(
        network, params, images.test_images[:1000], images.test_labels[:1000]
    )
    share = card["accuracy"]
    error = 4 * np.sqrt(share * (1 - share) / 1000)
    assert report.accuracy == pytest.approx(share, abs=error)
    assert report.decision_step == pytest.approx(card["decision_step"], rel=0.2)
    assert report.spikes == pytest.approx(card["spikes"], rel=0.1)


@pytest.mark.parametrize("name", pretrained.names())
def test_weights_are_float32_for_the_paper_s_network(name):
    network, params, card = pretrained.load(name)
    assert network.spec == card["spec"] and network.num_steps == 100
    assert {w["kernel"].dtype for w in params["params"].values()} == {np.dtype("f4")}


def test_unknown_name():
    with pytest.raises(ValueError, match="no trained network 'svhn': .*mnist"):
        pretrained.load("svhn")
