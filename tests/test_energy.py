import ds4nn_jax as ds
from ds4nn_jax.networks import energy


def test_by_hand():
    network = ds.SpikingNetwork.from_spec("4C3-P2-10")
    # 8×8×1 → 8×8×4 → 4×4×4 = 64 → 10
    assert energy.multiply_accumulates(network, (8, 8, 1)) == 64 * 9 * 4 + 64 * 10
    # An input spike reaches 9·4 synapses, a pooled one 10; what pooling takes in, none.
    spikes = (5, 1000, 7, 1)
    assert energy.synaptic_operations(network, (8, 8, 1), spikes) == 5 * 36 + 7 * 10


def test_fully_connected_and_valid_padding():
    network = ds.SpikingNetwork.from_spec("6-3-2")
    assert energy.multiply_accumulates(network, (6,)) == 6 * 3 + 3 * 2
    assert energy.synaptic_operations(network, (6,), (4, 2, 1)) == 4 * 3 + 2 * 2
    valid = ds.SpikingNetwork.from_spec("4C3-10", padding="VALID")
    assert energy.multiply_accumulates(valid, (8, 8, 1)) == 36 * 36 + 36 * 4 * 10


def test_reference_spikes_reach_a_whole_layer():
    """64 places of 4 channels each, and 10 outputs; pooling has no such neurons."""
    network = ds.SpikingNetwork.from_spec("4C3-P2-10", pulses=(3, 1))
    assert energy.reference_operations(network, (8, 8, 1), (3, 0, 1)) == 3 * 256 + 10
    second = ds.SpikingNetwork.from_spec("4C3s2-10", pulses=(3, 1))
    assert energy.reference_operations(second, (8, 8, 1), (1, 0)) == 4 * 4 * 4
    spikes = (5, 1000, 7, 1)
    bare = network.clone(pulses=())
    both = (energy.synaptic_operations(n, (8, 8, 1), spikes) for n in (network, bare))
    assert len({*both}) == 1, "the others are counted without them"


def test_bytes_by_hand():
    """Of 214 additions (as above) and, of reference neurons, 3·256 + 10."""
    network = ds.SpikingNetwork.from_spec("4C3-P2-10", pulses=(3, 1))
    shape, spikes = (8, 8, 1), (4, 20, 7, 1)
    own = energy.bytes_moved(network, shape, spikes, bits=4)
    assert own == (214 / 2, 4 * 214, 8 * 32)
    pulsed = energy.bytes_moved(network, shape, spikes, (3, 0, 1))
    assert pulsed == (214 + 2 * 778, 4 * (214 + 778), 8 * 32)
    products, neurons = 64 * 9 * 4 + 64 * 10, 64 * 4 + 10
    relu = energy.relu_bytes_moved(network, shape)
    assert relu == (products, 0, products + neurons)


def test_a_stride_reaches_fewer_neurons():
    """Of windows at every second place a spike reaches a quarter."""
    every, second = (
        ds.SpikingNetwork.from_spec(f"4C3{stride}-10") for stride in ("", "s2")
    )
    one = [1.0, 0.0, 0.0]
    assert energy.synaptic_operations(every, (8, 8, 1), one) == 9 * 4
    assert energy.synaptic_operations(second, (8, 8, 1), one) == 9 * 4 / 4
    assert energy.multiply_accumulates(second, (8, 8, 1)) == 16 * 9 * 4 + 64 * 10
