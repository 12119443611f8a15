"The command line's own road from a file of prompts to a scored atlas, without a word on stderr but bars; mistakes are one line"
import os, re, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
env = os.environ|dict(PYTHONPATH=str(root), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')

# commands one after the other in one process, each between two marks on stdout and stderr
driver = '''
import shlex, sys, time
from fluxinterp.cli import main
for line in sys.stdin.read().splitlines():
    for out in (sys.stdout, sys.stderr): print(f'\\n== {line}', file=out, flush=True)
    sys.argv,start = ['fluxinterp', *shlex.split(line)],time.time()
    try: main()
    except SystemExit as e: print(f'\\n-- ended with {e.code} after {time.time()-start:.1f} s', flush=True)
print('\\n-- torch' if 'torch' in sys.modules else '\\n-- no torch')
'''

def run(lines, cwd):
    "line -> (exit status, stdout, stderr)"
    p = subprocess.run([sys.executable, '-c', driver], input='\n'.join(lines), cwd=cwd, env=env, capture_output=True, text=True)
    assert p.returncode==0, p.stderr[-3000:]
    outs,errs = (dict(part.split('\n', 1) for part in text.split('\n== ')[1:]) for text in (p.stdout, p.stderr))
    status = {l: int(re.search(r'-- ended with (\S+)', outs[l])[1]) for l in lines}
    return {l: (status[l], outs[l], errs[l]) for l in lines},p.stdout

bar = re.compile(r'^\s*$|^(harvest|train|atlas|statistics|prompts|reader|evaluate|score|detection|check)[^\n]*\d+%\|.*|^[^\n]*\d+(it|image|prompt|images|tokens|file|vectors)\b.*', re.I)

road = {
    'sites tiny-flux': 'double.1.image',
    'harvest tiny-flux p.txt acts --site double.1.image --batch-size 32 --device cpu': '32 prompts',
    'doctor acts': 'files good',
    'train acts sae --num-latents 32 --k 4 --steps 60 --batch-size 512 --device cpu': 'TopKSAE at double.1.image',
    'atlas sae plain --store acts --device cpu': 'Atlas of 32 features',
    'explain plain --score': '',
    'atlas sae atlas --store acts --pipeline tiny-flux --examples 4 --device cpu': 'Atlas of 32 features',
    'explain atlas --score': 'detection: mean',
    'explain atlas --features 3-5': 'explained by',
}

def test_the_road_from_prompts_to_a_scored_atlas(tmp_path):
    import fluxinterp as fi
    (tmp_path/'p.txt').write_text('\n'.join(fi.scene_prompts(32)))
    done,out = run(list(road), tmp_path)
    print(*re.findall(r"== .*|-- ended.*", out), sep="\n")
    for line,says in road.items():
        status,out,err = done[line]
        assert (status, says in out)==(int(line=='explain plain --score'), True), (line, out[-800:], err[-2000:])
        noise = [l for l in re.split(r'[\r\n]', err) if not bar.match(l)]
        if line.startswith('atlas sae plain'): assert len(noise)==1 and 'keeps no pictures' in noise[0], noise
        elif line=='explain plain --score': assert len(noise)==1 and '--pipeline' in noise[0] and 'images=True' not in noise[0], noise
        else: assert not noise, (line, noise)
        assert err.count('\r')<=12, (line, err.count('\r')) # a log that nobody watches gets few lines
    assert re.search(r'^  \d+: \w+', done['explain atlas --score'][1], re.M) # explanations to read
    atlas = fi.Atlas(tmp_path/'atlas')
    assert atlas.thumbnail(5).size==(64, 64) and fi.Atlas(tmp_path/'plain').thumbnail(5) is None
    scores = fi.scores(atlas, 'prompts', 'detection/reader')
    assert len(scores)>10 and scores.value.notna().any()

mistakes = {
    'sites tiny-flx': ("'pipeline'", "did you mean 'tiny-flux'"), 'sites nothing/': ("'pipeline'", 'no pipeline'), 'sites here': ("'pipeline'", 'no model_index.json'),
    'harvest tiny-flux missing.txt acts --site mid.0': ("'prompts'", 'no file'), 'harvest tiny-flux broken.txt acts --site mid.0': ("'prompts'", 'no good prompt'),
    'harvest tiny-flux p.txt acts --site mid.0 --steps 0,x': ("'--steps'", 'numbers and ranges'), 'harvest tiny-flux p.txt acts --site mid.0 --steps 3-1': ("'--steps'", 'backwards'), 'harvest tiny-flux p.txt acts --site mid.0 --batch-size big': ("'--batch-size'", "or 'auto'"),
    'harvest tiny-flux p.txt acts --site mid.0 --seed -3': ("'--seed'", 'greater than or equal to 0'), 'harvest tiny-flux p.txt p.txt --site mid.0': ("'out'", 'is a file'), 'harvest tiny-flux p.txt acts': ("'--site'", 'Missing option'), 'harvest tiny-flux p.txt acts --site mid.0 --guidance all': ("'--guidance'", 'choose from conditional'),
    'train nothing sae': ("'store'", 'no store'), 'train here sae': ("'store'", 'no manifest.json'), 'atlas nothing out': ("'dictionary'", 'tiny-flux/double.1.image'), 'atlas tiny-flux/doubel.1.image out': ("'dictionary'", "did you mean 'tiny-flux/double.1.image'"),
    **{f'train store sae {o} -1': (f"'{o}'", 'greater than or equal to 0') for o in ('--steps', '--lr', '--dead-after', '--seed', '--checkpoint-every', '--eval-every')},
    'train store sae --csv here': ("'--csv'", 'here is a folder'), 'train store sae --tensorboard p.txt': ("'--tensorboard'", 'is a file'), 'explain tiny-flux/double.1.image --cache here': ("'--cache'", 'here is a folder'), 'dashboard nothing': ("'atlas'", 'no atlas'),
    'explain nothing': ("'atlas'", 'no atlas'), 'explain here --features 1': ("'atlas'", 'no atlas.json'), 'dashboard tiny-flux/double.1.image --view brwoser': ("'--view'", "did you mean 'browser'"), 'harvst': ('No such command', "Did you mean 'harvest'"), 'sites --siet x': ('No such option', '--siet'),
}

def test_mistakes_are_told_in_a_line_before_anything_is_loaded(tmp_path):
    (tmp_path/'p.txt').write_text('a red circle\n')
    (tmp_path/'broken.txt').write_bytes(b'\xff\xfe\n\n')
    (tmp_path/'here').mkdir()
    (tmp_path/'store').mkdir()
    (tmp_path/'store/manifest.json').touch()
    done,out = run(list(mistakes), tmp_path)
    for line,says in mistakes.items():
        status,_,err = done[line]
        lines = err.strip().splitlines()
        assert status==2 and len(lines)==1 and all(s in lines[0] for s in says), (line, status, err)
    assert '-- no torch' in out and sorted(p.name for p in tmp_path.iterdir())==['broken.txt', 'here', 'p.txt', 'store']

def test_the_readme_example_runs_without_a_warning(tmp_path):
    "On stderr: bars alone"
    blocks = re.findall(r'```python\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S) # the second goes on
    code = ''.join(blocks[:2])+'assert code.values.shape[-1]==16'
    p = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert p.returncode==0, p.stderr[-2000:]
    assert not [l for l in re.split(r'[\r\n]', p.stderr) if not bar.match(l)], p.stderr
