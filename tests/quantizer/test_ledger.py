"""The ledger: what is done stays done, what is damaged is found, what differs is named."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from quantizer.errors import CheckpointError, IdentityError, OutputError
from quantizer.run import lease, ledger

ROOT = Path(__file__).parents[2]
WORK = ledger.Identity(
    block="block-00000", inputs="aa", method="rtn", settings="{}", statistics="", code="1"
)
TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(2, dtype=torch.float16)}


@pytest.fixture
def folder(tmp_path):
    ledger.prepare(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_committed_work_is_done_and_verifies(folder):
    assert ledger.state(folder, WORK) == "missing"
    manifest = ledger.commit(folder, WORK, TENSORS, "{}")
    assert ledger.state(folder, WORK) == "done"
    shard = (folder / "block-00000.safetensors").read_bytes()
    assert manifest.shard_sha256 == hashlib.sha256(shard).hexdigest()
    assert ledger.verify(folder) == ([manifest], [])


def test_equal_work_gives_equal_bytes(folder):
    ledger.commit(folder, WORK, TENSORS, "{}")
    before = contents(folder)
    ledger.commit(folder, WORK, dict(reversed(TENSORS.items())), "{}")
    assert contents(folder) == before
    assert sorted(before) == ["block-00000.safetensors", "ledger/block-00000.json"]


@pytest.mark.parametrize("field", ["inputs", "method", "settings", "statistics", "code"])
def test_other_work_is_refused_by_the_field_that_differs(folder, field):
    ledger.commit(folder, WORK, TENSORS, "{}")
    with pytest.raises(IdentityError, match=f"another {field}: found .*, expected other"):
        ledger.state(folder, replace(WORK, **{field: "other"}))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
def test_a_damaged_shard_is_found_and_made_again(folder, damage):
    ledger.commit(folder, WORK, TENSORS, "{}")
    before = contents(folder)
    damage(folder / "block-00000.safetensors")
    assert ledger.state(folder, WORK) == "damaged"
    assert "block-00000.safetensors" in ledger.verify(folder)[1][0]
    ledger.commit(folder, WORK, TENSORS, "{}")
    assert contents(folder) == before


def test_a_manifest_changed_by_hand_is_found(folder):
    ledger.commit(folder, WORK, TENSORS, "{}")
    path = ledger.manifest_path(folder, WORK.block)
    path.write_text(path.read_text().replace('"rtn"', '"gptq"'))
    assert ledger.state(folder, WORK) == "damaged"
    assert "does not agree with itself" in ledger.verify(folder)[1][0]


def test_a_manifest_cannot_name_a_shard_elsewhere(folder):
    manifest = ledger.commit(folder, WORK, TENSORS, "{}")
    hostile = replace(manifest, shard="../../etc/passwd")
    assert "plain name" in ledger.problem_of(folder, hostile)


def test_a_folder_without_ledger_does_not_verify(tmp_path):
    with pytest.raises(CheckpointError, match="no ledger"):
        ledger.verify(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(folder, monkeypatch, call):
    ledger.commit(folder, WORK, TENSORS, "{}")
    before = contents(folder)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        ledger.commit(folder, WORK, {"b": torch.zeros(9)}, "{}")
    assert contents(folder) == before


def test_a_read_only_folder_is_refused_before_any_work(folder, monkeypatch):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(lease.os, "open", read_only)
    message = "cannot be written: Read-only file system"
    path = lease.lease_path(folder, WORK.block)
    with pytest.raises(OutputError, match=message), lease.leased(path):
        pytest.fail("holds a lease that cannot be written")
    monkeypatch.undo()
    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(OutputError, match=message):
        ledger.prepare(folder / "new")


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        ledger.prepare(tmp_path / "file" / "out")


def test_one_writer_holds_a_lease(folder):
    path = lease.lease_path(folder, WORK.block)
    with lease.leased(path) as first, lease.leased(path) as second:
        assert (first, second) == (True, False)
    assert not path.exists()


def test_the_lease_of_a_killed_process_is_taken_over(folder):
    path = lease.lease_path(folder, WORK.block)
    code = (
        "import os, signal, sys; from pathlib import Path; from quantizer.run import lease\n"
        "with lease.leased(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=False)
    assert path.exists()
    with lease.leased(path) as mine:
        assert mine


def test_the_lease_of_another_machine_is_broken_when_it_shows_no_life(folder, monkeypatch):
    path = lease.lease_path(folder, WORK.block)
    path.write_bytes(b'{"host":"elsewhere","pid":1,"started":"1","token":"x"}')
    with lease.leased(path) as mine:
        assert not mine
    monkeypatch.setattr(lease, "STALE_S", 0.3)
    begin = time.monotonic()
    lease.wait_until_free(path, poll_s=0.05)
    assert not path.exists()
    assert time.monotonic() - begin >= 0.3


def test_a_heartbeat_keeps_a_lease(folder, monkeypatch):
    path = lease.lease_path(folder, WORK.block)
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    with lease.leased(path):
        before = path.stat().st_mtime_ns
        time.sleep(0.3)
        assert path.stat().st_mtime_ns > before


def test_what_a_killed_writer_left_is_swept(folder):
    left = folder / ".block-00000.0123.tmp"
    other = folder / ".block-00001.0123.tmp"
    left.touch()
    other.touch()
    ledger.sweep(folder, "block-00000")
    assert (left.exists(), other.exists()) == (False, True)
