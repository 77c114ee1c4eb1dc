"""The README's snippet prints what the README says, and its commands are the two that CI runs."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_snippet_prints_what_the_readme_says():
    (snippet,), (expected,) = blocks("python"), blocks("text")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "README.md", "exec"), {})
    # The last line's distance is rounding error, of which only the size is the same everywhere.
    *same, last = printed.getvalue().splitlines()
    assert same == expected.splitlines()[:-1]
    assert re.fullmatch(
        r"distance on the quotient \de-1[45], in parameter space \d+", last
    )


def test_two_commands_do_all_the_set_up():
    commands = [block.strip() for block in blocks("console")]
    assert len(commands) == 2
    assert all(
        "venv" in command and "-c constraints.txt" in command for command in commands
    )
    assert commands[0].endswith("-m quotientnet") and commands[1].endswith("-m pytest")
