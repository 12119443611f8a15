"A real browser for the views: Chromium, JupyterLab, Notebook 7 and Voila, each in a folder of its own, and what every view must keep to"
import base64, json, os, re, secrets, shutil, signal, socket, struct, subprocess, sys, urllib.error, urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
flags = '--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --force-device-scale-factor=1'.split()+['--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1']

# ---- Chromium

def chromium()->str: # path
    "Where Chromium is; without one the test is skipped, or fails where FLUXINTERP_NEED_BROWSER is set"
    named = os.environ.get('CHROMIUM')
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if found: return found
    why = f'CHROMIUM={named} is no program' if named else 'no Chromium on PATH: apt-get install chromium, or name one in CHROMIUM'
    (pytest.fail if os.environ.get('FLUXINTERP_NEED_BROWSER') else pytest.skip)(why)

@contextmanager
def launched():
    "Chromium, for the pages of one test file"
    path = chromium()
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=path, args=flags)
        try: yield b
        finally: b.close()

# the hosts' own troubles: icons that Voila's template takes from a CDN, an extension of Notebook that does not load in Voila, JupyterLab's debugger asking a kernel that is being restarted
theirs = re.compile(r'cdn\.jsdelivr\.net/npm/@fortawesome/|module-federation\.io|/favicon\.ico|Could not restore the debugger state')
def own_error(e): # not one from deep inside Notebook 7, which has two at every start
    at = re.findall(r'https?://\S+', e.stack or '')
    return not at or not all('/static/notebook/' in u for u in at)
def local(url): return re.match(r'(https?|wss?)://127\.0\.0\.1[:/]|(data|blob|file|about|chrome):', url)

@contextmanager
def open_page(browser, width:int=1280, height:int=900, dark:bool=False, still:bool=False): # still: somebody who asked for less motion
    "A page that keeps its `errors` (of scripts and of the console), requests to `outside`, and messages `sent` to a kernel"
    context = browser.new_context(viewport=dict(width=width, height=height), color_scheme='dark' if dark else 'light', reduced_motion='reduce' if still else 'no-preference')
    context.set_default_timeout(30_000)
    from playwright.sync_api import expect # where it is not installed these tests are skipped
    expect.set_options(timeout=20_000) # a busy machine is no fault of a view
    page = context.new_page()
    page.errors,page.outside,page.sent = [],[],[]
    page.on('pageerror', lambda e: page.errors.append(f'{e}') if own_error(e) else None)
    def console(m):
        words = f'console: {m.text} {m.location.get("url", "")}'
        if m.type=='error' and not theirs.search(words): page.errors.append(words)
    page.on('console', console)
    page.on('request', lambda r: None if local(r.url) or theirs.search(r.url) else page.outside.append(r.url))
    def socket_opened(ws):
        if not local(ws.url): page.outside.append(ws.url)
        if '/channels' in ws.url: ws.on('framesent', lambda data: page.sent.append(kernel_message(data)))
    page.on('websocket', socket_opened)
    try: yield page
    finally: context.close()

def kernel_message(frame)->tuple: # type, content
    "A message from the page to a kernel, taken out of its frame (text, or Jupyter's v1 with offsets first)"
    if isinstance(frame, str): m = json.loads(frame); return m['header']['msg_type'],m['content']
    if not frame: return '',{}
    n, = struct.unpack_from('<Q', frame)
    at = struct.unpack_from(f'<{n}Q', frame, 8)
    part = lambda i: json.loads(bytes(frame[at[i]:at[i+1]]))
    return part(1)['msg_type'],part(4)

def kernel_messages(page, kind:str='comm_msg')->list: # the contents
    "What the page has sent to the kernel so far, of one kind; `comm_msg` is what widgets send"
    page.evaluate('() => new Promise((r) => requestAnimationFrame(() => setTimeout(r)))') # what is under way is on its way
    return [c for k,c in page.sent if k==kind]

def asked(page, what:str)->list: # the data of each
    "Questions of the views to the kernel, see `View.answer`"
    return [c['data']['content'].get('data') for c in kernel_messages(page) if c['data'].get('method')=='custom' and c['data'].get('content', {}).get('ask')==what]

# ---- servers

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

token = secrets.token_hex(16) # nobody else on this machine runs code in our servers
def call(url, data=None, method=None): # JSON in and out
    r = urllib.request.Request(url, None if data is None else json.dumps(data).encode(), {'Content-Type': 'application/json', 'Authorization': f'token {token}'}, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(r, timeout=20) as f: return json.loads(f.read() or b'null')

class Server:
    "A running server: `base` its address, `folder` where its notebooks are, `kernel` the one they share"
    def __init__(self, base, folder): self.base,self.folder,self.kernel = base,folder,None
    def share(self, name):
        "Let a notebook use the kernel that earlier ones have warmed (importing takes seconds)"
        if self.kernel is None: self.kernel = call(f'{self.base}/api/kernels', dict(name='python3'))['id']
        call(f'{self.base}/api/sessions', dict(path=name, name=name, type='notebook', kernel=dict(id=self.kernel)))

@contextmanager
def serve(folder, module, *args, ready):
    "A server as a group of processes of its own; nothing of the user's settings, this machine only"
    folder,port = Path(folder),free_port()
    own,base = folder/'.own',f'http://127.0.0.1:{port}'
    dirs = {k: str(own/k.lower()) for k in ('JUPYTER_CONFIG_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTER_DATA_DIR', 'IPYTHONDIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR')}
    def setting(plugin, **values):
        p = Path(dirs['JUPYTERLAB_SETTINGS_DIR'])/'@jupyterlab'/plugin
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text(json.dumps(values))
    setting('apputils-extension/notification.jupyterlab-settings', fetchNews='false', checkForUpdates=False)
    setting('notebook-extension/tracker.jupyterlab-settings', windowingMode='none') # all outputs are in the page, also those scrolled away
    env = {k: v for k,v in os.environ.items() if not k.lower().endswith('_proxy')}|dirs|dict(PYTHONPATH=str(root), OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1')
    with open(own.parent/f'{module}.log', 'wb') as log: p = subprocess.Popen([sys.executable, '-m', module, *args, f'--port={port}'], cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(600):
            try: call(base+ready); break
            except urllib.error.HTTPError as e:
                if e.code<500: break # Voila has no page to say that it is there
            except (OSError, ValueError): pass
            try: p.wait(.1)
            except subprocess.TimeoutExpired: continue
            raise RuntimeError(f'{module} ended: {(folder/f"{module}.log").read_text()[-2000:]}')
        else: raise TimeoutError(f'{module} does not answer: {(folder/f"{module}.log").read_text()[-2000:]}')
        yield Server(base, folder)
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            try: os.killpg(p.pid, how)
            except ProcessLookupError: break
            try: p.wait(10)
            except subprocess.TimeoutExpired: continue
        for pid in kernels_of(dirs['JUPYTER_RUNTIME_DIR']): os.kill(pid, signal.SIGKILL) # they are in sessions of their own

def kernels_of(runtime)->list: # process ids
    "Kernels whose connection file lies in a folder"
    def words(p):
        try: return (p/'cmdline').read_bytes().decode(errors='replace')
        except OSError: return ''
    return [int(p.name) for p in Path('/proc').glob('[0-9]*') if str(runtime) in words(p)]

def lab_server(folder): # serves Notebook 7 too, at /notebooks
    return serve(folder, 'jupyterlab', *_common(folder), '--LabApp.expose_app_in_browser=True', '--JupyterNotebookApp.expose_app_in_browser=True', ready='/api/status')
def _common(folder): return '--no-browser', '--ip=127.0.0.1', '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}', '--allow-root', f'--ServerApp.root_dir={folder}'
def voila_server(folder, name, dark=False): return serve(folder, 'voila', name, '--no-browser', '--Voila.ip=127.0.0.1', '--token=', '--show_tracebacks=True', f'--theme={"dark" if dark else "light"}', ready='/api/kernelspecs')

# ---- notebooks

def notebook(folder, name:str, *cells):
    "Write a notebook of code cells"
    import nbformat.v4 as v
    nb = v.new_notebook(cells=[v.new_code_cell(c) for c in cells], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3', language='python')))
    (Path(folder)/name).write_text(json.dumps(nb))
    return name

# without a session that is ready, "Select Kernel" is asked, and no command ever returns
session_ready = '''() => { const w = window.jupyterapp?.shell?.currentWidget, c = w?.sessionContext;
  return !!(c && c.isReady && c.session?.kernel?.status === "idle" && c.session.kernel.connectionStatus === "connected" && w.content?.widgets?.length) }'''

def open_notebook(page, server:Server, name:str, app:str='lab', run:bool=True): # or app='notebook'
    "Open a notebook in JupyterLab or Notebook 7, and run it"
    page.goto(f'{server.base}/lab/tree/{name}?reset&token={token}' if app=='lab' else f'{server.base}/notebooks/{name}?token={token}')
    page.wait_for_function(session_ready, timeout=60_000)
    if run: run_all(page)

def open_beside(page, name:str):
    "Open another notebook in a page that is open; it is the current one then"
    command(page, 'docmanager:open', path=name)
    page.wait_for_function(session_ready.replace("!!(", f"!!(w.context?.path === '{name}' && "), timeout=60_000)

def run_all(page, ms:int=180_000):
    "Run all cells; fails where one raises"
    ok = page.evaluate('''(ms) => Promise.race([window.jupyterapp.commands.execute("notebook:run-all-cells"), new Promise((r) => setTimeout(() => r("no end"), ms))])''', ms)
    assert ok is True, f'run all: {ok} {page.locator(".jp-OutputArea-output").all_inner_texts()}'

def command(page, name:str, **args): return page.evaluate('([name, args]) => window.jupyterapp.commands.execute(name, args).then(() => true)', [name, args])

def kernel_value(page, expr:str)->str: # its repr
    "The value of an expression in the kernel of the open notebook"
    return page.evaluate('''async (e) => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
      const r = (await k.requestExecute({ code: "", silent: true, user_expressions: { v: e } }).done).content.user_expressions.v;
      if (r.status === "error") throw new Error(r.ename + ": " + r.evalue);
      return r.data["text/plain"]; }''', expr)

def kernel_until(page, expr:str, ms:int=30_000):
    "Wait until an expression in the kernel of the open notebook is true"
    page.wait_for_function('''async (e) => (await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.requestExecute({ code: "", silent: true, user_expressions: { v: `bool(${e})` } }).done)
      .content.user_expressions.v.data?.["text/plain"] === "True"''', arg=expr, polling=100, timeout=ms)

def restart_kernel(page):
    "A new kernel under the open notebook"
    page.evaluate('() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()')
    page.wait_for_function(session_ready, timeout=60_000)

def lab_theme(page, dark:bool):
    "JupyterLab or Notebook 7 in its dark or light colors; the server keeps it for the next page"
    command(page, 'apputils:change-theme', theme='JupyterLab Dark' if dark else 'JupyterLab Light')
    page.wait_for_selector(f'body[data-jp-theme-light={"false" if dark else "true"}]', state='attached')

# ---- what holds for every view

def axe(page, selector:str='.flx')->list: # of words
    "Serious and critical findings of axe"
    from axe_playwright_python.sync_playwright import Axe
    found = Axe().run(page, context=selector, options=dict(resultTypes=['violations'])).response['violations']
    return [f'{v["id"]} ({v["impact"]}): {n["html"][:160]} {(n.get("any") or [{}])[0].get("message", "")}' for v in found if v['impact'] in ('serious', 'critical') for n in v['nodes']]

_faults = r'''(selector) => [...document.querySelectorAll(selector)].flatMap((box) => { const says = [], all = [box, ...box.querySelectorAll("*")].filter((e) => e.checkVisibility());
  const is = (e) => `<${e.tagName.toLowerCase()} class="${e.getAttribute("class") || ""}"> ${(e.getAttribute("aria-label") || e.textContent || "").slice(0, 60)}`;
  for (const e of all) { const css = getComputedStyle(e), hidden = (o) => ["hidden", "clip"].includes(o);
    if (!e.closest(".flx-hidden") && !(css.textOverflow === "ellipsis" && e.title) && (hidden(css.overflowX) && e.scrollWidth > e.clientWidth + 1 || hidden(css.overflowY) && e.scrollHeight > e.clientHeight + 1)) says.push(`clipped: ${is(e)}`);
    if (e.tagName === "CANVAS") { const r = e.getBoundingClientRect(); if (!e.width || !e.height || r.width < 1 || r.height < 1) says.push(`empty canvas: ${is(e)}`);
      if (!e.getAttribute("aria-label") && e.getAttribute("aria-hidden") !== "true") says.push(`canvas without words: ${is(e)}`); }
    if (["INPUT", "SELECT", "TEXTAREA"].includes(e.tagName) && !e.labels?.length && !e.getAttribute("aria-label")) says.push(`no label: ${e.outerHTML.slice(0, 100)}`); }
  if (box.scrollWidth > box.clientWidth + 1) says.push(`wider than its place, ${box.scrollWidth} of ${box.clientWidth} pixels: ${is(box)}`);
  return says; })'''

def check_view(page, selector:str='.flx', shot:str=None, colors:bool=True): # name of an image to keep; ask axe too (it takes most of the time, and a width changes nothing for it)
    "No error, nothing from outside, nothing clipped or empty, nothing that axe takes seriously"
    page.wait_for_selector(selector)
    if shot: screenshot(page, shot)
    assert not page.errors, page.errors
    assert not page.outside, page.outside
    assert not (faults := page.evaluate(_faults, selector)), faults
    assert not (found := colors and axe(page, selector)), found

shots = None # where images go when FLUXINTERP_SHOTS says nothing; set by `browser`
def shot_path(name:str)->Path:
    "Where an image for people to look at is kept"
    to = Path(os.environ.get('FLUXINTERP_SHOTS') or shots)
    to.mkdir(parents=True, exist_ok=True)
    return to/f'{name}.png'
def screenshot(page, name:str):
    "Keep an image of the page"
    page.screenshot(path=shot_path(name), full_page=True)

def pixels(canvas)->'array': # (height, width, rgba), of a locator
    "What a canvas shows"
    import numpy as np
    h,w,b = canvas.evaluate('(c) => [c.height, c.width, btoa(Array.from(c.getContext("2d").getImageData(0, 0, c.width, c.height).data, (v) => String.fromCharCode(v)).join(""))]')
    return np.frombuffer(base64.b64decode(b), np.uint8).reshape(h, w, 4).astype(int)
