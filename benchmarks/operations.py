"""What a training step costs an accelerator, counted: the scan against a dense CNN.

    python -m benchmarks.operations

Nothing runs. The programs that are lowered where there are matrix units are walked
through, turns of a scan as often as they are taken: multiplications with addition in
products and convolutions, by type, and the bytes that all operations read and write if
none were fused (elementwise ones are, so what moves is less, on both sides).
"""

import argparse
import functools
import math
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ds4nn_jax as ds
from benchmarks.network import ReluCNN

SPEC = "64C3-P2-128C3-P2-10"


def counted(jaxpr: jax.extend.core.Jaxpr, times: int = 1) -> Counter:
    """Of a program: "products bfloat16", "products float32", "bytes"."""
    found: Counter = Counter()
    for equation in jaxpr.eqns:
        inner, turns = _inside(equation)
        if inner:
            for each in inner:
                found += counted(each, times * turns)
            continue
        values = [*equation.invars, *equation.outvars]
        moved = sum(v.aval.size * v.aval.dtype.itemsize for v in values if _moves(v))
        found["bytes"] += times * moved
        products = _products(equation)
        if products:
            found[f"products {equation.invars[0].aval.dtype}"] += times * products
    return found


def _inside(equation) -> tuple[list, int]:
    """The programs within an operation, and how often they are run."""
    params, name = equation.params, equation.primitive.name
    if name == "cond":  # of platforms: the last is that of all but CPUs
        return [params["branches"][-1].jaxpr], 1
    if name == "while":
        raise ValueError("a loop of unknown length")
    held = [params.get(key) for key in ("jaxpr", "call_jaxpr", "fun_jaxpr")]
    inner = [getattr(each, "jaxpr", each) for each in held if each is not None]
    return inner, params["length"] if name == "scan" else 1


def _moves(value) -> bool:
    return hasattr(value.aval, "size") and hasattr(value.aval.dtype, "itemsize")


def _products(equation) -> int:
    if equation.primitive.name not in ("dot_general", "conv_general_dilated"):
        return 0
    out = equation.outvars[0].aval
    left, right = (v.aval for v in equation.invars[:2])
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return out.size * math.prod(left.shape[axis] for axis in contracted)
    numbers = equation.params["dimension_numbers"]
    outputs = right.shape[numbers.rhs_spec[0]]
    return out.size * right.size // outputs


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    asked = parser.parse_args(argv)
    images = np.zeros((asked.batch, 28, 28, 1), np.uint8)
    labels = np.zeros(asked.batch, np.int32)
    plain = dict(urgency=0, pulses=(), centring=0, optimizer="adam")
    config = ds.TrainConfig(spec=SPEC, engine="scan", batch_size=asked.batch, **plain)
    optimizer = ds.make_optimizer(config, 100)
    params = jax.eval_shape(
        config.network().init, jax.random.key(0), ds.encode(images[:1])
    )
    state = ds.TrainState(
        jnp.zeros((), jnp.int32),
        params,
        jax.eval_shape(optimizer.init, params),
        jax.random.key(0),
    )
    step = functools.partial(ds.train_step, config, optimizer)
    spiking = jax.make_jaxpr(step)(state, images, labels).jaxpr

    network, adam = ReluCNN(), optax.adam(1e-3)

    def loss(params, images):
        logits = network.apply(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def dense_step(params, state, images):
        updates, state = adam.update(jax.grad(loss)(params, images), state, params)
        return optax.apply_updates(params, updates), state

    grey = jnp.zeros(images.shape, jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), grey[:1])
    start = jax.eval_shape(adam.init, params)
    dense = jax.make_jaxpr(dense_step)(params, start, grey).jaxpr
    ours, theirs = counted(spiking), counted(dense)
    all_theirs = sum(n for kind, n in theirs.items() if kind.startswith("products"))
    print(
        f"| training step of {SPEC}, batch {asked.batch}, T = {config.num_steps} "
        "| scan | dense CNN | scan / dense |\n|---|---:|---:|---:|"
    )
    for kind in sorted(ours.keys() | theirs.keys()):
        whole = theirs["bytes"] if kind == "bytes" else all_theirs
        name = "bytes read and written" if kind == "bytes" else kind
        print(
            f"| {name}, million | {ours[kind] / 1e6:,.0f} | {theirs[kind] / 1e6:,.0f} "
            f"| {ours[kind] / whole:,.1f} |"
        )


if __name__ == "__main__":
    main()
