"JavaScript, styles, stub and map are what the notebooks say, and JavaScript that parses"
import shutil, subprocess, sys
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
sources = sorted((root/'fluxinterp/widgets/js').glob('*.js'))

def generated(of):
    "Relative path -> text of everything `make export` writes beside the modules"
    lib = of/'fluxinterp'
    found = [*lib.rglob('*.js'), *lib.rglob('*.css'), *lib.rglob('*.pyi'), of/'nbs/index.ipynb']
    return {p.relative_to(of): p.read_text(encoding='utf-8') for p in found}

def test_assets_are_in_sync(tmp_path):
    for folder in ('nbs', 'fluxinterp'):
        shutil.copytree(root/folder, tmp_path/folder, ignore=shutil.ignore_patterns('weights', '__pycache__'))
    for p in generated(tmp_path):
        if p.suffix!='.ipynb':
            (tmp_path/p).unlink()
    subprocess.run([sys.executable, '-m', 'fluxinterp.export'], check=True, cwd=tmp_path)
    assert generated(tmp_path)==generated(root), 'run make export'

@pytest.mark.parametrize('path', sources, ids=lambda p: p.name)
def test_javascript_parses(path):
    if not shutil.which('node'):
        pytest.skip('no node on this machine; a browser reads these files in tests/test_pages.py')
    subprocess.run(['node', '--check', path], check=True)
