"What a type checker says of code that uses the library: README, tutorials and how-tos under pyright, basic mode"
import json, shutil, subprocess, sys, tempfile
from pathlib import Path

root = Path(__file__).resolve().parents[2]
pages = ['index', *(f'{p.parent.name}/{p.stem}' for w in ('tutorials', 'howto') for p in sorted((root/'nbs'/w).glob('*.ipynb')))]

def code_of(page):
    "The cells a reader sees, without magics"
    cells = json.loads((root/'nbs'/f'{page}.ipynb').read_text(encoding='utf-8'))['cells']
    sources = [''.join(c['source']) for c in cells if c['cell_type']=='code']
    seen = [s for s in sources if not s.startswith('%%')]
    return '\n'.join(line for s in seen for line in s.splitlines() if line[:1] not in ('%', '!'))+'\n'

with tempfile.TemporaryDirectory() as tmp:
    tmp = Path(tmp)
    for page in pages:
        (tmp/f'{page.replace("/", "_")}.py').write_text(code_of(page), encoding='utf-8')
    config = dict(include=['*.py'], extraPaths=[str(root)], typeCheckingMode='basic',
                  venvPath=str(Path(sys.prefix).parent), venv=Path(sys.prefix).name)
    (tmp/'pyrightconfig.json').write_text(json.dumps(config))
    pyright = [shutil.which('npx'), '--yes', 'pyright@1', '-p', str(tmp), '--outputjson']
    found = json.loads(subprocess.run(pyright, capture_output=True, text=True, cwd=tmp).stdout)
errors = [e for e in found['generalDiagnostics'] if e['severity']=='error']
for e in errors:
    print(f"{Path(e['file']).stem}:{e['range']['start']['line']+1} {e.get('rule', '')}: {e['message'].splitlines()[0]}")
print(f"{len(errors)} errors in {len(pages)} pages")
sys.exit(bool(errors))
