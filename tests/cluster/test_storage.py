"""The store: what makes a stage, when it is finished, and who may work on a lineage."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.storage import (
    MANIFEST,
    StageKey,
    Store,
    atomic_path,
    digest_of,
    digest_of_file,
    digest_of_folder,
    write_json,
)

KEY = StageKey("pairs", {"budget": 2, "ridge": 0.5}, ["input"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)

HOLD = """
import sys, time
from pathlib import Path
from cluster.storage import Store
with Store(Path(sys.argv[1])).hold_lineage("demo"):
    print("held", flush=True)
    time.sleep(60)
"""

TRY = """
import sys
from pathlib import Path
from cluster.errors import InputError
from cluster.storage import Store
try:
    with Store(Path(sys.argv[1])).hold_lineage("demo"):
        print("held")
except InputError:
    print("refused")
"""

DIE = """
import os, signal, sys
from pathlib import Path
from cluster.storage import StageKey, Store
folder = Store(Path(sys.argv[1])).stage(StageKey("pairs", {"budget": 2, "ridge": 0.5}, ["input"]))
with folder.work():
    (folder.path / "part-00000.parquet").write_text("whole")
    (folder.path / ".part-00001.parquet.7.tmp").write_text("ha")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def python(script: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lineage `demo` of the store in `tmp_path`."""
    process = python(HOLD, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@given(st.dictionaries(st.text(), JSON))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(value.items())))


def test_a_digest_tells_values_types_and_nesting_apart() -> None:
    values = [{}, [], None, 0, False, "", "0", [0], [[0]], {"a": 0}, {"a": {"b": 0}}, {"b": {"a": 0}}, [0, 1], [1, 0]]
    assert len({digest_of(value) for value in values}) == len(values)


def test_the_digest_of_a_folder_depends_on_names_and_bytes_but_not_on_its_place(tmp_path: Path) -> None:
    for name in ("one", "two", "renamed", "changed"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_bytes(b"\0" * 1000)
    (tmp_path / "renamed" / "deep" / "file").rename(tmp_path / "renamed" / "deep" / "other")
    (tmp_path / "changed" / "deep" / "file").write_bytes(b"\0" * 999 + b"\1")
    digests = {name: digest_of_folder(tmp_path / name) for name in ("one", "two", "renamed", "changed")}
    assert digests["one"] == digests["two"]
    assert len(set(digests.values())) == 3


def test_a_written_file_appears_whole_under_its_name_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        temporary.write_text("whole")
    assert [(file.name, file.read_text()) for file in target.parent.iterdir()] == [("file", "whole")]


@pytest.mark.parametrize("before", [None, "old"])
def test_an_exception_while_writing_leaves_what_was_there(tmp_path: Path, before: str | None) -> None:
    target = tmp_path / "file"
    if before is not None:
        target.write_text(before)

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        write()
    found = [(file.name, file.read_text()) for file in tmp_path.iterdir()]
    assert found == ([] if before is None else [("file", before)])


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    write_json(target, {"a": 1})
    before = target.read_text()
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
    assert target.read_text() == before


@pytest.mark.parametrize(
    "other",
    [
        StageKey("features", {"budget": 2, "ridge": 0.5}, ["input"]),
        StageKey("pairs", {"budget": 3, "ridge": 0.5}, ["input"]),
        StageKey("pairs", {"budget": 2}, ["input"]),
        StageKey("pairs", {"budget": 2, "ridge": 0.5}, ["other"]),
        StageKey("pairs", {"budget": 2, "ridge": 0.5}, ["input", "other"]),
        StageKey("pairs", {"budget": 2, "ridge": 0.5}, ["input"], version=2),
    ],
    ids=["stage", "value", "missing key", "input", "more inputs", "version"],
)
def test_stage_config_inputs_and_version_each_decide_the_folder(tmp_path: Path, other: StageKey) -> None:
    store = Store(tmp_path)
    assert store.stage(other).path != store.stage(KEY).path


def test_the_order_of_a_stages_config_does_not_decide_the_folder(tmp_path: Path) -> None:
    turned = StageKey("pairs", {"ridge": 0.5, "budget": 2}, ["input"])
    assert Store(tmp_path).stage(turned).path == Store(tmp_path).stage(KEY).path


def test_finishing_hashes_every_file_and_removes_scratch(tmp_path: Path) -> None:
    folder = Store(tmp_path).stage(KEY)
    with folder.work() as started:
        for name in ("part-00000.parquet", "adapter/weights", ".part-00001.parquet.7.tmp", ".checkpoints/step-1/big"):
            (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
            (folder.path / name).write_text(name)
        assert folder.manifest is None
        written = folder.finish(started, rows=7, schema_digest="schema", measures={"cost": 1.5, "note": "fine"})
    assert sorted(file.name for file in folder.path.iterdir()) == ["adapter", MANIFEST, "part-00000.parquet"]
    assert written.files == {
        name: digest_of_file(folder.path / name) for name in ("adapter/weights", "part-00000.parquet")
    }
    assert written == folder.manifest
    assert (written.rows, written.schema_digest, written.measures) == (7, "schema", {"cost": 1.5, "note": "fine"})
    assert (written.stage, written.digest, written.config, written.inputs) == (
        "pairs",
        KEY.digest,
        dict(KEY.config),
        ["input"],
    )
    assert written.libraries["pairwright"]
    assert written.started < written.ended
    assert written.seconds >= 0


def test_a_stage_killed_before_its_manifest_is_unfinished_and_can_be_finished(tmp_path: Path) -> None:
    process = python(DIE, tmp_path)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    folder = Store(tmp_path).stage(KEY)
    assert (folder.path / "part-00000.parquet").read_text() == "whole"
    assert folder.manifest is None
    with folder.work() as started:
        folder.finish(started, rows=1, schema_digest=None, measures={})
    manifest = folder.manifest
    assert manifest is not None
    assert list(manifest.files) == ["part-00000.parquet"]
    assert not list(folder.path.glob(".*"))


def test_a_second_process_is_refused_the_lineage_until_the_first_is_killed(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    store = Store(tmp_path)
    for _ in range(2):  # a refusal leaves the first one's lock as it was
        with pytest.raises(
            InputError, match=r"lineage 'demo' is being run by another process \(lock .*demo/.lock\): wait"
        ):
            store.hold_lineage("demo").__enter__()
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=10)
    assert _eventually(lambda: _can_hold(store))


def test_another_lineage_of_the_store_is_free(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    with Store(tmp_path).hold_lineage("other"):
        assert holder.poll() is None


def test_one_process_may_hold_its_lineage_twice_and_lets_go_at_the_outer_end(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.hold_lineage("demo"):
        with store.hold_lineage("demo"):
            pass
        assert python(TRY, tmp_path).communicate(timeout=30)[0] == "refused\n"
    assert python(TRY, tmp_path).communicate(timeout=30)[0] == "held\n"


def test_a_failing_run_lets_go_of_its_lineage(tmp_path: Path) -> None:
    def fail() -> None:
        with Store(tmp_path).hold_lineage("demo"):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert python(TRY, tmp_path).communicate(timeout=30)[0] == "held\n"


def test_the_probe_of_a_writable_store_leaves_nothing(tmp_path: Path) -> None:
    Store(tmp_path / "deep" / "store").check_writable()
    assert list((tmp_path / "deep" / "store").iterdir()) == []


def test_threads_that_probe_and_write_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    store, file = Store(tmp_path), tmp_path / "record.json"

    def work(number: int) -> None:
        store.check_writable()
        write_json(file, number)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(400)))
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_a_thread_is_refused_the_lineage_of_another(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def hold() -> None:
        with store.hold_lineage("demo"):
            raise AssertionError("two threads hold it")

    with store.hold_lineage("demo"), ThreadPoolExecutor(1) as threads, pytest.raises(InputError, match="is being run"):
        threads.submit(hold).result()


def test_a_store_below_a_regular_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(InputError, match=r"the store .*file/store is not writable \(.+\): .*PAIRWRIGHT_HOME"):
        store.check_writable()


def _can_hold(store: Store) -> bool:
    try:
        with store.hold_lineage("demo"):
            return True
    except InputError:
        return False


def _eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()
