"""The choice between the engines, made where a computation is lowered.

The event engine computes on CPUs and on NVIDIA GPUs, if its kernels are usable;
elsewhere, and where a program is exported (another process cannot use the machine code
of this one), the scan does. All mean the same.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from ds4nn_jax._engines import cuda as gpu
from ds4nn_jax._engines import library
from ds4nn_jax._engines.plan import Plan

_MOST_SUMS = 2**26  # gradients of weights, in all parts of a call for several networks


def call(
    kernel: str,
    dtype: np.dtype,
    results: Sequence[Any],
    plan: Plan | np.ndarray,
    *arrays: jax.Array,
) -> Sequence[jax.Array]:
    """Calls a compiled kernel; where the computation is lowered for the CPU.

    Mapped over, it is one call for several networks; of a plan of another kind, or
    where networks are many and large, it is a loop over calls.
    """
    name = library.target(kernel, dtype.name)

    def once(results, plan):
        function = jax.ffi.ffi_call(name, results, vmap_method="sequential")
        return functools.partial(function, plan=np.array(plan, np.int64))

    if not isinstance(plan, Plan):
        return once(results, plan)(*arrays)
    of_one = jax.custom_batching.custom_vmap(once(results, plan))

    @of_one.def_vmap
    def of_several(size, mapped, *arrays):
        several_of = [True] * len(results)
        if kernel == "backward":
            sums = size * plan.image_parts * math.prod(results[1].shape)
            if sums > _MOST_SUMS:
                moving = [0 if m else None for m in mapped]
                return jax.vmap(once(results, plan), moving)(*arrays), several_of
        stacked = [jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for x in results]
        strides = {
            f"stride_{k}": x.nbytes // size if m else 0
            for k, (x, m) in enumerate(zip(arrays, mapped, strict=True))
        }
        several = plan._replace(networks=size, **strides)
        return once(stacked, several)(*arrays), several_of

    return of_one(*arrays)


def choose(
    kernel: str,
    event: Callable,
    scan: Callable,
    shapes: Any,
    *arrays: jax.Array,
    only: bool = False,
    cuda: Callable | None = None,
) -> Any:
    """event(*arrays) on a CPU where its `kernel` is usable, else scan(*arrays).

    Where there is a `cuda`, it takes the place of `event` on an NVIDIA GPU. All mean
    the same and give arrays like `shapes`. With `only` another engine than this is an
    error.
    """
    leaves, structure = jax.tree.flatten(shapes)
    if 0 in arrays[0].shape:
        zeros = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        return jax.tree.unflatten(structure, zeros)
    if only:
        library.require(kernel, arrays[0].dtype.name)
    static = tuple((leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves)
    results = engine_p.bind(
        *arrays,
        kernel=kernel,
        event=functools.partial(_leaves, event),
        scan=functools.partial(_leaves, scan),
        cuda=cuda and functools.partial(_leaves, cuda),
        shapes=static,
        # A backward pass sums the gradients of weights over the images.
        of_images=tuple(
            k not in (1, 2) if kernel == "backward" else k == 0
            for k in range(len(arrays))
        ),
        summed=tuple(kernel == "backward" and k > 0 for k in range(len(static))),
        only=only,
        partitioned=_partitioned(),
    )
    return jax.tree.unflatten(structure, results)


@functools.cache
def _partitioned() -> Any:
    """A program with a partitioning rule: where one is among a primitive's parameters,
    JAX tells the primitive's lowering the devices."""
    program = custom_partitioning(lambda x: x)
    program.def_partition(None)
    return jax.make_jaxpr(program)(np.float32(0))


def _leaves(function: Callable, *arrays: jax.Array) -> list[jax.Array]:
    return jax.tree.leaves(function(*arrays))


# Not `lax.platform_dependent`: that traces both engines, which is most of a start.
engine_p = Primitive("ds4nn_engine")
engine_p.multiple_results = True


@engine_p.def_abstract_eval
def _abstract(*arrays, shapes, **static):
    varying = frozenset().union(*(getattr(x, "vma", ()) for x in arrays))
    varies = {"vma": varying} if varying else {}
    return [jax.core.ShapedArray(shape, dtype, **varies) for shape, dtype in shapes]


@engine_p.def_impl
def _eager(*arrays, **static):
    with jax.disable_jit(False):
        return jax.jit(functools.partial(engine_p.bind, **static))(*arrays)


def _mapped(arrays, axes, *, event, scan, cuda, shapes, of_images, summed, **static):
    """A mapped axis of images makes a larger batch, any other several networks.

    `of_images` are the arrays that have an axis of images in front, as all results have
    but those that are `summed` over it.
    """
    size = next(x.shape[n] for x, n in zip(arrays, axes, strict=True) if n is not None)
    arrays = [
        x if n is None else jnp.moveaxis(x, n, 0)
        for x, n in zip(arrays, axes, strict=True)
    ]
    moving = tuple(n is not None for n in axes)
    one_batch = moving == of_images and not any(summed)

    def mapped(engine):
        if one_batch and engine is not scan:
            return functools.partial(_over_images, engine)
        return jax.vmap(engine, tuple(0 if m else None for m in moving))

    results = engine_p.bind(
        *arrays,
        event=mapped(event),
        scan=mapped(scan),
        cuda=cuda and mapped(cuda),
        shapes=tuple(((size, *shape), dtype) for shape, dtype in shapes),
        of_images=moving,
        summed=(False,) * len(shapes),
        **static,
    )
    return results, [0] * len(shapes)


def _over_images(event: Callable, images: jax.Array, *others: jax.Array) -> list:
    size, batch = images.shape[:2]
    results = event(images.reshape(size * batch, *images.shape[2:]), *others)
    return [x.reshape(size, batch, *x.shape[1:]) for x in results]


batching.primitive_batchers[engine_p] = _mapped


def _lower_for_cpu(ctx, *operands, kernel, event, scan, **static):
    exporting = ctx.module_context.lowering_parameters.for_export
    dtype = ctx.avals_in[0].dtype.name
    if exporting or not library.usable(kernel, dtype):
        return mlir.lower_fun(scan, multiple_results=True)(ctx, *operands)
    return _partition(ctx, *operands, engine=event, **static)


def _lower_for_cuda(ctx, *operands, cuda, **static):
    exporting = ctx.module_context.lowering_parameters.for_export
    dtypes = {aval.dtype.name for aval in ctx.avals_in}
    if cuda is None or exporting or not all(map(gpu.usable, dtypes)):
        return _lower_elsewhere(ctx, *operands, **static)
    return _partition(ctx, *operands, engine=cuda, **static)


def _partition(ctx, *operands, engine, of_images, summed, **static):
    """Lowers an engine so that each of several devices computes its own images."""
    context = ctx.module_context.axis_context
    if len(getattr(context, "device_assignment", None) or ()) < 2:
        return mlir.lower_fun(engine, multiple_results=True)(ctx, *operands)

    def partition(mesh, arrays, results):
        first = arrays[of_images.index(True)]
        axes = tuple(first.sharding.spec)[:1]
        if axes and first.shape[0] % mesh.size:
            axes = ()  # shards would be filled up with what is no image
        everywhere = NamedSharding(mesh, PartitionSpec())
        by_image = NamedSharding(mesh, PartitionSpec(*axes))

        def compute(*arrays):
            results = engine(*arrays)
            if not axes or axes[0] is None:
                return results
            pairs = zip(results, summed, strict=True)
            return [jax.lax.psum(x, axes[0]) if total else x for x, total in pairs]

        to_results = [everywhere if total else by_image for total in summed]
        of_arrays = [by_image if images else everywhere for images in of_images]
        return mesh, compute, to_results, tuple(of_arrays)

    def rule(mesh, arrays, results):
        """Factor "b" is the images; each other factor is one array's, and not split."""
        pairs = [*zip(arrays, of_images, strict=True)]
        pairs += [(x, not total) for x, total in zip(results, summed, strict=True)]
        names = [
            ["b" if images and axis == 0 else f"x{k}_{axis}" for axis in range(x.rank)]
            for k, (x, images) in enumerate(pairs)
        ]
        replicated = tuple(name for axes in names for name in axes if name != "b")
        words = [" ".join(axes) for axes in names]
        sides = words[: len(arrays)], words[len(arrays) :]
        text = " -> ".join(", ".join(side) for side in sides)
        return text, dict(need_replication_factors=replicated)

    shared = custom_partitioning(engine)
    shared.def_partition(partition=partition, sharding_rule=rule)
    return mlir.lower_fun(shared, multiple_results=True)(ctx, *operands)


def _lower_elsewhere(ctx, *operands, scan, only, **static):
    if only:
        platforms = ", ".join(ctx.module_context.platforms)
        raise NotImplementedError(
            f'engine="event" computes on CPUs, not on {platforms}: use "auto" or "scan"'
        )
    return mlir.lower_fun(scan, multiple_results=True)(ctx, *operands)


mlir.register_lowering(engine_p, _lower_elsewhere)
mlir.register_lowering(engine_p, _lower_for_cpu, platform="cpu")
mlir.register_lowering(engine_p, _lower_for_cuda, platform="cuda")
