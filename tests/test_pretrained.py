import conftest
import numpy as np
import pytest

import ds4nn_jax as ds
from ds4nn_jax import data
from ds4nn_jax.networks import pretrained

QUICK = "mnist_sparse"
OTHERS = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in pretrained.names()
    if name != QUICK
]


@pytest.mark.parametrize("name", [QUICK, *OTHERS])
def test_gives_exactly_its_card_s_figures(name):
    network, params, card = pretrained.load(name)
    dataset = card["dataset"]
    folder = conftest.real_data_dir(dataset)
    if folder is None:
        pytest.skip(f"no real {dataset} at hand")
    images = data.load(dataset, folder)
    report = ds.evaluate(network, params, images.test_images, images.test_labels)
    seen = report.summary()
    for measure in ("accuracy", "lenient_accuracy", "tied", "silent", "decision_step"):
        assert seen[measure] == card[measure], measure
    assert report.spikes == card["spikes"]
    assert report.silent < 0.03, "images are decided by spikes"


@pytest.mark.parametrize("name", pretrained.names())
def test_weights_are_whole_numbers_for_the_paper_s_network(name):
    network, params, card = pretrained.load(name)
    assert network.spec == card["spec"] and network.num_steps == 100
    assert {w["kernel"].dtype for w in params["params"].values()} == {np.dtype("i1")}
