"""The shapes of a layer, as the engines with kernels of their own need them."""

from typing import Any

import jax
import jax.numpy as jnp

from ds4nn_jax._engines.synapse import NO_POOL, Dense, Response, Synapse

Shape = jax.ShapeDtypeStruct


def response(
    synapse, times, kernel, *, num_steps, peaks, pool=NO_POOL, counts=False
) -> Response:
    """The shapes that a forward pass gives."""
    shape = jax.eval_shape(synapse.current, times, kernel).shape
    pooled = pool != NO_POOL
    if pooled:
        shape = (shape[0], shape[1] // pool[0], shape[2] // pool[1], shape[3])
    out: Any = Shape(shape, times.dtype)
    counted: Any = Shape((shape[0], 1 + pooled, num_steps), jnp.int32)
    return Response(
        out,
        out if peaks else None,
        out if peaks else None,
        out if pooled else None,
        counted if counts else None,
    )


def needed(shapes: Response, arrays) -> Response:
    """The arrays of a response; None where there is no shape."""
    pairs = zip(shapes, arrays, strict=True)
    kept: Any = (None if shape is None else x for shape, x in pairs)
    return Response(*kept)


def geometry(synapse: Synapse, times, kernel, out, pool) -> dict[str, int]:
    """Images, windows and strides; a dense layer has 1×1 images.

    `out` is the shape of what leaves the layer, behind the pooling.
    """
    if isinstance(synapse, Dense):
        image = after = window = strides = (1, 1)
        top = left = 0
    else:
        (top, _), (left, _) = synapse.pads
        image, after = times.shape[1:3], out[1:3]
        window, strides = kernel.shape[:2], synapse.strides
    return dict(
        images=times.shape[0],
        height=image[0],
        width=image[1],
        inputs=times.shape[-1],
        out_height=after[0],
        out_width=after[1],
        outputs=kernel.shape[-1],
        rows=window[0],
        columns=window[1],
        row_stride=strides[0],
        column_stride=strides[1],
        top=top,
        left=left,
        pool_rows=pool[0],
        pool_columns=pool[1],
    )
