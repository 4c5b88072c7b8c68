"""``nas-hpc balsam`` and the doctor's line, on a real Balsam database."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

import pytest

from nas_hpc.cli.main import main
from tests.peers.balsam import Balsam

pytestmark = [pytest.mark.slow, pytest.mark.needs_balsam]


@pytest.fixture(autouse=True)
def _active(balsam: Balsam, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As after ``source balsamactivate``."""
    for name, value in balsam.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def call(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


def test_the_searches_and_the_trial_become_applications_that_balsam_lists(balsam: Balsam) -> None:
    code, out, err = call("balsam", "register", str(balsam.database), "--json")
    assert (code, err) == (0, "")
    names = ["AMBS", "EVO", "PPO", "RAN", "nas_hpc_trial"]
    assert (sorted(json.loads(out)["added"]), json.loads(out)["trigger"]) == (names, True)
    listed = balsam.balsam("ls", "apps", "--verbose")
    assert f"{os.path.abspath(sys.executable)} -m nas_hpc.apps.regevo" in listed
    code, out, _ = call("balsam", "register", str(balsam.database))
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [[name, "same"] for name in names]


def test_another_command_of_an_application_is_told_and_changed_on_demand(balsam: Balsam) -> None:
    balsam.add_app("AMBS", "/old/python -m nas_hpc.apps.ambs")
    code, out, err = call("balsam", "register", str(balsam.database))
    assert (code, out) == (2, "")
    assert "AMBS is registered with '/old/python -m nas_hpc.apps.ambs': --replace changes it" in err
    assert balsam.do("SELECT count(*) FROM core_applicationdefinition") == [(1,)]
    assert call("balsam", "register", str(balsam.database), "--replace")[0] == 0
    assert call("balsam", "register", str(balsam.database), "--python", "/bin/true", "--replace")[0] == 0
    code, _, err = call("balsam", "register", str(balsam.database), "--python", "/bin/false")
    assert (code, "'/bin/false' cannot load nas-hpc" in err) == (2, True)


def test_a_database_that_is_down_or_none_is_one_line(balsam: Balsam, tmp_path: Path) -> None:
    assert call("balsam", "register", "nowhere")[0] == 2
    code, _, err = call("balsam", "register", str(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert "is no Balsam database (no file server-info in it): balsam init makes one" in err
    balsam.stop_server()
    code, _, err = call("balsam", "register", str(balsam.database))
    assert (code, err.count("\n")) == (1, 1)
    assert "does not answer" in err
    assert "source balsamactivate starts it" in err


def test_the_doctor_says_what_the_active_database_lacks(balsam: Balsam) -> None:
    def line() -> list[str]:
        checks = json.loads(call("doctor", "--quick", "--json")[1])["checks"]
        (found,) = [check for check in checks if check["name"] == "balsam"]
        return [found["level"], found["text"].rpartition(", ")[2], found["advice"]]

    assert line() == ["warn", "RAN", f"nas-hpc balsam register {balsam.database}"]
    call("balsam", "register", str(balsam.database))
    assert line() == ["ok", f"database {balsam.database} at localhost:{balsam.port}", ""]


def test_a_database_that_trusts_strangers_is_closed_by_a_password(balsam: Balsam) -> None:
    balsam.listen("*")
    try:
        code, _, err = call("balsam", "register", str(balsam.database))
        assert (code, f"nas-hpc balsam protect {balsam.database} sets a password" in err) == (0, True)
        assert call("balsam", "protect", str(balsam.database))[0] == 0
        info = balsam.database / "server-info"
        assert info.stat().st_mode & 0o777 == 0o600
        assert len(json.loads(info.read_text())["password"]) > 30
        assert call("balsam", "register", str(balsam.database))[2] == ""
        assert "AMBS" in balsam.balsam("ls", "apps")
        info.write_text(json.dumps({"host": "localhost", "port": balsam.port}))
        code, _, err = call("balsam", "register", str(balsam.database))
        assert (code, "does not let" in err) == (1, True)
    finally:
        balsam.listen("localhost")
