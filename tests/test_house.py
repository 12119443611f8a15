"The rules that keep the house: imports go down, lines and functions can be read, every parameter says what it is"
import ast, io, json, re, tokenize
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
modules = [p for p in sorted((root/'fluxinterp').rglob('*.py')) if 'weights' not in p.parts and p.name!='_modidx.py']
scripts = sorted((root/'fluxinterp').rglob('*.js'))+sorted((root/'fluxinterp').rglob('*.css'))
tables = {'_modidx.py'} # files that are data: their lines may be long

wings = ('worlds', 'models', 'activations', 'dictionaries', 'training', 'features', 'evaluation', 'steering', 'atlases',
         'autointerp', 'widgets', 'dashboards')
apart = {'training', 'features', 'evaluation', 'steering', 'atlases'} # these import none of each other
ground = ('core', 'overlays') # below every wing
roof = ('packaged', 'demo', 'cli', '__init__') # above every wing

def name_of(path):
    return str(path.relative_to(root))

def tree_of(path):
    return ast.parse(path.read_text(encoding='utf-8'))

def module_of(path):
    "The parts of a module's name without the package: `('dictionaries', 'sae')`"
    return path.relative_to(root/'fluxinterp').with_suffix('').parts

def imports(path):
    "`(parts of the module, names)` of each import from this library"
    here = module_of(path)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = here[:len(here)-node.level]
            yield above+tuple((node.module or '').split('.') if node.module else ()), [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or '').split('.')[0]=='fluxinterp':
            yield tuple(node.module.split('.')[1:]), [a.name for a in node.names]
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.startswith('fluxinterp.'):
                    yield tuple(a.name.split('.')[1:]), []

def functions(node, public=True):
    "Every function below `node`, methods and nested ones too; only those with a public name unless `public` is off"
    for o in ast.walk(node):
        if isinstance(o, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if not public or not o.name.startswith('_') or o.name in ('__init__', '__call__'):
                yield o

def all_arguments(f):
    a = f.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, [a.vararg, a.kwarg])]
    return [o for o in every if o.arg not in ('self', 'cls') and not o.arg.startswith('_')]

def comments(path):
    "Line number -> comment"
    text = path.read_text(encoding='utf-8')
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: t.string.lstrip('# ').strip() for t in tokens if t.type==tokenize.COMMENT}

def height(wing):
    order = [*ground, *wings, *roof]
    return order.index(wing) if wing in order else len(order)

@pytest.mark.parametrize('path', modules, ids=name_of)
def test_wings_import_downwards(path):
    mine = module_of(path)[0]
    for target,names in imports(path):
        if target in ((), ('_modidx',)):
            continue
        theirs = target[0]
        assert height(theirs)<=height(mine), f'{name_of(path)} imports {".".join(target)}, which stands above it'
        assert mine==theirs or not {mine, theirs}<=apart, f'{mine} and {theirs} must not know each other'

@pytest.mark.parametrize('path', modules, ids=name_of)
def test_no_private_name_crosses_a_module(path):
    modules_here = {}
    for target,names in imports(path):
        private = [n for n in names if n.startswith('_') and n!='_modidx']
        assert not private, f'{name_of(path)} imports {private} from {".".join(target)}'
    tree = tree_of(path)
    bound = {a.asname or a.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
            if node.attr.startswith('_') and not node.attr.startswith('__'):
                raise AssertionError(f'{name_of(path)}:{node.lineno} reads {node.value.id}.{node.attr}')

@pytest.mark.parametrize('path', [*modules, *scripts], ids=name_of)
def test_lines_fit(path):
    wide = [i for i,l in enumerate(path.read_text(encoding='utf-8').splitlines(), 1) if len(l)>110]
    assert not wide, f'{name_of(path)}: lines past 110 columns: {wide}'

@pytest.mark.parametrize('path', modules, ids=name_of)
def test_functions_can_be_seen_whole(path):
    long = {f.name: f.end_lineno-f.lineno+1 for f in functions(tree_of(path), public=False) if f.end_lineno-f.lineno>=60}
    assert not long, f'{name_of(path)}: functions past 60 lines: {long}'

headless = re.compile(r'(of|as|in|for|to|with|on|from|by|at|see|same|it|which|than|likewise|ditto|above|passed)\b', re.I)

@pytest.mark.parametrize('path', modules, ids=name_of)
def test_each_parameter_has_a_comment_of_its_own(path):
    said = comments(path)
    wrong = []
    for f in functions(tree_of(path)):
        args = all_arguments(f)
        lines = [a.lineno for a in args]
        for a in args:
            comment = said.get(a.lineno, '')
            if not comment:
                wrong.append(f'{a.lineno}: {f.name}({a.arg}) has no comment')
            elif lines.count(a.lineno)>1:
                wrong.append(f'{a.lineno}: {f.name}({a.arg}) shares its line')
            elif headless.match(comment):
                wrong.append(f'{a.lineno}: {f.name}({a.arg}): {comment!r} does not stand alone')
    assert not wrong, name_of(path)+'\n'+'\n'.join(wrong)

@pytest.mark.parametrize('path', modules, ids=name_of)
def test_one_statement_a_line(path):
    wrong = []
    for node in ast.walk(tree_of(path)):
        for field in ('body', 'orelse', 'finalbody'):
            body = getattr(node, field, None)
            if isinstance(body, list):
                wrong += [b.lineno for a,b in zip(body, body[1:]) if a.end_lineno==b.lineno]
        if isinstance(node, ast.Assign):
            for t in node.targets:
                if isinstance(t, ast.Tuple) and len(t.elts)>3 and isinstance(node.value, ast.Tuple):
                    wrong.append(node.lineno)
        if isinstance(node, ast.IfExp):
            inner = [o for part in (node.test, node.body, node.orelse) for o in ast.walk(part) if isinstance(o, ast.IfExp)]
            wrong += [node.lineno]*bool(inner)
    assert not wrong, f'{name_of(path)}: crowded lines {sorted(set(wrong))}'

notebooks = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]
library = [p for p in notebooks if re.match(r'\d\d_', p.relative_to(root/'nbs').parts[0])]

def cells_of(path):
    return json.loads(path.read_text(encoding='utf-8'))['cells']

def source(cell):
    return ''.join(cell['source'])

silent = re.compile(r'(test_\w+|expect_fail|append|extend|add|update|close|clear|unlink|rmdir|rmtree|mkdir|remove|setattr|'
                    r'seed|manual_seed|set_num_threads|copytree|touch|sleep|join|start|put|observe|click|write_text|write_bytes|'
                    r'display|print|register_magics|run_cell_magic|\w+_)$')

def ends_in_something_to_see(code):
    "Whether a cell's last line is an expression, other than a call that gives nothing back"
    code = '\n'.join('' if l.lstrip().startswith(('%', '!')) else l for l in code.split('\n'))
    body = ast.parse(code).body
    if not body or not isinstance(body[-1], ast.Expr) or code.rstrip().endswith(';'):
        return False
    value = body[-1].value
    if isinstance(value, ast.Call):
        f = value.func
        name = f.attr if isinstance(f, ast.Attribute) else getattr(f, 'id', '')
        return not silent.match(name)
    return not isinstance(value, ast.Constant)

@pytest.mark.parametrize('path', notebooks, ids=name_of)
def test_what_a_cell_ends_in_is_shown(path):
    missing = []
    for c in cells_of(path):
        s = source(c)
        if c['cell_type']=='code' and not c['outputs'] and not s.lstrip().startswith('%%'):
            hidden = re.search(r'^#\|\s*(hide|export|eval: false|slow|gpu|net|notest)', s, re.M)
            if not hidden and ends_in_something_to_see(s):
                missing.append(s[-90:])
    assert not missing, f'{name_of(path)}: cells without their output; run it with exec_nb and keep what it shows: {missing}'

def outputs(path):
    return [o for c in cells_of(path) if c['cell_type']=='code' for o in c['outputs']]

@pytest.mark.parametrize('path', library, ids=name_of)
def test_every_chapter_shows_something(path):
    assert outputs(path), f'{name_of(path)} shows nothing'

def test_chapters_show_pictures():
    pictured = [p for p in library if any('image/png' in o.get('data', {}) or 'image/jpeg' in o.get('data', {})
                                          or '<img' in ''.join(o.get('data', {}).get('text/html', '')) for o in outputs(p))]
    assert len(pictured)>=45, f'{len(pictured)} library notebooks keep an image'

@pytest.mark.parametrize('path', library, ids=name_of)
def test_titles_are_phrases(path):
    head = source(cells_of(path)[0]).splitlines()
    assert head[0].startswith('# ') and '_' not in head[0] and head[0][2:3].isupper(), f'{name_of(path)}: title {head[0]!r}'
    assert any(l.startswith('> ') for l in head), f'{name_of(path)}: a sentence of why below the title'

@pytest.mark.parametrize('path', library, ids=name_of)
def test_export_cells_are_one_idea(path):
    long = [source(c)[:60] for c in cells_of(path) if re.match(r'#\|\s*export', source(c)) and len(source(c).splitlines())>60]
    assert not long, f'{name_of(path)}: export cells past 60 lines: {long}'
