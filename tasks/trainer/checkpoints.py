"""Checkpoints of a training: which of them are whole, and their marks."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from trl import DPOConfig

from cluster.errors import TrainingError

COMPLETE = "complete"
"""Marker in a checkpoint's folder that was written whole: a kill in mid-write leaves a folder without it."""


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written whole."""
    whole = [marker.parent for marker in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return str(max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]))) if whole else None


class Marks(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint when all of it is on disk."""

    def on_save(
        self,
        args: DPOConfig,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        model: Any,
        **_: Any,
    ) -> None:
        """Mark the one that was just written.

        Raises:
            TrainingError: a weight of it is NaN or infinite.
        """
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        odd = [name for name, part in model.named_parameters() if part.requires_grad and not torch.isfinite(part).all()]
        if odd:
            raise TrainingError(
                f"after step {state.global_step} {len(odd)} matrices of the adapter hold NaN or infinity (such as "
                f"{odd[0]}): training stopped, its last finite checkpoint is {newest_checkpoint(folder) or 'none'}. "
                "Lower training.optimizer.learning_rate"
            )
        (folder / f"checkpoint-{state.global_step}" / COMPLETE).touch()
