"""Checkpoints of a training run on disk, with which a run goes on after it was stopped.

orbax writes them: each under a name of its own that it only gets once it is whole, so a
run may be killed at any moment. Nothing that is read is executed.
"""

import json
import os
import shutil
import tempfile
import weakref
from dataclasses import fields
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from ds4nn_jax._values import Value
from ds4nn_jax.networks.weights import digest
from ds4nn_jax.training import parallel
from ds4nn_jax.training.config import TrainConfig
from ds4nn_jax.training.loop import Checkpoint

FORMAT = "ds4nn_jax checkpoint"
VERSION = 3
_KEPT = 2


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or used; the message says why."""


class Checkpoints:
    """The checkpoints of one run in one directory; the latest two are kept."""

    def __init__(self, directory: str | os.PathLike, config: TrainConfig, **data):
        """
        Args:
          directory: made if it is missing.
          config: of the run. A checkpoint of another one is refused.
          data: what else determines the run, as values JSON can hold: the data set, how
            many images of it.

        Raises:
          CheckpointError: the directory cannot be made or read.
        """
        self._directory = Path(directory).absolute()
        # A choice is what it says that it is, as a class of the user's is, too.
        run = {field.name: getattr(config, field.name) for field in fields(config)}
        run = {k: repr(v) if isinstance(v, Value) else v for k, v in run.items()}
        del run["epochs"]  # a run may be gone on with for longer
        self._run = json.loads(json.dumps(run | data))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT,
            enable_async_checkpointing=False,
            create=False,
            cleanup_tmp_directories=True,
            # Whoever makes this writes alone, also as one of several processes.
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
        """The directory by a name that orbax takes: it reads [ as the beginning of a
        pattern, tensorstore \\ as /, and neither takes bytes that are not UTF-8."""
        name = str(self._directory)
        try:
            odd = bool({"[", "\\"} & {*name}) or not name.encode()
        except UnicodeEncodeError:
            odd = True
        if not odd or os.name == "nt":
            return self._directory
        folder = tempfile.mkdtemp(prefix="ds4nn_jax-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        link = Path(folder) / "checkpoints"
        link.symlink_to(self._directory, target_is_directory=True)
        return link

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, whole or not at all; older ones stay until it is there.

        Raises:
          CheckpointError: it cannot be written (the disk is full, say).
        """
        host = parallel.to_host(checkpoint)
        about = {
            "format": FORMAT,
            "version": VERSION,
            "run": self._run,
            "steps": len(host.metrics),
            "sha256": _digest(host),
        }
        # An epoch may end without a step since the last one: this is still the later.
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

        Args:
          like: one of the same run, or its shapes, as `initial_checkpoint` gives them.

        Raises:
          CheckpointError: it is damaged, of a newer format, or of another run; the
            message says which.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        where = self._directory / str(step)
        damaged, remedy = f"{where} is damaged", "remove it to go on from an older one"
        about = self._read(damaged, step, about=ocp.args.JsonRestore())["about"]
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise CheckpointError(f"{damaged}, or no checkpoint of ds4nn_jax; {remedy}")
        if about.get("version") != VERSION:
            raise CheckpointError(
                f"{where} has format version {about.get('version')}, this library "
                f"reads {VERSION}"
            )
        stored = about.get("run", {})
        for name in sorted(stored.keys() | self._run.keys()):
            if stored.get(name) != self._run.get(name):
                raise CheckpointError(
                    f"{where} is of another run: its {name} is {stored.get(name)!r}, "
                    f"expected {self._run.get(name)!r} (if it cannot be, the "
                    f"checkpoint is damaged: {remedy})"
                )
        if not len(like.metrics):
            shape = int(about.get("steps", 0)), *like.metrics.shape[1:]
            rows = np.zeros(shape, np.float32)
            like = like._replace(metrics=rows)
        restore = ocp.args.StandardRestore(jax.tree.map(_blank, like)._asdict())
        items = self._read(damaged, step, checkpoint=restore)["checkpoint"]
        host = Checkpoint(**items)
        if _digest(host) != about.get("sha256"):
            raise CheckpointError(f"{damaged}: its checksum does not match; {remedy}")
        return parallel.from_host(host, like)

    def _read(self, damaged: str, step: int, **items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise CheckpointError(
                f"{damaged}: {_line(error)}; remove it to go on from an older one"
            ) from error


def _blank(leaf) -> np.ndarray:
    """What `parallel.to_host` makes of a leaf with this shape and type."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return np.zeros(leaf.shape, leaf.dtype)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _digest(host: Checkpoint) -> str:
    """Of a checkpoint as `parallel.to_host` gives it."""
    leaves = jax.tree_util.tree_leaves_with_path(host)
    return digest("", ((jax.tree_util.keystr(path), array) for path, array in leaves))
