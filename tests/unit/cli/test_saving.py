"""Images and files of a run written out: safe names, nothing overwritten, nothing followed."""

from __future__ import annotations

from pathlib import Path

from lockstep.cli.saving import save_attachments
from lockstep.kernel.apply import start
from lockstep.kernel.state import CallState, State
from lockstep.kernel.transcript import Transcript
from lockstep.values import Attachment, RunId


def ran(*attachments: Attachment) -> State:
    call = CallState(id="1.0", provider_id="p", name="python", arguments="{}", asked_at_ms=0, attachments=attachments)
    state = start(RunId("r1"), Transcript((), b""))
    return State(run=state.run, transcript=state.transcript, history=0, calls=(call,))


def plot(name: str = "plot.png", data: bytes = b"pixels") -> Attachment:
    return Attachment(name=name, mime_type="image/png", data=data, shown=True)


def test_what_a_run_kept_is_written_beside_the_calls_id(tmp_path: Path) -> None:
    table = Attachment(name="a table.csv", mime_type="text/csv", data=b"1,2")
    saved = save_attachments(tmp_path / "new" / "out", ran(plot(), table, plot(name="", data=b"other")))
    assert {path.name: path.read_bytes() for path in saved} == {
        "1.0-plot.png": b"pixels",
        "1.0-a_table.csv": b"1,2",
        "1.0-image-3.png": b"other",
    }


def test_names_lead_nowhere_else(tmp_path: Path) -> None:
    names = ["../../x", "/etc/passwd", "..", "a\0b", "-rf", ".bashrc", "\u202egnp.exe", "x" * 500, "con\n"]
    out = tmp_path / "out"
    saved = save_attachments(out, ran(*(plot(name=name, data=name.encode()) for name in names)))
    assert len({path.name for path in saved}) == len(names)
    assert {path.parent for path in saved} == {out}
    assert sorted(tmp_path.iterdir()) == [out]
    assert all(path.name.startswith("1.0-") and len(path.name) < 120 for path in saved)


def test_nothing_that_is_there_is_touched(tmp_path: Path) -> None:
    (tmp_path / "1.0-plot.png").write_bytes(b"mine")
    secret = tmp_path / "secret"
    secret.write_bytes(b"pixels")
    (tmp_path / "1.0-2-plot.png").symlink_to(secret)
    (tmp_path / "1.0-3-plot.png").mkdir()
    saved = save_attachments(tmp_path, ran(plot()))
    assert [path.name for path in saved] == ["1.0-4-plot.png"]
    assert (tmp_path / "1.0-plot.png").read_bytes() == b"mine"
    assert secret.read_bytes() == b"pixels"


def test_saving_again_changes_nothing(tmp_path: Path) -> None:
    state = ran(plot(), plot(data=b"of the same name"))
    first = save_attachments(tmp_path, state)
    assert save_attachments(tmp_path, state) == first
    assert len(list(tmp_path.iterdir())) == 2
