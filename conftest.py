pytest_plugins = ("bench.plugin.suite", "pytester")
