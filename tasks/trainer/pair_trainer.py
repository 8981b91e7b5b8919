"""TRL's DPO trainer with any objective, weights, stored reference log-probabilities and a batch scheduler."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from cluster.errors import TrainingError
from tasks.objectives import AnyObjective
from tasks.objectives.contrastive import Dpo
from tasks.objectives.exploration import AnyExploration
from tasks.objectives.pairs import Pairs
from tasks.objectives.scheduling.seen import Scheduler, Seen
from tasks.schedulers import All, AnyScheduler, StatesShape
from tasks.trainer.batches import EXPLORED, ROW, TOKENS, Batch, PairCollator, cut, pairs_of
from tasks.trainer.checkpoints import newest_checkpoint
from tasks.trainer.passes import Pass, forward, layer_means

REFERENCES = ("ref_chosen_logps", "ref_rejected_logps")

SCHEDULER = "scheduler-{rank}.pt"
"""File of a checkpoint with the state of a worker's batch scheduler."""

SHARE = "share"
"""What a batch counts for in a step whose batches are of unlike sizes; of mean 1 over them."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is descended, and which pairs of a step are.

    Attributes:
        objective: losses of pairs.
        exploration: what is added to them for what the reference itself would say; None: nothing.
        scheduler: which pairs of each step's batch are trained on.
        normalise: "batch": weights are divided by their mean over each step's pairs.
        group_by_length: pairs of a step share batches with those of like length; the step's pairs stay the same.
    """

    objective: AnyObjective = field(default=Dpo())
    exploration: AnyExploration | None = None
    scheduler: AnyScheduler = field(default=All())
    normalise: Literal["none", "batch"] = "none"
    group_by_length: bool = True


@dataclass(frozen=True)
class Parts:
    """What a trainer is made of beside model and data."""

    tokenizer: Any
    lora: LoraConfig
    callbacks: Sequence[TrainerCallback] = ()


class PairTrainer(DPOTrainer):  # type: ignore[misc]
    """Descends the mean over a batch of w_i l_i; with weights of 1 and objective dpo it is TRL's own loss.

    Only states that predict a token of a response go through the language model's head. The data set has to be
    one of `batches`, with the reference's log-probabilities of all pairs; nothing else is asked of a reference.
    What is logged has TRL's names and speaks of the pairs that are trained on, without weights.
    """

    def __init__(self, model: Any, parts: Parts, args: DPOConfig, pairs: Dataset, recipe: Recipe) -> None:
        """Put an adapter on a model and get ready."""
        args.remove_unused_columns = False
        super().__init__(
            model,
            args=args,
            train_dataset=pairs,
            processing_class=parts.tokenizer,
            peft_config=parts.lora,
            callbacks=list(parts.callbacks),
        )
        self.data_collator = PairCollator(parts.tokenizer.pad_token_id)
        self.recipe = recipe
        self._core = self.accelerator.unwrap_model(self.model).get_base_model()
        self._scheduler = self._start_scheduler()

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """They are tokens already."""
        return dataset

    def _start_scheduler(self) -> Scheduler | None:
        """None where every pair is trained on."""
        config = self.recipe.scheduler
        if isinstance(config, All):
            return None
        text, device = self.model.config.get_text_config(), str(self.accelerator.device)
        shape = StatesShape(num_layers=text.num_hidden_layers, hidden=text.hidden_size, device=device)
        own = replace(config, num_kept=config.num_kept // self.accelerator.num_processes)
        return own.start(shape, self.args.seed + self.accelerator.process_index)

    def get_batch_samples(self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any) -> tuple[Any, Any]:
        """The batches of one step: of the pairs that the scheduler keeps, those of like length together."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        sizes = {len(batch[ROW]) for batch in batches}
        groups = self.recipe.group_by_length and len(batches) > 1 and len(sizes) == 1
        if batches and (self._scheduler is not None or groups):
            batches = self._arranged(self._kept(batches), len(batches))
        if batches and self.recipe.normalise == "batch":
            batches = self._normalised(batches)
        return batches, count

    def _kept(self, batches: Sequence[Batch]) -> list[int]:
        """Rows of the data set to train on in this step."""
        rows = torch.cat([batch[ROW] for batch in batches])
        if self._scheduler is None:
            return list(rows.tolist())
        seen = self._seen(batches) if self.recipe.scheduler.needs else Seen.unread(len(rows))
        kept = self._scheduler(seen).to(rows.device)
        for name, value in self._scheduler.metrics.items():
            self._metrics["train"][f"scheduler/{name}"].append(value)
        return list(rows[kept].tolist())

    def _arranged(self, rows: Sequence[int], num_batches: int) -> list[Batch]:
        """So many batches of these rows; the trainer averages over batches, so a larger one counts for more."""
        chunks = cut(rows, list(self.train_dataset.select(rows)["length"]), num_batches)
        made = [self.data_collator([self.train_dataset[row] for row in chunk]) for chunk in chunks]
        shares = [torch.tensor(len(chunk) * num_batches / len(rows)) for chunk in chunks]
        return [batch | {SHARE: share} for batch, share in zip(made, shares, strict=True)]

    def _normalised(self, batches: Sequence[Batch]) -> list[Batch]:
        weights = torch.cat([batch["weight"] for batch in batches]).to(self.accelerator.device)
        total, count = self.accelerator.reduce(torch.stack([weights.sum(), weights.new_tensor(len(weights))]))
        mean = (total / count if total > 0 else total.new_ones(())).cpu()
        return [batch | {"weight": batch["weight"].cpu() / mean} for batch in batches]

    def _seen(self, batches: Sequence[Batch]) -> Seen:
        """A forward pass over all pairs of the step, which leaves nothing to flow back through."""
        found = []
        for batch in map(self._prepare_inputs, batches):
            with torch.no_grad(), self.compute_loss_context_manager(), layer_means(self._core, batch) as states:
                reading = forward(self.model, self._core, batch)
            pairs = pairs_of(batch, reading.logps)
            losses = self.recipe.objective(pairs, self.beta)
            self._require_finite(losses, batch)
            sides = torch.stack(states, dim=1).float().chunk(2)
            found.append((pairs.margins(self.beta), pairs.chosen, losses, (sides[0] + sides[1]) / 2))
        margins, chosen, losses, means = (torch.cat(parts) for parts in zip(*found, strict=True))
        return Seen(margins=margins, chosen_logps=chosen, losses=losses, states=means)

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool) -> Any:
        """The weighted mean of the losses of a batch; it has no outputs to return."""
        if return_outputs:
            raise TypeError("a trainer of pairs gives no logits: leave compute_metrics out")
        reading = forward(model, self._core, inputs, balanced=self.aux_loss_enabled)
        pairs = pairs_of(inputs, reading.logps)
        losses = self.recipe.objective(pairs, self.beta)
        self._require_finite(losses, inputs)
        self._note(inputs, reading, pairs)
        loss = (inputs["weight"].to(losses.dtype) * losses).mean()
        if reading.auxiliary is not None:
            loss = loss + self.router_aux_loss_coef * reading.auxiliary
        if self.recipe.exploration is not None and EXPLORED in inputs:
            said = inputs[EXPLORED]
            logps = forward(model, self._core, said).logps
            terms = self.recipe.exploration(logps, said["ref_logps"].to(logps.dtype), self.beta)
            loss = loss + terms.sum() / len(losses)
        return loss * inputs[SHARE].to(loss.dtype) if SHARE in inputs else loss

    def _require_finite(self, losses: torch.Tensor, batch: Batch) -> None:
        """Stop where a loss is NaN or infinite.

        Raises:
            TrainingError: naming the step, the pairs and the last checkpoint, whose weights are finite.
        """
        odd = batch[ROW][~torch.isfinite(losses)].tolist()
        if odd:
            found = losses[~torch.isfinite(losses)][0].item()
            names = ", ".join(str(self.train_dataset[row]["pair_id"]) for row in odd)
            kept = newest_checkpoint(Path(self.args.output_dir)) or "none was written"
            raise TrainingError(
                f"the loss of step {self.state.global_step + 1} is {found} for {len(odd)} of {len(losses)} pairs "
                f"({names}): training stopped and nothing is kept of it but its last finite checkpoint ({kept}). "
                "Lower training.optimizer.learning_rate, or look at these pairs"
            )

    def _note(self, inputs: Batch, reading: Pass, pairs: Pairs) -> None:
        """Log what TRL logs, by its names; likelihoods of chosen and rejected responses apart."""
        noted = self._metrics["train" if self.model.training else "eval"]
        (chosen, rejected), logits = reading.mask.chunk(2), reading.mean_logits.chunk(2)
        counts = [chosen.sum(), rejected.sum(), inputs["attention_mask"].sum()]
        sums = [logits[0][chosen].sum(), logits[1][rejected].sum(), reading.entropy.sum()]
        sums.append(reading.is_top1.chunk(2)[0].sum())
        told = self.accelerator.reduce(torch.stack([one.double() for one in (*counts, *sums)]), "sum").tolist()
        num_chosen, num_rejected, num_tokens, logits_chosen, logits_rejected, entropy, top1 = told
        self._total_train_tokens += int(num_tokens) if self.model.training else 0
        noted["num_tokens"] = [self._total_train_tokens]
        noted["entropy"].append(entropy / max(num_chosen + num_rejected, 1))
        noted["mean_token_accuracy"].append(top1 / max(num_chosen, 1))
        noted["logits/chosen"].append(logits_chosen / max(num_chosen, 1))
        noted["logits/rejected"].append(logits_rejected / max(num_rejected, 1))
        rewards = [self.beta * ratios.detach() for ratios in (pairs.chosen_ratios, pairs.rejected_ratios)]
        values = {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/accuracies": (rewards[0] > rewards[1]).float(),
            "rewards/margins": rewards[0] - rewards[1],
            "logps/chosen": pairs.chosen.detach(),
            "logps/rejected": pairs.rejected.detach(),
        }
        for name, value in values.items():
            noted[name].append(self.accelerator.gather(value).mean().item())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self._scheduler is not None:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            torch.save(self._scheduler.state_dict(), folder / SCHEDULER.format(rank=self.accelerator.process_index))

    def resume(self, checkpoint: str | None) -> None:
        """Train, from a checkpoint on where there is one."""
        if checkpoint is not None and self._scheduler is not None:
            file = Path(checkpoint) / SCHEDULER.format(rank=self.accelerator.process_index)
            self._scheduler.load_state_dict(torch.load(file, weights_only=True))
        self.train(resume_from_checkpoint=checkpoint)

    def complete_references(self, speaking: AbstractContextManager[Any]) -> None:
        """Have the reference itself say the log-probabilities of pairs that came without, once, before training.

        `speaking`: within it the model is the reference; it is not entered where nothing lacks.
        """
        pairs: Dataset = self.train_dataset  # type: ignore[has-type]
        columns = {name: torch.tensor(pairs[name][:], dtype=torch.float64) for name in REFERENCES}
        lacking = torch.stack(list(columns.values())).isnan().any(0).nonzero()[:, 0]
        if not len(lacking):
            return
        with speaking:
            for rows, _, logps in self._spoken(lacking):
                for column, found in zip(columns.values(), logps.chunk(2), strict=True):
                    column[rows] = found
        for name, column in columns.items():
            pairs = pairs.remove_columns(name).add_column(name, column.numpy())
        self.train_dataset = pairs

    def measured(self) -> dict[str, float]:
        """What the policy makes of all pairs now, as means without weights; log-likelihoods in nats a response.

        Not `evaluate`: before training that would keep the model from being trained on several workers together.

        Raises:
            TrainingError: a loss is not finite.
        """
        found = []
        for _, batch, logps in self._spoken(torch.arange(len(self.train_dataset))):
            pairs = pairs_of(batch, logps)
            self._require_finite(self.recipe.objective(pairs, self.beta), batch)
            margins = pairs.margins(self.beta)
            found.append(torch.stack([pairs.chosen, pairs.rejected, margins, (margins > 0).double()]))
        names = ("logps/chosen", "logps/rejected", "rewards/margins", "rewards/accuracies")
        return dict(zip(names, torch.cat(found, dim=1).mean(1).tolist(), strict=True))

    def _spoken(self, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, Batch, torch.Tensor]]:
        """Rows, their batch and what the model says of it now, (2n,) in float64, some at a time."""
        model = self.accelerator.unwrap_model(self.model)
        for some in torch.split(rows, self.args.per_device_eval_batch_size):
            batch = self.data_collator([self.train_dataset[row] for row in some.tolist()])
            with torch.no_grad(), self.compute_loss_context_manager():
                told = forward(model, self._core, self._prepare_inputs({name: batch[name] for name in TOKENS}))
            yield some, batch, told.logps.double().cpu()
