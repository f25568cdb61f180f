"""The plugin of this project's own suites: options, fixtures, markers, pytest-benchmark's hooks.

Answers come from the library below; what is here only asks, records and reports. Its options have
plain names (`--model`, `--rank`) and its hooks choose among tests: it is for the conftest.py beside
these suites alone. What everybody has is `lora_target_bench.pytest_plugin`.
"""

from bench.plugin.apart import pytest_cmdline_main
from bench.plugin.collection import (
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_deselected,
    pytest_generate_tests,
    pytest_ignore_collect,
    pytest_itemcollected,
    pytest_report_teststatus,
    pytest_runtest_setup,
)
from bench.plugin.ending import pytest_cut_early, pytest_runtest_protocol
from bench.plugin.fixtures import (
    cluster,
    launches,
    measured,
    measuring,
    model_of,
    peft_count,
    pytest_runtest_makereport,
    ranked,
    record,
    step_options,
    subject,
    timed_rounds,
    user_subject,
)
from bench.plugin.geometry import pytest_configure_node
from bench.plugin.options import pytest_addoption, pytest_configure, pytest_sessionstart
from bench.plugin.storing import (
    pytest_benchmark_compare_machine_info,
    pytest_benchmark_update_machine_info,
    pytest_sessionfinish,
)
from bench.plugin.summary import (
    pytest_internalerror,
    pytest_last_word,
    pytest_terminal_summary,
)

__all__ = [
    "cluster",
    "launches",
    "measured",
    "measuring",
    "model_of",
    "peft_count",
    "pytest_addoption",
    "pytest_benchmark_compare_machine_info",
    "pytest_benchmark_update_machine_info",
    "pytest_cmdline_main",
    "pytest_collection_finish",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_configure_node",
    "pytest_cut_early",
    "pytest_deselected",
    "pytest_generate_tests",
    "pytest_ignore_collect",
    "pytest_internalerror",
    "pytest_itemcollected",
    "pytest_last_word",
    "pytest_report_teststatus",
    "pytest_runtest_makereport",
    "pytest_runtest_protocol",
    "pytest_runtest_setup",
    "pytest_sessionfinish",
    "pytest_sessionstart",
    "pytest_terminal_summary",
    "ranked",
    "record",
    "step_options",
    "subject",
    "timed_rounds",
    "user_subject",
]
