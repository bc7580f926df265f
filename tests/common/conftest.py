import pytest


@pytest.fixture(autouse=True)
def no_environment_report(monkeypatch):
    """MMEngine asks compilers and drivers for their versions at every start: two seconds."""
    monkeypatch.setattr('mmengine.runner.runner.collect_env', dict)
