"`fluxinterp dashboard` as a user meets it: a real server, asked over HTTP with and without its token, ended by Ctrl-C"
import json, os, re, signal, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path

import pytest

psutil = pytest.importorskip('psutil')
pytest.importorskip('voila')
root = Path(__file__).resolve().parents[1]

def ask(url, **headers): # -> status, text; being sent to the login page is an answer
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args): return None
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({}), Stay).open(urllib.request.Request(url, headers=headers), timeout=60) as r: return r.status,r.read().decode()
    except urllib.error.HTTPError as e: return e.code,''

def machine(tmp): # settings of a machine on which Voila hands out every file
    folder = tmp/'machine'
    folder.mkdir(exist_ok=True)
    (folder/'voila.json').write_text(json.dumps(dict(VoilaConfiguration=dict(file_allowlist=['.*'], file_denylist=[]))))
    return folder

def start(tmp, *args, atlas='tiny-flux/double.1.image'):
    env = os.environ|dict(TMPDIR=str(tmp), PYTHONPATH=str(root), OMP_NUM_THREADS='1', JUPYTER_CONFIG_PATH=str(machine(tmp)))
    log = tmp/'said.txt'
    with log.open('w') as f: p = subprocess.Popen([sys.executable, '-m', 'fluxinterp.cli', 'dashboard', str(atlas), '--view', 'monitor', '--port', '0', *args], cwd=tmp, env=env, stdout=f, stderr=f)
    p.said,end = log.read_text,time.time()+120
    while time.time()<end and p.poll() is None and 'Ctrl-C' not in p.said(): time.sleep(.05)
    said = p.said()
    url = re.search(r'http://127\.0\.0\.1:(\d+)/\?token=\S+', said)
    if not url: p.kill()
    assert url, said
    return p,url[0],int(url[1])

def ends(p, everybody, sent):
    "The process ends within seconds of a signal, and leaves no other behind"
    p.send_signal(sent)
    began = time.time()
    p.wait(30)
    said = p.said()
    assert time.time()-began<10 and p.returncode==0 and 'ended' in said and 'Traceback' not in said, said
    assert not [q for q in everybody if q.is_running() and q.status()!='zombie']

def test_served_to_the_token_alone_and_ended(tmp_path):
    p,url,port = start(tmp_path, '--dark')
    everybody = []
    try:
        base = f'http://127.0.0.1:{port}'
        for refused in ('/', '/?token=wrong', '/voila/render/fluxinterp.ipynb', '/api/kernels', '/login?next=%2F'):
            status,text = ask(base+refused)
            assert status!=200 or refused.startswith('/login'), refused
            assert 'widget-view' not in text and 'fluxinterp as fi' not in text
        assert ask(f'{base}/api/kernels')[0] in (302, 403, 404, 405)
        for inside in ('fluxinterp.ipynb', 'voila.json', 'server.log', '../config/voila.json', '%2e%2e/config/voila.json', '../server.log'):
            assert ask(f'{base}/voila/files/{inside}')[0] in (403, 404), inside # files are asked for without a token
        for known in ('/login', '/voila/static/voila.js', url.removeprefix(base)):
            assert [ask(base+known, Host=h)[0] for h in ('elsewhere.example', f'elsewhere.example:{port}')]==[403, 403], known
        assert [ask(f'{base}/login', Host=h)[0] for h in (f'localhost:{port}', f'127.0.0.1:{port}')]==[200, 200]
        status,page = ask(url)
        assert status==200 and 'application/vnd.jupyter.widget-view+json' in page and 'Traceback' not in page, page[-2000:]
        assert 'data-jp-theme-light="false"' in page
        everybody = psutil.Process(p.pid).children(recursive=True)
        assert len(everybody)>=2 # the server and a kernel
        listening = {c.laddr.ip for q in [psutil.Process(p.pid), *everybody] for c in q.net_connections('inet') if c.status==psutil.CONN_LISTEN}
        assert listening=={'127.0.0.1'}, listening
        token = url.partition('token=')[2]
        assert not any(token in ' '.join(q.cmdline()) for q in everybody) # others on the machine can read command lines
        folder, = tmp_path.glob('fluxinterp-*')
        assert folder.stat().st_mode&0o077==0
        ends(p, everybody, signal.SIGINT)
        assert not list(tmp_path.glob('fluxinterp-*')) and not list(tmp_path.glob('voila*'))
    finally:
        for q in everybody:
            if q.is_running(): q.kill()
        p.kill()

def test_a_killed_command_leaves_no_server(tmp_path):
    code = "import sys, time; from fluxinterp.dashboards.serving import dashboard_notebook, served; s = served(dashboard_notebook('x', view='monitor')); u = s.__enter__(); print(u.process.pid, flush=True); time.sleep(60)"
    p = subprocess.Popen([sys.executable, '-c', code], env=os.environ|dict(TMPDIR=str(tmp_path), PYTHONPATH=str(root)), stdout=subprocess.PIPE, text=True)
    try: server = psutil.Process(int(p.stdout.readline()))
    finally: p.kill(); p.wait(); p.stdout.close()
    server.wait(10)

def test_an_atlas_under_construction_is_watched_and_a_second_ctrl_c_leaves_nothing(tmp_path):
    half = tmp_path/'half'
    half.mkdir()
    (half/'plan.json').write_text('{"prompts": 7, "images": 1, "site": "double.1.image", "num_features": 64, "steps": [0]}')
    p,url,_ = start(tmp_path, atlas=half)
    everybody = []
    try:
        page = ask(url)[1]
        assert 'under way' in page and '0 of 7 images' in page and 'Traceback' not in page, page[-2000:]
        everybody = psutil.Process(p.pid).children(recursive=True)
        p.send_signal(signal.SIGINT)
        for _ in range(1000):
            if 'ended' in p.said(): break
            time.sleep(.01)
        ends(p, everybody, signal.SIGINT)
        assert not list(tmp_path.glob('fluxinterp-*'))
    finally:
        for q in everybody:
            if q.is_running(): q.kill()
        p.kill()
