"""Where the project's data lie; how files are read, checked and written."""

# fmt: off
# isort: off
from bench.files.disk import (
    CODE, FIXTURES, INSTALLED, OWN_RESULTS, PACKAGE, RESULTS, SUFFIXES, SUITES, WEIGHTS,
    check_output, check_readable, check_weights, digest_of, finite, malformed, project_file,
    read_json, read_rows, read_text, read_toml, saving, strict_json, tool_table, unreadable,
    write_atomically, write_output,
)
from bench.files.tables import fits, in_words, kept_rows, keyed, parse, parse_rows

__all__ = [
    "CODE", "FIXTURES", "INSTALLED", "OWN_RESULTS", "PACKAGE", "RESULTS", "SUFFIXES", "SUITES",
    "WEIGHTS", "check_output", "check_readable", "check_weights", "digest_of", "finite", "fits",
    "in_words", "kept_rows", "keyed", "malformed", "parse", "parse_rows", "project_file",
    "read_json", "read_rows", "read_text", "read_toml", "saving", "strict_json", "tool_table",
    "unreadable", "write_atomically", "write_output",
]
