"What the browser tests share; one Chromium a file (its event loop must not outlive it), one JupyterLab for all"
import pytest

import browser as B

def pytest_configure(config): config.addinivalue_line('markers', 'browser: needs Chromium; skipped without one, unless FLUXINTERP_NEED_BROWSER is set')

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker('browser'): B.chromium()

@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    B.shots = tmp_path_factory.mktemp('shots')
    with B.launched() as b: yield b

@pytest.fixture(scope='session')
def lab(tmp_path_factory):
    with B.lab_server(tmp_path_factory.mktemp('lab')) as s: yield s
