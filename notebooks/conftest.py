"""nbval: what notebooks write to stderr (versions, log lines, progress) is not compared."""


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
