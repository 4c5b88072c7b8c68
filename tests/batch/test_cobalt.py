"""What Cobalt is asked to submit and to delete, and how it refuses, on texts as it prints them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_hpc.batch import cobalt
from nas_hpc.batch.cobalt import Cobalt
from nas_hpc.batch.system import Request
from nas_hpc.errors import BatchRefused, BatchSilent, WrongCall
from tests.batch.cobalt_texts import NOISE, Played, table
from tests.peers.cobalt_commands import unescaped

SCRIPT = Path("/a dir/k.sh")
REQUEST = Request(
    name="k", nodes=4, walltime_minutes=60, directory=Path("/a dir"), output=Path("/a dir/k"),
    queue="debug-cache-quad", project="datascience",
)  # fmt: skip


# Submitting


def test_directives_are_one_option_a_line_without_quotes() -> None:
    assert Cobalt().directives(REQUEST) == [
        "#COBALT -A datascience", "#COBALT -n 4", "#COBALT -q debug-cache-quad", "#COBALT -t 60"
    ]  # fmt: skip
    more = replace(REQUEST, queue="", project="", attrs=("mcdram=flat", "ssds=required:ssd_size=128"))
    assert Cobalt().directives(more) == [
        "#COBALT -n 4", "#COBALT -t 60", "#COBALT --attrs mcdram=flat:ssds=required:ssd_size=128"
    ]  # fmt: skip


@pytest.mark.parametrize("blank", [" ", "\t", "\n"])
@pytest.mark.parametrize("field", ["project", "queue", "attrs"])
def test_a_value_with_a_blank_is_refused_and_named(field: str, blank: str) -> None:
    value = f"my{blank}own"
    request = replace(REQUEST, **{field: (value,) if field == "attrs" else value})  # type: ignore[arg-type]
    with pytest.raises(WrongCall) as caught:
        Cobalt().directives(request)
    assert repr(value) in str(caught.value)
    assert "one word" in str(caught.value)


def test_a_walltime_of_0_which_would_be_the_longest_is_refused() -> None:
    with pytest.raises(WrongCall, match="a walltime of 0 min: Cobalt takes 0 for the longest"):
        Cobalt().directives(replace(REQUEST, walltime_minutes=0))


def test_paths_go_by_the_command_line_and_the_script_comes_last() -> None:
    ask = Played((0, "12345\n", ""))
    request = replace(REQUEST, dependencies=("7", "8"), flags=("--mode", "script", "-M", "me@x"))
    assert Cobalt().submit(request, SCRIPT, ask) == "12345"
    [argv] = ask.asked
    assert argv == [
        "qsub", "--cwd", "/a dir", "-O", "/a dir/k", "--dependencies", "7:8", "--mode", "script",
        "-M", "me@x", "/a dir/k.sh",
    ]  # fmt: skip


def test_flags_that_would_end_the_options_are_refused() -> None:
    for flags, word in ((("word",), "word"), (("-h", "-q", "default", "x", "-t", "5"), "x")):
        with pytest.raises(WrongCall, match=f"'{word}' is no option, so Cobalt would take it for the script"):
            Cobalt().submit(replace(REQUEST, flags=flags), SCRIPT, Played((0, "1\n", "")))
    assert Cobalt().submit(replace(REQUEST, flags=("--new", "x")), SCRIPT, Played((0, "1\n", ""))) == "1"


def test_attributes_are_given_once() -> None:
    both = replace(REQUEST, attrs=("mcdram=flat",), flags=("--attrs", "numa=quad"))
    with pytest.raises(WrongCall, match="one --attrs"):
        Cobalt().submit(both, SCRIPT, Played((0, "1\n", "")))


def test_a_dependency_that_is_no_number_is_refused() -> None:
    with pytest.raises(WrongCall, match=r"'7\.x' is no id of Cobalt"):
        Cobalt().submit(replace(REQUEST, dependencies=("7.x",)), SCRIPT, Played((0, "1\n", "")))


@pytest.mark.parametrize(
    ("stdout", "expected"),
    [
        ("1\n", "1"),
        ('Job routed to queue "full-node".\nMemory mode set to cache quad.\n521111\n', "521111"),
        ("521111\nSee you.\n", "521111"),
        (" 17 \n\n", "17"),
        ("12 nodes\n13\n", "13"),
    ],
)  # fmt: skip
def test_the_id_is_the_last_line_that_is_a_number(stdout: str, expected: str) -> None:
    assert Cobalt().submit(REQUEST, SCRIPT, Played((0, stdout, "a filter's message\n"))) == expected


REFUSALS = {
    "no script": ("Usage: qsub [options]\n", "No executable or script specified\n", None),
    "no time": ("", "'time' not provided\n", None),
    "script missing": ("", "command /a/k.sh not found, or is not a file\n", None),
    "script not executable": ("", "command /a/k.sh is not executable\n", None),
    "node count": ("", "node count out of realistic range\n", None),
    "usage": (
        "", "Usage: qsub [options] <executable>\n\nqsub: error: option -n: invalid integer value: 'abc'\n",
        "Cobalt refused it: qsub: error: option -n: invalid integer value: 'abc'; sent",
    ),
    "time": ("", "invalid time specification: illegal value 'abc' for minutes\n", None),
    "queue": (
        "", NOISE + "<Fault 1001: \"trying to add job to non-existent queue 'nosuch'\">\n",
        "Cobalt refused it: trying to add job to non-existent queue 'nosuch'; sent",
    ),
    "too long": (
        "",
        r"""<Fault 1001: "It failed: Walltime greater than the 'Q' queue max walltime of 01:00:00\n">""",
        "failed: Walltime greater than the 'Q' queue max walltime of 01:00:00; sent",
    ),
    "too short": (
        "", r"""<Fault 1001: "Walltime less than the 'Q' queue min walltime of 00:02:00\n">""" + "\n",
        "Cobalt refused it: Walltime less than the 'Q' queue min walltime of 00:02:00; sent",
    ),
    "too many": (
        "",
        NOISE + r"""<Fault 1001: "The limit of 1 jobs per user in the 'Q' queue has been reached\n">""",
        "it: The limit of 1 jobs per user in the 'Q' queue has been reached; sent",
    ),
    "draining": (
        "", NOISE + """<Fault 1001: "The 'Q' queue is draining">\n""", "it: The 'Q' queue is draining; sent"
    ),
    "attributes": (
        "",
        r"""component error: XMLRPC failure <Fault 1004: 'it\'s not valid'> in system.validate_job""" + "\n",
        "it: component error: XMLRPC failure it's not valid in system.validate_job; sent",
    ),
    "two attrs": ("", "Multiple --attrs options not supported.\n", None),
    "down": ("", "component error: Failed to connect to system: (111, 'Connection refused')\n", None),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_told_in_its_own_words_in_one_line_with_what_was_sent(name: str) -> None:
    stdout, stderr, expected = REFUSALS[name]
    with pytest.raises(BatchRefused) as caught:
        Cobalt().submit(REQUEST, SCRIPT, Played((2 if name == "usage" else 1, stdout, stderr)))
    said = str(caught.value)
    assert (expected or f"Cobalt refused it: {stderr.strip()}; sent") in said
    assert "\n" not in said
    assert "Fault" not in said
    assert "Proxy" not in said
    argv = ["qsub", "--cwd", "/a dir", "-O", "/a dir/k", str(SCRIPT)]
    assert said.endswith(
        f"sent: {shlex.join(argv)}, with #COBALT -A datascience; #COBALT -n 4; #COBALT -q debug-cache-quad; "
        "#COBALT -t 60"
    )


@pytest.mark.parametrize("answer", [(0, "welcome\n", ""), (0, "", ""), (1, "17\n", "component error: x\n")])
def test_an_answer_that_is_neither_is_not_taken_for_a_refusal(answer: tuple[int, str, str]) -> None:
    with pytest.raises(BatchSilent, match="it is not known whether Cobalt took it"):
        Cobalt().submit(REQUEST, SCRIPT, Played(answer))


def test_interactive_asks_for_the_same_with_the_environment_escaped() -> None:
    request = replace(REQUEST, environ={"A": "x:y=z", "B": "1"}, attrs=("mcdram=flat",), flags=("-M", "me"))
    assert Cobalt().interactive_argv(request) == [
        "qsub", "-I", "-A", "datascience", "-n", "4", "-q", "debug-cache-quad", "-t", "60",
        "--attrs", "mcdram=flat", "--env", r"A=x\:y\=z:B=1", "-M", "me",
    ]  # fmt: skip


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_]{1,5}", fullmatch=True), st.text("ab:=\\ ,/", max_size=8), min_size=1
    )
)
def test_what_is_escaped_for_env_is_what_the_script_gets_or_is_refused(environ: dict[str, str]) -> None:
    try:
        text = cobalt.environment_argument(environ)
    except WrongCall:
        assert any("\\" in value for value in environ.values())
    else:
        assert unescaped(text) == environ


# Deleting

DELETED = "      Deleted Jobs\nJobID  User  \n=============\n{}      me    \n"


def test_what_qdel_deleted_and_qstat_has_no_more_is_deleted() -> None:
    ask = Played((0, DELETED.format(5), ""), (1, "", ""))
    assert Cobalt().cancel(["5"], ask) == {}
    assert ask.asked == [["qdel", "5"], ["qstat", "--header", "JobID:State", "5"]]


def test_a_batch_job_that_is_ending_is_deleted() -> None:
    assert (
        Cobalt().cancel(["5"], Played((0, DELETED.format(5), ""), (0, table([("5", "killing")]), ""))) == {}
    )


def test_silence_about_a_batch_job_that_is_there_is_a_refusal() -> None:
    ask = Played((0, "", ""), (0, table([("5", "running")]), ""))
    assert Cobalt().cancel(["5", "abc"], ask) == {
        "abc": "'abc' is no id of Cobalt, which are whole numbers",
        "5": "Cobalt has it still (running), qdel did not delete it: is it yours?",
    }
    assert ask.asked[0] == ["qdel", "5"]
    assert len(ask.asked) == 2


def test_a_batch_job_that_is_deleted_a_moment_later_is_deleted() -> None:
    ask = Played((0, DELETED.format(5), ""), (0, table([("5", "running")]), ""), (1, "", ""))
    assert Cobalt().cancel(["5"], ask) == {}


@pytest.mark.parametrize(
    "answers",
    [
        [(1, "", "component error: Failed to connect to queue-manager\n")],
        [(0, DELETED.format(5), ""), (1, "", "component error: Failed to connect to queue-manager\n")],
    ],
)
def test_deleting_in_the_dark_is_told(answers: list[tuple[int, str, str]]) -> None:
    with pytest.raises(BatchSilent, match="Failed to connect to queue-manager"):
        Cobalt().cancel(["5"], Played(*answers))
