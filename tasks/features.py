"""Features: what the policy and its reference make of every response, as log-probabilities and as a vector."""

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, NonNegativeFloat, PositiveInt

from cluster.adapters import fresh_adapter, lora_modules
from cluster.errors import InputError
from cluster.models import Contrast
from cluster.settings import Settings
from cluster.storage import StageKey
from tasks.gradients.modules import ALL_LINEAR, Pooling, TargetModules, chosen
from tasks.gradients.projections import AnyProjection, CountSketch, Whole, require_room
from tasks.progress import progress
from tasks.proxies import AnyProxy, identity_of
from tasks.scorers import Scoring
from tasks.scoring import ScoringJob, score, summary
from tasks.stages import Publish, RoundContext, run_stage, stage_task
from tasks.tables import Table

if TYPE_CHECKING:
    from tasks.gradients.vectors import Vectors

Projection = Annotated[AnyProjection, Field(discriminator="kind")]


class FeaturesConfig(BaseModel, ABC):
    """What stands for a response, and what stands in for the labeller; the kinds of vectors are its subclasses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    needs_adapter: ClassVar[bool] = False

    normalise: Literal["none", "response"] = Field("none", description="response: every vector is scaled to length 1")
    num_components: PositiveInt | None = Field(
        None,
        description="principal axes of the pool's standardised vectors that selectors see; null: as stored",
    )
    proxy: Annotated[AnyProxy, Field(discriminator="kind")] | None = Field(
        None, description="what scores every response, for the selectors that need scores"
    )
    batch_size: PositiveInt | None = Field(None, description="responses scored together; null: what memory takes")

    @property
    def space(self) -> dict[str, Any]:
        """What decides a vector, beside response and policy."""
        return self.model_dump(exclude={"num_components", "proxy", "batch_size"})

    def vectors(self, model: Any, adapter: str) -> "Vectors":
        """Get ready for a model, see `tasks.scorers.MakesVectors`."""
        from tasks.gradients.vectors import OfUnitLength

        plain = self.plain_vectors(model, adapter)
        return OfUnitLength(plain) if self.normalise == "response" else plain

    @abstractmethod
    def plain_vectors(self, model: Any, adapter: str) -> "Vectors":
        """The same before they are scaled."""

    def require_fit(self, contrast: Contrast, seed: int, settings: Settings) -> None:
        """Check, without loading the model, that it can have such vectors.

        Raises:
            InputError: it can't.
        """


class HiddenFeatures(FeaturesConfig):
    """The last layer's state: the linear view of a policy that Han, Goyal and Ma (arXiv:2606.19607) take."""

    kind: Literal["hidden"] = "hidden"
    pooling: Pooling = Field("last", description="final-layer state of the last response token, or the mean over them")
    num_components: PositiveInt | None = 128

    def plain_vectors(self, model: Any, adapter: str) -> "Vectors":  # noqa: ARG002 - it is active
        """States of the size of the model's."""
        from tasks.gradients.vectors import HiddenStates

        return HiddenStates(model.config.get_text_config().hidden_size, self.pooling)


class LogitsHeadFeatures(FeaturesConfig):
    """The gradient of log pi(y|x) in the weights of the last layer: (e_y - p) h', summed over tokens."""

    kind: Literal["logits_head"] = "logits_head"
    projection: Projection = CountSketch()

    def plain_vectors(self, model: Any, adapter: str) -> "Vectors":  # noqa: ARG002 - it is active
        """Gradients in the head."""
        from tasks.gradients.vectors import HeadGradients

        vocabulary, hidden = model.get_output_embeddings().weight.shape
        return HeadGradients(vocabulary, hidden, self.projection, str(model.device))

    def require_fit(self, contrast: Contrast, seed: int, settings: Settings) -> None:  # noqa: ARG002
        """Check the projection against the size of the head.

        Raises:
            InputError: it asks for more numbers than there are, or none for more than a vector may have.
        """
        from transformers import AutoConfig

        text = AutoConfig.from_pretrained(contrast.policy.model, local_files_only=True).get_text_config()
        _require_projection(self.projection, {"lm_head": (text.vocab_size, text.hidden_size)})


class LoraGradientFeatures(FeaturesConfig):
    """The gradient of log pi(y|x) in the adapter that is trained, as ActiveDPO (arXiv:2505.19241) takes it.

    In the first round, where the policy has no adapter, it is taken in the one that training will start from.
    """

    needs_adapter: ClassVar[bool] = True

    kind: Literal["lora_gradient"] = "lora_gradient"
    target_modules: TargetModules = Field(
        ALL_LINEAR,
        description="all-linear, a regular expression for a whole path, or names that paths end with",
    )
    projection: Projection = CountSketch()
    prompt_gradient: bool = Field(
        True, description="false: the gradient stops at the prompt, which is read once for its responses; approximate"
    )
    warm_start: NonNegativeFloat = Field(
        0.0,
        description="deviation of what stands in for a B of zeros in the gradient of A; 0: that gradient is zero",
    )

    def plain_vectors(self, model: Any, adapter: str) -> "Vectors":
        """Gradients in the chosen modules."""
        from tasks.gradients.taps import lora_layers
        from tasks.gradients.vectors import LoraGradients

        layers = lora_layers(model, adapter, self.target_modules)
        return LoraGradients(layers, self.projection, warm_start=self.warm_start, whole=self.prompt_gradient)

    def require_fit(self, contrast: Contrast, seed: int, settings: Settings) -> None:
        """Check modules and projection against the adapter.

        Raises:
            InputError: no module is meant, the projection asks for more numbers than the gradient has that are not
                zero, or none for more than a vector may have.
        """
        found = lora_modules(_adapter(contrast, seed, settings))
        try:
            names = chosen(list(found), self.target_modules)
        except ValueError as error:
            raise InputError(f"features: {error}") from error
        rank = contrast.lora.r
        shapes = {f"{name}.lora_B": (found[name][1], rank) for name in names}
        if contrast.policy.adapter is not None or self.warm_start or isinstance(self.projection, Whole):
            shapes |= {f"{name}.lora_A": (rank, found[name][0]) for name in names}
        _require_projection(self.projection, shapes)


AnyFeatures = HiddenFeatures | LogitsHeadFeatures | LoraGradientFeatures
"""The one place to add a kind of vector."""

FEATURES = {str(kind.model_fields["kind"].default): kind for kind in get_args(AnyFeatures)}
DEFAULT_KIND = "lora_gradient"


def _with_kind(value: Any) -> Any:
    return {"kind": DEFAULT_KIND, **value} if isinstance(value, dict) else value


Features = Annotated[AnyFeatures, Field(discriminator="kind"), BeforeValidator(_with_kind)]
"""A config of features; where it names no kind, the default's."""


@stage_task("{name}")
def compute_features(
    responses: Table, contrast: Contrast, config: FeaturesConfig, here: RoundContext, *, name: str = "features"
) -> Table:
    """Score every response under the policy, its reference and the proxy; `name` tells the round's stages apart."""
    policy, reference = contrast.policy, contrast.reference
    fresh = config.needs_adapter and policy.adapter is None
    facts = {"space": config.space, "proxy": identity_of(config.proxy)}
    if fresh:
        facts["adapter"] = {**contrast.lora.model_dump(), "seed": here.seed}

    def work(folder: Path) -> dict[str, Any]:
        adapter = _adapter(contrast, here.seed, here.settings) if fresh else policy.adapter
        scoring = Scoring(adapter, reference.adapter, config, policy == reference, config.batch_size)
        job = ScoringJob(responses, scoring, folder, config.proxy)
        with progress(f"{here.label} {name}") as report:
            spent = score(job, policy.model, here.settings.torch, report)
        return summary(folder) | spent

    key = StageKey("features", facts, [responses.digest, policy.digest, reference.digest], version=2)
    return run_stage(key, work, here, publish=Publish(name))


def likelihoods_alone(config: FeaturesConfig) -> HiddenFeatures:
    """The cheapest features, for where log-probabilities are all that is asked for."""
    return HiddenFeatures(batch_size=config.batch_size)


def _adapter(contrast: Contrast, seed: int, settings: Settings) -> Path:
    """The policy's adapter, or the one that training will start from."""
    return contrast.policy.adapter or fresh_adapter(contrast.policy, contrast.lora, seed, settings.cache)


def _require_projection(projection: AnyProjection, shapes: dict[str, tuple[int, int]]) -> None:
    size = sum(math.prod(shape) for shape in shapes.values())
    try:
        require_room(projection, size)
    except ValueError as error:
        raise InputError(f"features.projection: {error}") from error
