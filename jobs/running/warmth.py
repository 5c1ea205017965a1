"""What a worker loads before it takes a job: the model on a `gpu` worker, little on a `cpu` one."""

from __future__ import annotations

from jobs.imaging.weights import MissingWeights
from jobs.running import endings


def warm_up(queue_name: str) -> str:
    """Load for `queue_name` and keep it for the process. Returns the device in words."""
    from jobs import types

    types.names()  # the first job must not wait for imports
    if queue_name != "gpu":
        return "CPU"
    from jobs.types.cell_segmentation import weights

    found = weights()
    from jobs.imaging import network, pipeline  # torch loads here, on workers of this queue alone

    pipeline.warm(found.path)
    return str(network.describe_device()["device"])


def what_is_missing(queue_name: str) -> str:
    """A sentence when this worker can not even try to warm up; it costs no child to know."""
    from jobs.types.cell_segmentation import weights

    try:
        if queue_name == "gpu":
            weights()
    except MissingWeights as missing:
        return str(missing)
    return ""


def why_cold(error: Exception) -> str:
    """A sentence for the operator: what keeps this worker from taking jobs."""
    if isinstance(error, MissingWeights):
        return str(error)
    _, sentence = endings.of_error(error)
    return f"The model could not be loaded. {sentence}"
