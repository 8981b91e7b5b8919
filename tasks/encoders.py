"""Encoders of states: how a scheduler makes one vector of what a policy thinks of a pair.

Importing this does not import torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cluster.errors import InputError
from cluster.models import checked_folder
from cluster.storage import digest_of_folder

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.objectives.scheduling.encoders import LayerMean, SequenceEncoder

ENCODER_SETTING = "training.scheduler.encoder.path"
"""Where the path of a text encoder is given."""


@dataclass(frozen=True, kw_only=True)
class StatesShape:
    """The states that a policy gives.

    Attributes:
        num_layers: layers whose states are given.
        hidden: numbers of one layer's state.
        device: where schedulers compute, as torch names it.
    """

    num_layers: int
    hidden: int
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class RandomEncoder:
    """Reads states with fixed random features, decided by the training's seed: nothing to download or to train.

    Attributes:
        dim: numbers of a pair's context.
        inner: numbers between the two layers of the connector; the paper's has 1024.
    """

    kind: Literal["random"] = "random"
    dim: int = 128
    inner: int = 64

    def __post_init__(self) -> None:
        for name, size in (("dim", self.dim), ("inner", self.inner)):
            require(size >= 1, f"{name} of the encoder is {size}", "1 or more")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a context, beside seed and states."""
        return asdict(self)

    def start(self, shape: StatesShape, seed: int) -> "LayerMean":
        """Get ready for states."""
        from tasks.objectives.scheduling.encoders import layer_mean

        return layer_mean((shape.hidden, self.inner, self.dim), shape.num_layers, seed, shape.device)


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoder:
    """Reads the layers as a sequence with a text encoder, such as the paper's all-MiniLM-L6-v2, in a local folder.

    It is frozen, behind a connector of random weights: the paper trains its connector beforehand.

    Attributes:
        path: folder of a transformers checkpoint.
        inner: numbers between the two layers of the connector.
    """

    kind: Literal["pretrained"] = "pretrained"
    path: Path
    inner: int = 1024

    def __post_init__(self) -> None:
        require(self.inner >= 1, f"inner of the encoder is {self.inner}", "1 or more")

    @property
    def folder(self) -> Path:
        """Where it lies.

        Raises:
            InputError: no checkpoint is there.
        """
        return checked_folder(self.path.expanduser().resolve(), setting=ENCODER_SETTING)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides a context, beside seed and states: the text encoder's bytes, wherever they lie.

        Raises:
            InputError: no checkpoint is there.
        """
        return {"kind": self.kind, "digest": digest_of_folder(self.folder), "inner": self.inner}

    def start(self, shape: StatesShape, seed: int) -> "SequenceEncoder":
        """Load the text encoder.

        Raises:
            InputError: no checkpoint is there, or it reads shorter sequences than the policy has layers.
        """
        from tasks.objectives.scheduling.encoders import sequence_encoder

        model = _text_encoder(self.folder).to(shape.device)
        longest = getattr(model.config, "max_position_embeddings", shape.num_layers)
        require(longest >= shape.num_layers, f"the encoder reads {longest} layers", f"the policy's {shape.num_layers}")
        words = model.get_input_embeddings().weight

        def read(sequence: "Tensor") -> "Tensor":
            last: Tensor = model(inputs_embeds=sequence).last_hidden_state
            return last

        return sequence_encoder((shape.hidden, self.inner, words.shape[1]), words, read, seed)


AnyEncoder = RandomEncoder | PretrainedEncoder
"""The one place to add an encoder."""


def require(holds: bool, found: str, expected: str) -> None:
    """Refuse a value that does not hold.

    Raises:
        InputError: it does not.
    """
    if not holds:
        raise InputError(f"{found}: expected {expected}")


def _text_encoder(folder: Path) -> Any:
    """A frozen model in float32; making it draws nothing from the global generator that anyone notices."""
    import torch
    from transformers import AutoModel

    with torch.random.fork_rng(devices=[]):
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval().requires_grad_(False)
