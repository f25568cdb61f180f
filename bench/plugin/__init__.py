"""The pytest side: options, fixtures, markers and pytest-benchmark's hooks.

Answers come from the library below; what is here only asks, records and reports.
"""

from bench.plugin.collection import (
    pytest_collection_finish,
    pytest_collection_modifyitems,
    pytest_deselected,
    pytest_generate_tests,
    pytest_ignore_collect,
    pytest_report_teststatus,
    pytest_runtest_setup,
)
from bench.plugin.fixtures import (
    check_targets,
    measured,
    measuring,
    model_of,
    peft_count,
    pytest_runtest_makereport,
    ranked,
    record,
    step_options,
    subject,
    user_subject,
)
from bench.plugin.options import pytest_addoption, pytest_configure
from bench.plugin.storing import (
    pytest_benchmark_update_machine_info,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

__all__ = [
    "check_targets",
    "measured",
    "measuring",
    "model_of",
    "peft_count",
    "pytest_addoption",
    "pytest_benchmark_update_machine_info",
    "pytest_collection_finish",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_deselected",
    "pytest_generate_tests",
    "pytest_ignore_collect",
    "pytest_report_teststatus",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "ranked",
    "record",
    "step_options",
    "subject",
    "user_subject",
]
