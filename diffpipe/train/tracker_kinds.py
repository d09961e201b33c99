"""How each tracker starts, continues the run that a killed job left there, and takes images.

Steps that a tracker has from before a resume are trained again, with the same values at the same number of processes
and with rounding errors at another. TensorBoard hides the first ones. The others have no way to remove a value: they
keep the first ones, and later steps follow.
"""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from PIL import Image

from diffpipe.errors import UserError
from diffpipe.extras import from_extra
from diffpipe.train.wandb_file import last_step

GRID = "samples"
"""The name of grids of samples."""
WANDB_OFFLINE = ("offline", "dryrun", "disabled")
"""The modes of Weights & Biases without a server."""
WANDB_ACCESS = "no credentials; give WANDB_API_KEY or run `wandb login`, or WANDB_MODE=offline to keep the values here"


def grid_path(directory: Path, step: int) -> Path:
    """The file of a grid of samples in a run directory."""
    return directory / "samples" / f"step-{step:08d}.png"


class TrackedRun(NamedTuple):
    """A run as trackers know it. step: the step that training starts from."""

    directory: Path
    project: str
    name: str
    step: int


class Tracker:
    """One of accelerate's trackers, or a plug-in's.

    identity: what names the run at the tracker, kept in trackers.json; continued: whether it was there at the start.
    last_step: the last step that the tracker has. buffers: it loses its newest values when the process is killed.
    """

    buffers = False

    def __init__(self, name: str, run: TrackedRun, identity: Mapping[str, str]):
        self.name, self.run = name, run
        self.identity, self.continued = dict(identity), bool(identity)
        self.project, self.title = self.identity.get("project", run.project), self.identity.get("name", run.name)
        self.last_step = -1
        self.handle: Any = None

    def options(self) -> dict[str, Any]:
        """The arguments of accelerate's tracker. Raises UserError where it cannot be used."""
        return {}

    def attach(self, handle: Any) -> None:
        """Take accelerate's tracker, which has been started."""
        self.handle = handle

    def log_config(self, config: Mapping[str, Any]) -> None:
        self.handle.store_init_configuration(dict(config))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self.handle.log(dict(values), step=step)

    def log_grid(self, picture: Image.Image, step: int) -> None:
        """Send a grid of samples, where the tracker takes images."""
        if hasattr(self.handle, "log_images"):
            self.handle.log_images({GRID: [picture]}, step=step)

    def replay(self, lines: Iterable[dict[str, Any]]) -> None:
        """Send the lines of metrics.jsonl, with their grids, that the tracker lost when the run was killed."""
        if self.buffers and self.continued:
            for line in lines:
                step = line.pop("step")
                if step > self.last_step:
                    self.log(line, step)
                    if (grid := grid_path(self.run.directory, step)).exists():
                        with Image.open(grid) as picture:
                            self.log_grid(picture, step)

    def finish(self) -> None:
        self.handle.finish()

    def output(self) -> AbstractContextManager[Any]:
        """Around its calls: what a library prints goes to stderr, as all messages of a training."""
        return contextlib.redirect_stdout(sys.stderr)


class TensorBoard(Tracker):
    """Its event files in the run directory. Earlier values of the steps that are trained again are hidden."""

    def __init__(self, name: str, run: TrackedRun, identity: Mapping[str, str]):
        super().__init__(name, run, identity)
        self.project = "tensorboard"  # the folder

    def options(self) -> dict[str, Any]:
        with from_extra("tensorboard"):
            import tensorboard  # noqa: F401, PLC0415 (an extra)
        return {"purge_step": self.run.step + 1}

    def log_grid(self, picture: Image.Image, step: int) -> None:
        self.handle.log_images({GRID: np.asarray(picture.convert("RGB"))[None]}, step=step, dataformats="NHWC")


class WandB(Tracker):
    """Weights & Biases. Offline, each job writes a folder of its own, and `wandb sync` joins them by the run's id."""

    buffers = True

    def options(self) -> dict[str, Any]:
        import wandb  # noqa: PLC0415 (an extra)

        os.environ.setdefault("WANDB_FINISH_TIMEOUT", "120")  # else a job without a network waits at its end, for good
        online = wandb.setup().settings.mode not in WANDB_OFFLINE
        if online and not wandb.login(prompt=False, verify=False):
            raise UserError(WANDB_ACCESS)
        if not self.continued:
            self.identity = {"project": self.project, "name": self.title, "id": secrets.token_hex(4)}
        folder = os.environ.get("WANDB_DIR", str(self.run.directory))
        return {"id": self.identity["id"], "name": self.title, "resume": "allow", "dir": folder}

    def attach(self, handle: Any) -> None:
        super().attach(handle)
        if self.continued:
            folders = Path(handle.tracker.dir).parents[1].glob(f"offline-run-*-{glob.escape(self.identity['id'])}")
            self.last_step = max([handle.tracker.step - 1, *(last_step(folder) for folder in folders)])

    def output(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()  # it prints to stderr, and watches stdout from its start on


class MLflow(Tracker):
    """MLflow. Where MLFLOW_TRACKING_URI is not set, a file store in the run directory."""

    _own: ClassVar[str | None] = None
    """The place that the last run of this process has set, for MLflow takes it from the environment."""

    def options(self) -> dict[str, Any]:
        if os.environ.get("MLFLOW_TRACKING_URI") in (None, MLflow._own):
            MLflow._own = os.environ["MLFLOW_TRACKING_URI"] = (self.run.directory.absolute() / "mlruns").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # Its calls wait for the server: without a network, all processes would wait for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        return {"run_name": self.title, "run_id": self.identity.get("run_id")}

    def attach(self, handle: Any) -> None:
        import mlflow  # noqa: PLC0415 # pyright: ignore[reportMissingImports] (an extra)

        super().attach(handle)
        self.identity = {"project": self.project, "name": self.title, "run_id": handle.tracker.info.run_id}
        if self.continued:
            history = mlflow.MlflowClient().get_metric_history(self.identity["run_id"], "images")  # in each line
            self.last_step = max((metric.step for metric in history), default=-1)

    def log_config(self, config: Mapping[str, Any]) -> None:
        if not self.continued:  # a parameter has one value for ever
            super().log_config(config)

    def log_grid(self, picture: Image.Image, step: int) -> None:
        import mlflow  # noqa: PLC0415 # pyright: ignore[reportMissingImports] (an extra)

        mlflow.log_image(picture, key=GRID, step=step, synchronous=True)


class Trackio(Tracker):
    """Trackio, in its local folder (TRACKIO_DIR) or where its environment variables say."""

    buffers = True

    def options(self) -> dict[str, Any]:
        if not self.continued:  # runs of one name would be one run there
            self.identity = {"project": self.project, "name": f"{self.title}-{secrets.token_hex(4)}"}
        return {"name": self.identity["name"], "resume": "allow", "embed": False}

    def attach(self, handle: Any) -> None:
        super().attach(handle)
        self.last_step = handle.tracker._next_step - 1

    def log(self, values: Mapping[str, Any], step: int) -> None:
        super().log({key: value for key, value in values.items() if key != "time"}, step)  # a name of its own

    def log_grid(self, picture: Image.Image, step: int) -> None:
        import trackio  # noqa: PLC0415 # pyright: ignore[reportMissingImports] (an extra)

        self.handle.log({GRID: trackio.Image(picture)}, step=step)


KINDS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}
"""The trackers that need no plug-in, by their names in train.trackers and of their packages."""
