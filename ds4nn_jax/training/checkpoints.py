"""Checkpoints of a training run on disk, from which a stopped run goes on.

orbax writes them: each gets its name only once it is whole, so a run may be killed at
any moment. Nothing that is read is executed.
"""

import json
import os
import re
import shutil
import tempfile
import weakref
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ds4nn_jax._values import Value
from ds4nn_jax.networks.weights import digest
from ds4nn_jax.training import parallel
from ds4nn_jax.training.config import TrainConfig
from ds4nn_jax.training.loop import Checkpoint

FORMAT = "ds4nn_jax checkpoint 3"
_KEPT = 2
_REMEDY = "remove it to go on from an older one"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or used; the message says why."""


class Checkpoints:
    """The checkpoints of one run in one directory; the latest two are kept."""

    def __init__(self, directory: str | os.PathLike, config: TrainConfig, **data):
        """Of a run of this configuration; `data` is what else determines it, as JSON:
        the data set, how many images of it. A checkpoint of another one is refused."""
        self._directory = Path(directory).absolute()
        # Values by their repr: those of users' own classes have no other name.
        run = {field.name: getattr(config, field.name) for field in fields(config)}
        run = {k: repr(v) if isinstance(v, Value) else v for k, v in run.items()}
        del run["epochs"]  # a run may be gone on with for longer
        self._run = json.loads(json.dumps(run | data | {"format": FORMAT}))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT,
            enable_async_checkpointing=False,
            create=False,
            cleanup_tmp_directories=True,
            # This process writes alone, also as one of several.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix="ds4nn_jax",
            ),
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self._plain(), options=options)
        except OSError as error:
            raise CheckpointError(
                f"{directory} cannot hold checkpoints: {error}"
            ) from error

    def _plain(self) -> Path:
        """The directory by a name that orbax can write to: it reads [ as a pattern,
        tensorstore reads \\ as /, and neither takes bytes that are not UTF-8."""
        odd = re.search(r"[\[\\\ud800-\udfff]", str(self._directory))
        if not odd or os.name == "nt":
            return self._directory
        folder = tempfile.mkdtemp(prefix="ds4nn_jax-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        link = Path(folder) / "checkpoints"
        link.symlink_to(self._directory, target_is_directory=True)
        return link

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, whole or not at all; older ones stay until it is there.
        Raises CheckpointError if it cannot (the disk is full, say)."""
        host = parallel.to_host(checkpoint)
        about = dict(run=self._run, steps=len(host.metrics), sha256=_digest(host))
        # The end of an epoch has the number of its last step, but is the later of both.
        latest = self._manager.latest_step()
        step = max(int(checkpoint.state.step), -1 if latest is None else latest + 1)
        items = dict(
            checkpoint=ocp.args.StandardSave(host._asdict()),
            about=ocp.args.JsonSave(about),
        )
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise CheckpointError(
                f"no checkpoint could be written to {self._directory}: {_line(error)}; "
                f"whole ones there: {self._manager.all_steps(read=True) or 'none'}"
            ) from error

    def latest(self, like: Checkpoint) -> Checkpoint | None:
        """The latest checkpoint, or None if there is none.

        `like` is one of the same run, or its shapes, as `initial_checkpoint` gives
        them. Raises CheckpointError if it is damaged, of another format or run.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        where = self._directory / str(step)
        about = self._read(step, "about", ocp.args.JsonRestore())
        run = about.get("run", {})
        for name in sorted(run.keys() | self._run.keys()):
            if run.get(name) != self._run.get(name):
                raise CheckpointError(
                    f"{where} is of another run: its {name} is {run.get(name)!r}, "
                    f"expected {self._run.get(name)!r} (if it cannot be, the "
                    f"checkpoint is damaged: {_REMEDY})"
                )
        # `like` may not know how many steps an epoch has.
        shape = int(about.get("steps", 0)), *like.metrics.shape[1:]
        like = like._replace(metrics=np.zeros(shape, np.float32))
        restore = ocp.args.StandardRestore(jax.tree.map(_blank, like)._asdict())
        host = Checkpoint(**self._read(step, "checkpoint", restore))
        if _digest(host) != about.get("sha256"):
            raise CheckpointError(
                f"{where} is damaged: its checksum does not match; {_REMEDY}"
            )
        return parallel.from_host(host, like)

    def _read(self, step: int, item: str, how: Any) -> Any:
        """One item of a checkpoint."""
        try:
            items = self._manager.restore(step, args=ocp.args.Composite(**{item: how}))
            return items[item]
        except Exception as error:  # orbax and tensorstore raise many kinds
            where = self._directory / str(step)
            raise CheckpointError(
                f"{where} is damaged: {_line(error)}; {_REMEDY}"
            ) from error


def _blank(leaf) -> np.ndarray:
    """What `parallel.to_host` makes of a leaf with this shape and type."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return np.zeros(leaf.shape, leaf.dtype)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _digest(host: Checkpoint) -> str:
    """Of a checkpoint as `parallel.to_host` gives it: orbax reads arrays of which a bit
    has flipped on disk without a word."""
    leaves = jax.tree_util.tree_leaves_with_path(host)
    return digest("", ((jax.tree_util.keystr(path), array) for path, array in leaves))
