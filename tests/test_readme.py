"""tools/readme.py: which lines of a README are examples, and what a terminal shows of them."""

from __future__ import annotations

import readme


def test_an_example_is_a_command_with_what_it_printed():
    lines = """Prose:

    llmcli no example
    $ echo one \\
        two
    one two

    $ echo three
    three

      indented, after an empty line

More prose.""".split("\n")
    found = [(command, lines[output]) for command, output in readme.examples(lines)]
    assert found == [
        ("echo one  two", ["    one two"]),
        ("echo three", ["    three", "", "      indented, after an empty line"]),
    ]


def test_a_terminal_s_colours_are_taken_off_and_a_failure_prints_nothing(tmp_path, capfd):
    assert readme.printed(r"printf '\033[1mbold\033[0m \n\n  x\n\n'", tmp_path) == [
        "bold",
        "",
        "  x",
    ]
    assert readme.printed("stty size", tmp_path) == [f"{readme.LINES} {readme.COLUMNS}"]
    assert readme.printed("echo gone; exit 3", tmp_path) is None
    assert "gone" in capfd.readouterr().err


def test_the_readme_has_examples_that_name_only_what_is_there():
    examples = list(readme.examples(readme.README.read_text().split("\n")))
    assert len(examples) > 15
    assert {command.split()[0] for command, _ in examples} == {"llmcli", "cat"}
