"The rules that keep the house: imports go down, lines and functions can be read, every parameter says what it is"
import ast, io, json, re, sys, tokenize
from functools import cache
from pathlib import Path

root = Path(__file__).resolve().parents[1]
package = root/'fluxinterp'
modules = [p for p in sorted(package.rglob('*.py')) if 'weights' not in p.parts and p.name!='_modidx.py']
assets = [*sorted(package.rglob('*.js')), *sorted(package.rglob('*.css'))]
notebooks = [p for p in sorted((root/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]
library = [p for p in notebooks if re.match(r'\d\d_', p.relative_to(root/'nbs').parts[0])]

wings = ('worlds', 'models', 'activations', 'dictionaries', 'training', 'features', 'evaluation', 'steering', 'atlases',
         'autointerp', 'widgets', 'dashboards')
apart = {'training', 'features', 'evaluation', 'steering', 'atlases'} # these import none of each other
order = ('core', 'arguments', 'safe_files', 'export', 'overlays', *wings, 'picture_flops', 'run_rates', 'run_plan', 'run_simulation', 'commands', 'launching', 'feature_commands', 'packaged', 'demo', 'cli',
         '__init__')

def name_of(path):
    return path.relative_to(root).as_posix()

@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding='utf-8'))

@cache
def lines_of(path):
    return path.read_text(encoding='utf-8').splitlines()

def module_of(path):
    "The parts of a module's name without the package: `('dictionaries', 'sae')`"
    return path.relative_to(package).with_suffix('').parts

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

def functions(tree, public=True):
    "Every function, methods and nested ones too; only those with a public name unless `public` is off"
    for o in ast.walk(tree):
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

def test_wings_import_downwards():
    wrong = []
    for path in modules:
        mine = module_of(path)[0]
        for target,_ in imports(path):
            if target in ((), ('_modidx',)):
                continue
            theirs = target[0]
            if order.index(theirs)>order.index(mine) or (mine!=theirs and {mine, theirs}<=apart):
                wrong.append(f'{name_of(path)} imports {".".join(target)}')
    assert not wrong, wrong

def test_no_private_name_crosses_a_module():
    wrong = []
    for path in modules:
        wrong += [f'{name_of(path)} imports {n}' for _,names in imports(path) for n in names if n.startswith('_') and n!='_modidx']
        tree = tree_of(path)
        bound = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level for a in n.names}
        for n in ast.walk(tree):
            if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in bound:
                if n.attr.startswith('_') and not n.attr.startswith('__'):
                    wrong.append(f'{name_of(path)}:{n.lineno} reads {n.value.id}.{n.attr}')
    assert not wrong, wrong

def test_every_name_of_the_surface_resolves():
    sys.path.insert(0, str(root))
    import fluxinterp as fi
    names = [n for every in fi.surface.values() for found in every.values() for n in found]
    assert len(names)==len(set(names)) and set(names)<=set(dir(fi))
    for n in names:
        assert getattr(fi, n) is not None
    assert set(fi.surface)<=set(fi.wings)

tables = {'__all__'} # data, whose lines may be long: nbdev writes this one

def lines_of_tables(path):
    for node in tree_of(path).body:
        if isinstance(node, ast.Assign) and {getattr(t, 'id', '') for t in node.targets}&tables:
            yield from range(node.lineno, node.end_lineno+1)

def test_notebooks_are_valid():
    "JupyterLab opens none with a cell of a kind it does not know"
    import nbformat
    for p in notebooks: nbformat.validate(nbformat.read(p, as_version=nbformat.NO_CONVERT))

def test_lines_fit():
    wide = []
    for p in [*modules, *assets]:
        free = set(lines_of_tables(p)) if p.suffix=='.py' else set()
        wide += [f'{name_of(p)}:{i}' for i,l in enumerate(lines_of(p), 1) if len(l)>110 and i not in free]
    assert not wide, f'lines past 110 columns: {wide}'

def test_functions_can_be_seen_whole():
    long = [f'{name_of(p)}: {f.name} has {f.end_lineno-f.lineno+1} lines' for p in modules
            for f in functions(tree_of(p), public=False) if f.end_lineno-f.lineno>=60]
    assert not long, long

# a comment that begins so needs the parameter's name to be understood
headless = re.compile(r'(of|as|in|for|to|with|on|from|by|at|see|same|it|which|than|likewise|ditto|above|passed)\b', re.I)

def test_each_parameter_has_a_comment_of_its_own():
    wrong = []
    for path in modules:
        written = comments(path)
        for f in functions(tree_of(path)):
            args = all_arguments(f)
            lines = [a.lineno for a in args]
            for a in args:
                comment = written.get(a.lineno, '')
                where = f'{name_of(path)}:{a.lineno}: {f.name}({a.arg})'
                if not comment:
                    wrong.append(f'{where} has no comment')
                elif lines.count(a.lineno)>1:
                    wrong.append(f'{where} shares its line')
                elif headless.match(comment):
                    wrong.append(f'{where}: {comment!r} does not stand alone')
    assert not wrong, '\n'.join(wrong)

def crowded(tree):
    "Lines with two statements, tuple assignments of more than three targets, or conditional expressions in each other"
    for node in ast.walk(tree):
        for part in ('body', 'orelse', 'finalbody'):
            body = getattr(node, part, None)
            if isinstance(body, list):
                yield from (b.lineno for a,b in zip(body, body[1:]) if a.end_lineno==b.lineno)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            yield from (node.lineno for t in node.targets if isinstance(t, ast.Tuple) and len(t.elts)>3)
        if isinstance(node, ast.IfExp):
            inside = [o for part in (node.test, node.body, node.orelse) for o in ast.walk(part)]
            if any(isinstance(o, ast.IfExp) for o in inside):
                yield node.lineno

def test_one_statement_a_line():
    wrong = [f'{name_of(p)}:{i}' for p in modules for i in sorted(set(crowded(tree_of(p))))]
    assert not wrong, wrong

@cache
def cells_of(path):
    return json.loads(path.read_text(encoding='utf-8'))['cells']

def source(cell):
    return ''.join(cell['source'])

def outputs(path):
    return [o for c in cells_of(path) if c['cell_type']=='code' for o in c['outputs']]

# calls that give nothing back
silent = re.compile(r'(test_\w+|expect_fail|append|extend|add|update|close|clear|cleanup|unlink|rmdir|rmtree|mkdir|remove|setattr|'
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
        name = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, 'id', '')
        return not silent.match(name)
    return not isinstance(value, ast.Constant)

# takes hours on a quiet machine: its outputs are those of a full run, or none
def test_outputs_are_of_the_library():
    "What is stored has no progress bars, no warnings and no path of the machine it ran on"
    wrong = []
    for path in notebooks:
        for c in cells_of(path):
            for o in c.get('outputs', []):
                stray = o.get('name')=='stderr' or re.search(r'site-packages|/\.venv/', json.dumps(o))
                if stray: wrong.append(f'{name_of(path)}: {c["id"]}')
    assert not wrong, f'stored stderr or paths: {wrong}'

long_runs = {'nbs/benchmarks/atlas.ipynb'}

def test_what_a_cell_ends_in_is_shown():
    missing = []
    for path in notebooks:
        if name_of(path) in long_runs:
            continue
        for c in cells_of(path):
            s = source(c)
            if c['cell_type']=='code' and not c['outputs'] and not s.lstrip().startswith('%%'):
                hidden = re.search(r'^#\|\s*(hide|export|eval: false|slow|gpu|net|notest)', s, re.M)
                if not hidden and ends_in_something_to_see(s):
                    missing.append(f'{name_of(path)}: {s[-70:]!r}')
    assert not missing, 'cells without their output; run the notebook with exec_nb and keep what it shows:\n'+'\n'.join(missing)

def test_every_chapter_shows_something():
    bare = [name_of(p) for p in library if not outputs(p)]
    assert not bare, f'notebooks that show nothing: {bare}'

def shows_an_image(path):
    for o in outputs(path):
        data = o.get('data', {})
        if 'image/png' in data or 'image/jpeg' in data or 'image/svg+xml' in data:
            return True
        if re.search('<img|<svg', ''.join(data.get('text/html', ''))):
            return True
    return False

def test_chapters_show_images():
    shown = [p for p in library if shows_an_image(p)]
    assert len(shown)>=45, f'{len(shown)} library notebooks keep an image'

def test_titles_are_phrases():
    for path in library:
        head = source(cells_of(path)[0]).splitlines()
        title = head[0]
        assert title.startswith('# ') and '_' not in title and not title[2].islower(), f'{name_of(path)}: title {title!r}'
        assert any(l.startswith('> ') for l in head), f'{name_of(path)}: a sentence of why below the title'

def test_export_cells_are_one_idea():
    long = [f'{name_of(p)}: {source(c)[:50]!r}' for p in library for c in cells_of(p)
            if re.match(r'#\|\s*export', source(c)) and len(source(c).splitlines())>60]
    assert not long, f'export cells past 60 lines: {long}'
