pytest_plugins = ("bench.plugin", "pytester")
