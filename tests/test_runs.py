"""A journal survives a kill at any moment: what it loses, and what it never does."""

import json
import math
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

from quotientnet.files import write_json
from quotientnet.runs import Journal, fcntl

needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)
needs_lock = pytest.mark.skipif(fcntl is None, reason="needs flock")


def squares(path, sides, made=None):
    """All squares, and which of them had to be made."""
    made = [] if made is None else made

    def carry_out(side):
        made.append(side)
        return {"area": side**2}

    with Journal(path) as journal:
        found = [journal.run({"side": s}, lambda: carry_out(s)) for s in sides]
    return [each["area"] for each in found], made


def test_second_call_makes_nothing_and_more_goes_on(tmp_path):
    path = tmp_path / "folder" / "runs.jsonl"
    assert squares(path, range(3)) == ([0, 1, 4], [0, 1, 2])
    assert squares(path, range(3)) == ([0, 1, 4], [])
    assert squares(path, range(5)) == ([0, 1, 4, 9, 16], [3, 4])
    assert len(path.read_text().splitlines()) == 5


def test_cut_at_every_byte_of_the_last_line(tmp_path):
    path = tmp_path / "runs.jsonl"
    squares(path, range(3))
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        with Journal(path) as journal:
            assert len(journal) == 2 and {"side": 2} not in journal
        assert path.read_bytes() == whole[:start]
    for end in (start, start + 1, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert squares(path, range(4)) == ([0, 1, 4, 9], [2, 3])
        assert squares(path, range(4)) == ([0, 1, 4, 9], [])
    path.write_bytes(whole[:7])  # in the first line
    assert squares(path, range(3)) == ([0, 1, 4], [0, 1, 2])


def work(path, log, count):
    """Runs that each note in a log when they start and when their call has returned."""
    with Journal(path) as journal, open(log, "a", buffering=1) as notes:
        for number in range(count):
            settings = {"number": number, "filling": "x" * 5000}

            def carry_out(number=number):
                notes.write(f"start {number}\n")
                return {"value": math.sin(number), "row": [number] * 1000}

            journal.run(settings, carry_out)
            notes.write(f"end {number}\n")


def wait_for(log, size, process):
    """Until the log has a size, or the process has ended."""
    while process.is_alive() and (not log.exists() or log.stat().st_size < size):
        time.sleep(0.0005)


@needs_fork
def test_kills_at_random_moments_lose_the_run_in_progress_at_most(tmp_path):
    path, log, count, kills = tmp_path / "runs.jsonl", tmp_path / "log", 60, 0
    context, moments = multiprocessing.get_context("fork"), random.Random(0)
    finished, size = False, 0
    while not finished:
        process = context.Process(target=work, args=(path, log, count))
        process.start()
        if kills < 10:
            wait_for(log, size + moments.randrange(1, 100), process)
            time.sleep(0.004 * moments.random())
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        finished = process.exitcode == 0
        assert process.exitcode in (0, -signal.SIGKILL)
        kills += process.exitcode != 0
        size = log.stat().st_size
    notes = [line.split() for line in log.read_text().splitlines()]
    starts = [int(number) for what, number in notes if what == "start"]
    assert kills >= 3 and sorted(set(starts)) == list(range(count))
    assert len(starts) <= count + kills  # each kill costs one run at most
    ended = set()
    for what, number in notes:  # what has returned is never made again
        assert what == "end" or number not in ended
        ended |= {number} if what == "end" else set()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["settings"]["number"] for line in lines] == list(range(count))
    assert all(r["result"]["value"] == math.sin(i) for i, r in enumerate(lines))


def test_result_is_the_same_on_the_first_call_and_on_later_ones(tmp_path):
    path = tmp_path / "runs.jsonl"
    made = {"pair": (1, 2), 3: 0.1 + 0.2, "wild": [math.inf, math.nan], "ε": "≤"}
    with Journal(path) as journal:
        first = journal.run({"a": 1, "b": (2, 3)}, lambda: made)
        assert {"b": [2, 3], "a": 1} in journal and {"a": 2} not in journal
    with Journal(path) as journal:
        second = journal.run({"b": (2, 3), "a": 1}, lambda: pytest.fail("is known"))
    assert repr(first) == repr(second)
    assert first["3"] == 0.1 + 0.2 and first["pair"] == [1, 2] and first["ε"] == "≤"


def test_what_fails_leaves_no_trace(tmp_path):
    path = tmp_path / "runs.jsonl"
    with Journal(path) as journal:
        journal.run({"side": 1}, lambda: {"area": 1})
        before = path.read_bytes()
        with pytest.raises(ZeroDivisionError):
            journal.run({"side": 2}, lambda: {"area": 1 / 0})
        with pytest.raises(TypeError, match="Tensor is not JSON serializable"):
            journal.run({"side": 2}, lambda: {"area": torch.ones(1)})
        with pytest.raises(TypeError, match="settings must be a mapping"):
            journal.run(["side", 2], dict)
        assert path.read_bytes() == before and len(journal) == 1
    assert squares(path, [2]) == ([4], [2])


def test_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "runs.jsonl"
    squares(path, [1])
    before = path.read_bytes()
    with Journal(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
            with pytest.raises(OSError, match="full"):
                journal.run({"side": 2}, lambda: {"area": 4})
        assert path.read_bytes() == before and {"side": 2} not in journal
        assert journal.run({"side": 2}, lambda: {"area": 4}) == {"area": 4}
    assert squares(path, [1, 2]) == ([1, 4], [])


@needs_lock
def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "runs.jsonl"
    with Journal(path):
        with pytest.raises(RuntimeError, match="another process has .*runs.jsonl open"):
            Journal(path)
    Journal(path).close()


@pytest.mark.parametrize("line", [b"\n", b"[1]\n", b'{"settings": {}}\n', b"\xff\n"])
def test_foreign_lines_are_refused_by_number(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    squares(path, range(2))
    path.write_bytes(path.read_bytes() + line)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="line 3 of .*runs.jsonl is no run"):
        Journal(path)
    assert path.read_bytes() == before


def test_results_say_where_they_are_from(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    monkeypatch.setattr("sys.argv", [str(tmp_path / "squares.py"), "--name", "a b"])
    monkeypatch.chdir(tmp_path)
    with Journal(tmp_path / "runs.jsonl") as journal:
        for side in range(3):
            journal.run({"side": side}, lambda: {"area": side**2})
    with Journal(tmp_path / "runs.jsonl") as journal:
        journal.run({"side": 1}, dict)
        journal.write_results(path, {"areas": [1], "width": math.nan})
    found = json.loads(path.read_text())
    assert found["command"] == "python squares.py --name 'a b'"
    assert found["runs"] == 1 and found["seconds"] >= 0  # those that were asked for
    (versions,) = found["versions"]
    assert versions["torch"] == torch.__version__ and "quotientnet" in versions
    assert found["date"].endswith("+00:00")
    assert found["areas"] == [1] and found["width"] is None
    monkeypatch.chdir("/")
    monkeypatch.setattr("sys.argv", [str(tmp_path.parent / "x" / "squares.py")])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with Journal(tmp_path / "runs.jsonl") as journal:
        journal.write_results(path, {})
    assert json.loads(path.read_text())["command"] == "python squares.py"


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "facts.json"
    write_json(path, {"a": [1.5, math.inf]})
    with pytest.raises(TypeError):
        write_json(path, {"a": {1, 2}})
    assert json.loads(path.read_text()) == {"a": [1.5, None]}
    assert [each.name for each in tmp_path.iterdir()] == ["facts.json"]
