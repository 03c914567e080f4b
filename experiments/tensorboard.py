"""A run's metrics and rasters for TensorBoard, beside its metrics.jsonl."""

import importlib.util
from pathlib import Path

import ds4nn_jax as ds

_RASTER_EVERY = 5  # epochs


def require() -> None:
    """Raises ValueError if tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("--tensorboard needs tensorboardX: pip install tensorboardX")


class Board:
    """Event files in one directory; `tensorboard --logdir` shows them."""

    def __init__(self, directory: Path, *, epoch: int):
        """
        Args:
          directory: made if it is missing.
          epoch: the last that is complete. What an earlier process wrote of later ones
            is hidden, since they come again.
        """
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            str(directory), purge_step=epoch + 1, flush_secs=10
        )

    def add(self, row: dict, network: ds.SpikingNetwork, params: dict, image) -> None:
        """The numbers of an epoch, as train/loss, val/accuracy, …

        The first epoch and every fifth also bring the raster of `image` [H, W, C].
        """
        epoch = row["epoch"]
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name.replace("_", "/", 1), value, epoch)
        if epoch == 1 or epoch % _RASTER_EVERY == 0:
            from . import figures  # here: matplotlib takes a second to import

            drawn = figures.raster(network, figures.trace(network, params, image))
            self._writer.add_figure("raster", drawn, epoch)

    def close(self) -> None:
        """Waits until everything is in the file."""
        self._writer.close()
