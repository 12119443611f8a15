"What a notebook cannot check of itself: the wheel, and that notebooks, modules and README agree"
import ast, configparser, json, re, shutil, subprocess, sys, zipfile
from functools import cache
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
rooms = [p for p in notebooks if re.match(r'\d\d_', p.relative_to(root/'nbs').parts[0])]
def place(p): return tuple(int(o[:2]) for o in p.relative_to(root/'nbs').parts)
def scripts(of): return [p for p in sorted((of/'fluxinterp').rglob('*.py')) if 'weights' not in p.parts]
def cells(p): return json.loads(p.read_text(encoding='utf-8'))['cells']
def source(c): return ''.join(c['source'])
@cache
def room_module(p):
    found = [m[1] for c in cells(p) for m in [re.search(r'^#\|\s*default_exp\s+(\S+)', source(c), re.M)] if m]
    assert len(found)==1, f'{p.name} must name one module'
    return found[0]
@cache
def exported(p): return [source(c) for c in cells(p) if c['cell_type']=='code' and re.search(r'^#\|\s*export', source(c), re.M)]
def run(*args, **kwargs): return subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True, **kwargs)

@pytest.fixture(scope='session')
def copy(tmp_path_factory):
    "A copy of the tracked files, to run tools in that write"
    to = tmp_path_factory.mktemp('copy')/'repo'
    shutil.copytree(root, to, ignore=shutil.ignore_patterns('.git', '.venv*', 'runs', 'demo', 'build', '*.egg-info', '__pycache__', '.pytest_cache'))
    return to

def test_exported_modules_are_in_sync(copy):
    before = {p: p.read_text() for p in scripts(copy)}
    run(Path(sys.executable).with_name('nbdev_export'), cwd=copy)
    after = {p: p.read_text() for p in scripts(copy)}
    assert after==before, 'run nbdev_export'

def test_notebooks_are_clean(copy):
    before = {p: p.read_text() for p in (copy/'nbs').rglob('*.ipynb')}
    run(Path(sys.executable).with_name('nbdev_clean'), cwd=copy)
    changed = [p.name for p,t in before.items() if p.read_text()!=t]
    assert not changed, f'run nbdev_clean: {changed}'

@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.name)
def test_notebook_sizes(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    outputs = sum(len(json.dumps(c['outputs'])) for c in nb['cells'] if c['cell_type']=='code')
    assert outputs<150_000, f'outputs of {outputs//1000} kB'
    assert 'widgets' not in nb['metadata'], 'saved widget state'
    for c in nb['cells']:
        assert len(source(c).splitlines())<=110, f'a cell of {len(source(c).splitlines())} lines: {source(c)[:60]!r}'

@pytest.mark.parametrize('path', rooms, ids=lambda p: p.name)
def test_room_sizes(path):
    assert sum(len(s.splitlines()) for s in exported(path))<=400, 'two chapters?'
    assert sum(c['cell_type']=='code' for c in cells(path))<=60, 'two chapters?'

def test_module_names_follow_notebooks():
    for p in rooms: assert room_module(p).rsplit('.', 1)[-1] in (p.stem[3:], '__init__'), p.name

def test_numbers_are_unique_in_a_folder():
    folders = {}
    for p in rooms: folders.setdefault(p.parent, []).append(p.name[:2])
    for folder,numbers in folders.items(): assert len(set(numbers))==len(numbers), folder

def test_no_path_contains_auto():
    "nbdev's index leaves out the cells of a notebook whose path contains `auto`"
    assert not [p for p in rooms if 'auto' in str(p.relative_to(root))]

def imported(node):
    "The modules of this library that an import statement names, without the first part"
    if isinstance(node, ast.Import): return [a.name[11:] for a in node.names if a.name.startswith('fluxinterp.')]
    if not isinstance(node, ast.ImportFrom) or not (node.module or '').startswith('fluxinterp'): return []
    modules = {room_module(p) for p in rooms}
    inside = node.module[11:]
    return [inside] if inside in modules else ['.'.join(filter(None, [inside, a.name])) for a in node.names]

def test_imports_come_from_lower_numbers():
    number = {room_module(p): place(p) for p in rooms}
    for p in rooms:
        for s in exported(p):
            for node in ast.walk(ast.parse(s)):
                for n in imported(node):
                    if n.startswith('_modidx'): continue
                    assert n in number, f'{p.name} imports {n}, which no notebook exports'
                    assert number[n]<place(p), f'{p.name} imports {n} from {number[n]}'
                if isinstance(node, ast.ImportFrom): assert not any(a.name=='*' for a in node.names), f'{p.name}: star import'

def test_pipelines_are_described_once():
    "Above `models`, who a pipeline is comes from `describe(pipe)`"
    asking,models = {'denoiser_of', 'family_of', 'fingerprint', 'pipeline_lock'},next(p for p in rooms if room_module(p)=='models.description')
    for p in rooms:
        if place(p)[0]<=place(models)[0]: continue
        for s in exported(p):
            for node in ast.walk(ast.parse(s)):
                if isinstance(node, ast.ImportFrom):
                    names = {a.name for a in node.names}
                    assert not names & asking, f'{p.name} imports {names & asking}: describe(pipe) says it'

def test_no_orphan_modules():
    modules = {'.'.join(p.relative_to(root/'fluxinterp').with_suffix('').parts) for p in scripts(root) if p.name!='__init__.py'}-{'_modidx'}
    assert modules=={room_module(p) for p in rooms}-{'__init__'}

def test_public_names():
    sys.path.insert(0, str(root))
    from fluxinterp._modidx import d
    modules = {part for m in d['syms'] for part in m.split('.')[1:]}
    names = [q.rsplit('.', 1)[1] for m,syms in d['syms'].items() for q in syms if q.count('.')==m.count('.')+1]
    public = [n for n in names if not n.startswith('_')]
    assert not set(public)&modules, 'a public name equals a module'
    twice = {n for n in public if public.count(n)>1}
    assert not twice, f'public names in two modules: {twice}'

def test_readme_is_in_sync(copy):
    before = (copy/'README.md').read_text()
    run(Path(sys.executable).with_name('jupyter'), 'nbconvert', '--to', 'markdown', '--TemplateExporter.exclude_input_prompt=True',
        '--output-dir', '.', '--output', 'README', 'nbs/index.ipynb', cwd=copy)
    assert (copy/'README.md').read_text()==before, 'run make readme'

def test_wheel_holds_weights_and_command(copy, tmp_path):
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '-w', tmp_path, copy)
    wheel, = tmp_path.glob('fluxinterp-*.whl')
    with zipfile.ZipFile(wheel) as z: names = set(z.namelist())
    tracked = {'fluxinterp/'+p.relative_to(root/'fluxinterp').as_posix() for p in (root/'fluxinterp/weights').rglob('*') if p.is_file()}
    assert tracked and tracked<=names
    entry, = [n for n in names if n.endswith('entry_points.txt')]
    with zipfile.ZipFile(wheel) as z: assert 'fluxinterp=fluxinterp.cli:main' in z.read(entry).decode().replace(' ', '')
    cfg = configparser.ConfigParser(); cfg.read(root/'settings.ini')
    assert wheel.name.split('-')[1]==cfg['DEFAULT']['version']
    assert wheel.stat().st_size<=70e6
    for folder in ('stickers', 'stickers-flux'): # the icons, and the weights that redraw them
        with zipfile.ZipFile(wheel) as z: text = z.read(f'fluxinterp/weights/{folder}/LICENSE-fluentui-emoji.txt').decode()
        assert 'MIT License' in text and 'Microsoft Corporation' in text

@pytest.mark.parametrize('name', ['tiny-flux', 'tiny-sdxl-turbo', 'stickers-flux'])
def test_packaged_pipelines_are_small(name):
    files = [p for p in (root/'fluxinterp/weights'/name).rglob('*') if p.is_file()]
    assert 0<sum(p.stat().st_size for p in files)<=24*2**20

def test_no_pickles():
    for p in root.rglob('*'):
        if not p.is_file() or {'.git', '.venv', '.venv-bench', 'runs', 'demo', 'build'}&set(p.relative_to(root).parts): continue
        assert p.suffix not in ('.pkl', '.pt', '.pth', '.bin'), p
