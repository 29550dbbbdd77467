"""The forecast of changed weights for a model on disk: one backward pass over some of its text."""

from collections.abc import Callable, Mapping

from torch import Tensor

from quantizer.checkpoints.checkpoint import Checkpoint
from quantizer.checkpoints.checkpoint_model import decoder_blocks, load_model
from quantizer.sensitivity.fisher import change_losses

FORECAST_TOKENS = 2**14  # of the calibration text; the mean of a square settles early


def forecast_losses(
    checkpoint: Checkpoint,
    changes: Mapping[str, Mapping[str, Tensor]],
    ids: Tensor,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Rise of the loss that each change causes, in nats per token; rises of layers add up.

    changes: by format, then by parameter name, (N, K). ids: (S, T), of which the first 2**14
    tokens are used.

    Raises: CheckpointError, SettingsError; what `progress` raises.
    """
    model = load_model(checkpoint.folder)
    blocks = decoder_blocks(model, checkpoint)
    some = forecast_windows(ids)
    return change_losses(model, some, changes, blocks=blocks, progress=progress)


def forecast_windows(ids: Tensor) -> Tensor:
    """Those of the (S, T) windows that a forecast looks at."""
    return ids[: max(1, FORECAST_TOKENS // ids.shape[1])]
