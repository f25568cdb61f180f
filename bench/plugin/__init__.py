"""The pytest side. `bench.plugin.suite` is the suites' own; in any other repository
`pytest_plugins = ["bench.plugin"]` gives the fixture `check_targets` and nothing else."""

from lora_target_bench.pytest_plugin import check_targets

__all__ = ["check_targets"]
