"""The commands around the project: finding a Python, reading and checking the README's examples."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import demo_check, screenshots

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = "```bash\ncurl -s http://127.0.0.1:8000/ \\\n  -d x\n```\n\nprints\n\n```text\ny\n```\n"


def find_python(path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(ROOT / "scripts" / "find_python.sh")]
    return subprocess.run(command, env={"PATH": str(path), **env}, capture_output=True, text=True, check=False)


def put_python(directory: Path, name: str, *, works: bool) -> None:
    # One that does not work stands for an older Python and for a pyenv shim that refuses.
    program = directory / name
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n' if works else "#!/bin/sh\nexit 127\n")
    program.chmod(0o755)


def test_python_that_does_not_run_is_passed_over(tmp_path: Path) -> None:
    put_python(tmp_path, "python3", works=False)
    put_python(tmp_path, "python3.12", works=True)
    assert find_python(tmp_path).stdout == "python3.12\n"


def test_python3_comes_first_where_it_is_new_enough(tmp_path: Path) -> None:
    put_python(tmp_path, "python3", works=True)
    put_python(tmp_path, "python3.13", works=True)
    assert find_python(tmp_path).stdout == "python3\n"


def test_no_python_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    put_python(tmp_path, "python3", works=False)
    done = find_python(tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(
        "This project needs Python 3.11 or later with the modules venv and ensurepip; tried: "
    )


def test_named_python_is_the_only_one_tried(tmp_path: Path) -> None:
    put_python(tmp_path, "python3", works=True)
    put_python(tmp_path, "old", works=False)
    assert find_python(tmp_path, PYTHON="old").returncode == 1


def test_examples_are_the_bash_blocks_and_the_answers_below_them() -> None:
    assert demo_check.read_examples(f"# Title\n\n```sh\nmake\n```\n\n{EXAMPLE}") == [
        ("curl -s http://127.0.0.1:8000/ \\\n  -d x", "y")
    ]


@pytest.mark.parametrize("readme", ["no curl", EXAMPLE + "```bash\ncurl z\n```\n", "```bash\ncurl z\n```\n" + EXAMPLE])
def test_bash_block_without_an_answer_is_an_error(readme: str) -> None:
    with pytest.raises(demo_check.DemoFailed, match=r"^README\.md: each bash block needs a text block"):
        demo_check.read_examples(readme)


def test_another_answer_than_the_printed_one_fails(capsys: pytest.CaptureFixture[str]) -> None:
    command = f"echo at {demo_check.README_URL}/x"
    demo_check.check([(command, "at http://there/x")], "http://there")
    assert capsys.readouterr().out == f"$ {command}\nat http://there/x\n"
    with pytest.raises(demo_check.DemoFailed, match=r"^curl ended with 0; expected was:\nat nothing$"):
        demo_check.check([(command, "at nothing")], "http://there")


def test_block_finds_the_variables_of_those_before_it() -> None:
    examples = [('ID=a-$$ TEXT="it\'s"; echo $ID', "a-…"), ("NEXT=$ID-b", ""), ('echo "$NEXT $TEXT"', "a-…-b it's")]
    demo_check.check(examples, "http://there")
    with pytest.raises(demo_check.DemoFailed):
        demo_check.check(examples[2:], "http://there")


@pytest.mark.parametrize(
    ("answer", "printed"),
    [
        ('{"id":"af-call-09af","at":"2026-03-01T08:00:00.5+00:00"}', True),
        ('{"id":"af-call-","at":"x"}', False),
        ('{"id":"af-call-0","b":"c","at":"x"}', False),
        ('{"id":"call-0","at":"x"}', False),
        ('{"id":"af-call-0","at":"x"} ', False),
    ],
)
def test_ellipsis_stands_for_an_id_or_a_time_and_nothing_else(answer: str, printed: bool) -> None:
    assert demo_check.is_printed(answer, '{"id":"af-call-…","at":"…"}') is printed


def test_ellipsis_in_braces_stands_for_one_object() -> None:
    assert demo_check.is_printed('{"a":{"b":1,"c":2},"d":3}', '{"a":{…},"d":3}')
    assert not demo_check.is_printed('{"a":{"b":1},"x":{"c":2},"d":3}', '{"a":{…},"d":3}')
    assert not demo_check.is_printed('{"a":null,"d":3}', '{"a":{…},"d":3}')


def test_dots_of_an_answer_are_no_pattern() -> None:
    assert not demo_check.is_printed("a+b", "a.b")


def test_failing_command_fails() -> None:
    with pytest.raises(demo_check.DemoFailed, match=r"^curl ended with 7; "):
        demo_check.check([("echo y; exit 7", "y")], "http://there")


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_server_is_stopped_when_a_check_fails() -> None:
    with pytest.raises(demo_check.DemoFailed), demo_check.running_demo() as url:
        demo_check.check([("true", "something")], url)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))


def test_pictures_are_those_that_are_taken() -> None:
    assert {path.stem for path in screenshots.IMAGES.iterdir()} == {shot.name for shot in screenshots.SHOTS}
