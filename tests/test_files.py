"""Checkpoints, reports and journals: damaged, hostile, or cut off while they are written."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import quotientnet as qn
from quotientnet.commands.files import write_figure
from quotientnet.commands.loading import load_state
from quotientnet.commands.refusal import Refusal
from quotientnet.files import write_json, write_text
from quotientnet.runs import Journal

needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def saved(path, **options) -> tuple[dict, bytes]:
    state = network().state_dict()
    torch.save(state, path, **options)
    return state, path.read_bytes()


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t, b[name]) for name, t in a.items())


def flipped(data: bytes, places) -> list[bytes]:
    found = []
    for place in places:
        other = bytearray(data)
        other[place] ^= 1 << place % 8
        found.append(bytes(other))
    return found


class Touch:
    """A pickle that makes a folder when it is loaded by a careless reader."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


# -- checkpoints ---


def test_a_checkpoint_with_any_bit_flipped_is_refused_or_the_same(tmp_path):
    path = tmp_path / "weights.pt"
    state, data = saved(path)
    refused = 0
    for other in flipped(data, range(0, len(data), 5)):
        path.write_bytes(other)
        try:
            assert same(load_state(path), state)  # in what no reader looks at: padding, say
        except Refusal:
            refused += 1
    assert refused > len(data) / 5 / 4


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_is_cut_is_refused_wherever(tmp_path, zipped):
    path = tmp_path / "weights.pt"
    _, data = saved(path, _use_new_zipfile_serialization=zipped)
    for end in range(0, len(data), 23):
        path.write_bytes(data[:end])
        with pytest.raises(Refusal, match="weights.pt"):
            load_state(path)


def test_damage_to_an_old_checkpoint_raises_nothing_else(tmp_path):
    """Files without checksums: what is read may be wrong, but is a state, or a refusal."""
    path = tmp_path / "weights.pt"
    _, data = saved(path, _use_new_zipfile_serialization=False)
    for other in flipped(data, range(0, len(data), 7)):
        path.write_bytes(other)
        try:
            assert all(isinstance(t, torch.Tensor) for t in load_state(path).values())
        except Refusal:
            pass


def peak() -> int:
    """Bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_checkpoint_that_swells_is_refused_before_it_does(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data/0", "w", force_zip64=True) as record:
            for _ in range(16):
                record.write(bytes(1 << 22))  # 64 MiB of zeros
    before = peak()
    with pytest.raises(Refusal, match="claim 67108864 bytes, more than the file has"):
        load_state(path)
    assert path.stat().st_size < 1 << 20 and peak() - before < 1 << 24


class Declares(pickle.Pickler):
    """Writes a tensor whose storage is said to have as many numbers."""

    numel = 1 << 42

    def persistent_id(self, value):
        if value is self:
            return "storage", torch.FloatStorage, "0", "cpu", self.numel, None
        return None

    def reducer_override(self, value):
        if isinstance(value, Huge):
            shape = (self.numel,), (1,)
            return torch._utils._rebuild_tensor_v2, (self, 0, *shape, False, OrderedDict())
        return NotImplemented


class Huge:
    """What is pickled as that tensor."""


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_of_sixteen_tebibytes_is_refused(tmp_path, zipped):
    path, serial = tmp_path / "huge.pt", torch.serialization
    if zipped:
        saved(tmp_path / "small.pt")
        with (
            zipfile.ZipFile(tmp_path / "small.pt") as small,
            zipfile.ZipFile(path, "w") as archive,
        ):
            for record in small.infolist():
                with archive.open(record.filename, "w") as file:
                    if record.filename.endswith("data.pkl"):
                        Declares(file, 2).dump({"weight": Huge()})
                    else:
                        file.write(small.read(record))
    else:
        with path.open("wb") as file:
            for part in (serial.MAGIC_NUMBER, serial.PROTOCOL_VERSION, {"little_endian": True}):
                pickle.dump(part, file, 2)
            Declares(file, 2).dump({"weight": Huge()})
            pickle.dump(["0"], file, 2)
            file.write(bytes(64))
    before = peak()
    with pytest.raises(Refusal, match="huge.pt"):
        load_state(path)
    assert peak() - before < 1 << 26


@pytest.mark.parametrize("name", ["code.pt", "code.safetensors", "code.bin"])
def test_code_is_refused_under_any_name(tmp_path, monkeypatch, name):
    if name.endswith("safetensors"):
        pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps({"weight": Touch()}))
    with pytest.raises(Refusal, match=name):
        load_state(Path(name))
    assert not Path("executed").exists()
    pickle.loads(Path(name).read_bytes())
    assert Path("executed").exists()  # the attack works on whoever falls for it


def test_states_that_do_not_fit_a_layout_are_refused_by_name():
    layout = qn.ParameterLayout.from_module(network())
    state = network().state_dict()
    w = layout.flatten(state | {"more": torch.ones(3)})  # what else there is
    assert torch.equal(w, layout.flatten(network()))
    wrong = {
        "missing; this layout needs": {k: t for k, t in state.items() if k != "2.bias"},
        r"'2.bias' has shape \(3,\)": state | {"2.bias": torch.ones(3)},
        "'2.bias' is torch.float16": state | {"2.bias": state["2.bias"].half()},
        "'2.bias' is torch.int64": state | {"2.bias": state["2.bias"].long()},
        "'2.bias' is torch.complex64": state | {"2.bias": state["2.bias"] + 0j},
        "'2.bias' is torch.float64": state | {"2.bias": state["2.bias"].double()},
        "'2.bias' must be of type Tensor, got list": state | {"2.bias": [1.0, 2.0]},
    }
    for message, each in wrong.items():
        with pytest.raises((TypeError, ValueError), match=message):
            layout.flatten(each)


def sam():
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return qn.training.EntropySGD(model, base, inner_steps=1)


def test_states_of_wrapped_optimizers_are_taken_whole_or_not_at_all():
    optimizer = sam()
    good = optimizer.state_dict()
    wrong = [
        (None, "must be of type Mapping"), ({}, "got nothing"), ({"base": good["base"]}, "'steps'"),
        (good | {"more": 1}, "'more'"), (good | {"steps": -1}, "at least 0"),
        (good | {"steps": "x"}, "integer"), (good | {"generator": torch.ones(3)}, "no state of"),
        (good | {"base": {"state": {}, "param_groups": []}}, "param"),
    ]  # fmt: skip
    for state, message in wrong:
        other = sam()
        with pytest.raises((TypeError, ValueError), match=message):
            other.load_state_dict(state)
        now = other.state_dict()
        assert now["steps"] == 0 and torch.equal(now["generator"], good["generator"])
        assert now["base"] == good["base"]


# -- writes that fail ---


def failing(monkeypatch, where: str):
    """A disk that is full at a moment of a write."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = Path if where == "write_text" else os
    monkeypatch.setattr(owner, where, full)


@pytest.mark.parametrize("where", ["write_text", "fsync", "replace"])
def test_full_disk_leaves_the_previous_report_whole(tmp_path, monkeypatch, where):
    path = tmp_path / "report.json"
    write_json(path, {"value": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        failing(patch, where)
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"value": 2})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["report.json"]
    write_json(path, {"value": 2})
    assert json.loads(path.read_text()) == {"value": 2}


def test_full_disk_leaves_the_previous_picture_whole(tmp_path):
    class Figure:
        def savefig(self, path, **_):
            Path(path).write_bytes(b"half of a pic")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "report.png"
    path.write_bytes(b"whole")
    with pytest.raises(OSError, match="No space left"):
        write_figure(path, Figure())
    assert path.read_bytes() == b"whole" and os.listdir(tmp_path) == ["report.png"]


def within(limit: int, function, path, answer):
    """Call in a process whose files may have so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        function(path)
    except OSError as error:
        answer.put(error.errno)
    else:
        answer.put(None)


def write_much(path):
    write_text(path, "x" * 100_000)


def run_much(path):
    with Journal(path) as journal:
        journal.run({"side": 2}, lambda: {"row": [1] * 50_000})


@needs_fork
@pytest.mark.parametrize("function", [write_much, run_much])
def test_a_file_that_cannot_grow_is_as_it_was(tmp_path, function):
    path, context = tmp_path / "file", multiprocessing.get_context("fork")
    with Journal(path) as journal:
        journal.run({"side": 1}, lambda: {"area": 1})
    before, answer = path.read_bytes(), context.Queue()
    process = context.Process(target=within, args=(50_000, function, path, answer))
    process.start()
    assert answer.get(timeout=60) == errno.EFBIG
    process.join()
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["file"]


def write_for_ever(path, log):
    """Reports of several pages, numbered; the log has the number of each that is finished."""
    with open(log, "a", buffering=1) as notes:
        number = len(log.read_text().splitlines())
        while True:
            write_json(path, {"number": number, "row": [number] * 20_000})
            notes.write(f"{number}\n")
            number += 1


@needs_fork
def test_kills_at_random_moments_leave_the_last_report_or_the_one_before(tmp_path):
    path, log, moments = tmp_path / "report.json", tmp_path / "log", random.Random(0)
    context = multiprocessing.get_context("fork")
    log.write_text("")
    for _ in range(8):
        size = log.stat().st_size
        process = context.Process(target=write_for_ever, args=(path, log))
        process.start()
        while log.stat().st_size == size:
            time.sleep(0.001)
        time.sleep(0.02 * moments.random())
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        done = int(log.read_text().splitlines()[-1])
        found = json.loads(path.read_text())
        assert found["number"] in (done, done + 1)
        assert found["row"] == [found["number"]] * 20_000
    write_json(path, {})
    assert sorted(os.listdir(tmp_path)) == ["log", "report.json"]  # not what a kill has left


# -- journals ---


def squares(path, sides):
    with Journal(path) as journal:
        return {s: journal.run({"side": s}, lambda: {"area": s**2})["area"] for s in sides}


def test_a_journal_with_any_bit_flipped_is_refused_or_right(tmp_path):
    path = tmp_path / "runs.jsonl"
    squares(path, range(3))
    data, refused = path.read_bytes(), 0
    for other in flipped(data, range(0, len(data), 3)):
        path.write_bytes(other)
        try:
            assert squares(path, range(3)) == {0: 0, 1: 1, 2: 4}
        except ValueError as error:
            assert "is no run; mend it, or move the file away" in str(error)
            assert path.read_bytes() == other
            refused += 1
    assert refused > len(data) / 3 * 0.9


def test_a_journal_of_an_older_version_has_no_checksums(tmp_path):
    path = tmp_path / "runs.jsonl"
    squares(path, [1])
    line = json.loads(path.read_text())
    assert list(line)[-1] == "crc32"
    line.pop("crc32")
    path.write_text(json.dumps(line | {"result": {"area": 7}}) + "\n")
    assert squares(path, [1]) == {1: 7}


def test_a_pickle_is_no_journal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs.jsonl").write_bytes(pickle.dumps(Touch()) + b"\n")
    with pytest.raises(ValueError, match="line 1 of runs.jsonl is no run"):
        Journal("runs.jsonl")
    assert not Path("executed").exists()
