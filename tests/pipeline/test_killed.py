"""Whatever ends a run, and wherever, the next one goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from grape import dvc
from grape.errors import GrapeError
from grape.pipeline import guard, mend, preflight
from tests.pipeline.harness import Toy, until

ALL = ("first", "branch@left", "branch@right", "last")


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_sigkill_in_the_middle_of_a_stage(toy: Toy) -> None:
    toy.edit("high: 0.3", "high: 0.4")
    toy.order("branch@left", "wait")
    run = toy.start()
    stage = toy.waiting_pid("branch@left")
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    until(lambda: gone(stage))  # nothing goes on training
    toy.release()
    result = toy.run()
    assert toy.statuses(result) == {"first": "cached", "branch@left": "ran", "branch@right": "cached", "last": "ran"}
    assert "branch@left: the run it belonged to was killed" in toy.said
    assert toy.dvc_status() == {}
    assert not list((toy.project.state / "running").iterdir())
    assert not any(json.loads((toy.root / ".dvc/tmp/rwlock").read_text()).values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_stages(toy: Toy, number: int) -> None:
    toy.edit("high: 0.3", "high: 0.4")
    toy.order("branch@left", "wait")
    run = toy.start()
    stage = toy.waiting_pid("branch@left")
    run.send_signal(number)
    out, _ = run.communicate()
    assert run.returncode == 130, out
    assert gone(stage)
    toy.release()
    assert toy.run().exit_code == 0


def test_a_second_run_waits_for_the_first(toy: Toy) -> None:
    with preflight.lock(toy.project, print):
        with pytest.raises(GrapeError, match=f"a run is under way here: pid {os.getpid()}"):
            toy.run(wait=False)
        second = toy.start()
        assert second.stdout is not None
        first = second.stdout.readline()
    assert "waiting for its end" in first, first + second.stdout.read()
    out, _ = second.communicate()
    assert second.returncode == 0 and "everything is up to date" in out


def test_a_dvc_command_by_hand_is_waited_for(toy: Toy) -> None:
    toy.edit("high: 0.3", "high: 0.4")
    toy.order("branch@left", "wait")
    by_hand = subprocess.Popen(
        [*dvc.command("repro")], cwd=toy.root, env=dvc.environment(toy.project), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    toy.waiting_pid("branch@left")
    with pytest.raises(GrapeError, match=f"dvc is at work here .pid {by_hand.pid}"):
        toy.run(wait=False)
    second = toy.start()
    assert second.stdout is not None
    first = second.stdout.readline()
    assert "waiting for its end" in first, first + second.stdout.read()
    toy.release()
    by_hand.communicate()
    out, _ = second.communicate()
    assert by_hand.returncode == 0 and second.returncode == 0 and "everything is up to date" in out


def test_a_half_written_lock_file_is_restored(toy: Toy) -> None:
    lock = toy.root / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: len(whole) // 2 + 7])
    assert toy.run().plan is None
    assert "dvc.lock was damaged" in toy.said and "restored from its last good copy" in toy.said
    assert lock.read_text() == whole


def test_what_the_dead_left_half_made_is_cleared(toy: Toy) -> None:
    state, dead = toy.project.state, subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    litter = [
        toy.root / "out" / ".Zs9nAbCdEfGhIjKlMnOp-_.tmp",
        toy.root / ".dvc" / "cache" / "files" / "md5" / "x.Zs9nAbCdEfGhIjKlMnOp-_.tmp",
        state / "tmp" / "loose",
        state / "tmp" / str(dead.pid) / "deep" / "file",
        state / "runs" / "first-1" / "events.jsonl",
        state / "runs" / "first-2" / "files" / "nothing",
    ]
    kept = [
        toy.root / "out" / "notes.tmp",
        toy.root / ".dvc" / "cache" / "x.tmp",
        state / "tmp" / str(os.getpid()) / "mine",
        state / "runs" / "first-3" / "meta.json",
    ]
    for path in litter + kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if "runs" in path.parts and path in litter else "x")
    toy.run()
    assert [path for path in litter if path.exists()] == [] and all(path.exists() for path in kept)
    assert not (state / "tmp" / str(dead.pid)).exists() and not (state / "runs" / "first-1").exists()


def test_without_a_copy_the_cache_knows(toy: Toy) -> None:
    lock = toy.root / "dvc.lock"
    lock.write_text(lock.read_text()[:-40])
    (toy.project.state / "dvc.lock").unlink()
    result = toy.run()
    assert "set aside as .grape/dvc.lock.damaged-" in toy.said
    assert toy.statuses(result) == dict.fromkeys(ALL, "cached")
    assert toy.dvc_status() == {}


def test_every_cut_of_a_lock_file_is_noticed_or_harmless(toy: Toy) -> None:
    """A cut between two items leaves a valid file that knows less, which DVC's cache makes up for; no cut may leave a
    hash or a path that is not the true one."""
    path = toy.root / "dvc.lock"
    text, whole = path.read_text(), dvc.read_lock(path)
    noticed = 0
    for end in range(0, len(text), 7):
        path.write_text(text[:end])
        try:
            part = dvc.read_lock(path)
        except ValueError:
            noticed += 1
            continue
        for name, stage in part.items():
            for kind in ("deps", "outs"):
                for item, true in zip(stage.get(kind) or [], whole[name][kind], strict=False):
                    assert item.items() <= true.items()
    assert noticed > 0.8 * len(text) / 7


def test_a_half_written_path_lock_is_removed(toy: Toy) -> None:
    (toy.root / ".dvc/tmp/rwlock").write_text('{"write": {"/x": {"pid"')
    toy.edit("high: 0.3", "high: 0.4")
    assert toy.run().exit_code == 0
    assert "(.dvc/tmp/rwlock) was cut short: removed" in toy.said


def test_a_path_lock_whose_pid_is_another_program_now_is_removed(toy: Toy) -> None:
    info = {"pid": os.getpid(), "cmd": "dvc repro"}
    (toy.root / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {str(toy.root / "out/first"): info}, "read": {}}))
    done, holders = mend.path_locks(toy.project)
    assert done and not holders
    assert not any(json.loads((toy.root / ".dvc/tmp/rwlock").read_text()).values())


def test_the_guard_ends_a_command_that_will_not_listen() -> None:
    deaf = (
        "import signal, time, os\nfor n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, signal.SIG_IGN)\n"
        "print(os.getpid(), flush=True)\nwhile True: time.sleep(1)"
    )
    process = subprocess.Popen(
        guard.command([sys.executable, "-c", deaf], grace=0.2),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    pid = int(process.stdout.readline())
    assert not gone(pid)
    process.stdin.close()
    assert process.wait() == 128 + signal.SIGKILL
    until(lambda: gone(pid))
    process.stdout.close()


def test_the_guard_passes_on_the_exit_code() -> None:
    process = subprocess.Popen(
        guard.command([sys.executable, "-c", "raise SystemExit(7)"], grace=1), stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.wait() == 7
    assert process.stdin is not None
    process.stdin.close()


def test_the_guard_ends_what_a_command_leaves_behind() -> None:
    script = "sleep 600 & echo $!"
    process = subprocess.Popen(
        guard.command(["/bin/sh", "-c", script], grace=1),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    left = int(process.stdout.readline())
    assert process.wait() == 0
    until(lambda: gone(left))
    process.stdin.close()
    process.stdout.close()
