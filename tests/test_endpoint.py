"Explaining and scoring through an endpoint that fails in every way, by a process that is killed: the right status, nothing lost, nothing asked twice"
import os, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path

import pytest
from answers import AnswerServer, api_key, completion, odd_answers

import fluxinterp as fi
from fluxinterp.autointerp.endpoint import BudgetSpent, EndpointError
from fluxinterp.autointerp.questions import Question, read_json

repo = Path(__file__).resolve().parents[1]

@pytest.fixture
def atlas(tmp_path):
    a = fi.Atlas('tiny-flux/double.1.image').copy(tmp_path/'atlas')
    a.some = a.array('totals/fired').topk(40).indices.tolist()[-10:]
    return a

def start(atlas, server, tmp_path):
    return subprocess.Popen([sys.executable, repo/'tests/scripts/ask_endpoint.py', atlas.path, server.url,
                             tmp_path/'answers.sqlite', *map(str, atlas.some)],
                            env=os.environ|dict(OMP_NUM_THREADS='1', PYTHONPATH=str(repo)),
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def answered(server, failed): return Counter(q for n,q in enumerate(server.asked) if n not in failed) # times each request was answered

def test_faults_and_a_killed_process(atlas, tmp_path):
    "Killed in the middle, run again: each question is answered once, each fault has its status, no feature is lost"
    failed,kinds = set(),('busy', 'broken', 'hang')
    def faults(n, text):
        if n%5==3: failed.add(n); return kinds[n//5%3]
    with fi.ReaderServer(atlas, key='secret', faults=faults, pace=.05) as server:
        p = start(atlas, server, tmp_path)
        deadline = time.time()+120
        while len(server.asked)<18 and time.time()<deadline and p.poll() is None: time.sleep(.01)
        assert p.poll() is None, p.communicate()[0]
        p.send_signal(signal.SIGKILL); p.wait()
        early = fi.explanations(fi.Atlas(atlas.path), 'reader, marked')
        flying = len(server.asked)-4 # up to four were on their way when the process died: they may be asked again
        p = start(atlas, server, tmp_path)
        out,_ = p.communicate(timeout=240)
        assert p.returncode==0, out
        again = [q for q,n in answered(server, failed).items() if n>1]
        assert len(again)<=4 and all(server.asked.index(q)>=flying-4 for q in again)
        n = len(server.asked)
        q = start(atlas, server, tmp_path)
        out,_ = q.communicate(timeout=240)
        assert q.returncode==0 and 'calls 0' in out and len(server.asked)==n, out # all of it is kept
    a = fi.Atlas(atlas.path)
    said,scored = fi.explanations(a, 'reader, marked'),fi.scores(a, 'reader, marked', 'localization/reader')
    assert sorted(said.index)==sorted(scored.index)==sorted(atlas.some)
    assert set(said.status)=={'ok'} and set(scored.status)<={'ok', 'too_few'} and scored.value.notna().any()
    assert said.text[early.index].equals(early.text)

def test_statuses_through_the_road(atlas, tmp_path):
    "Prose, refusals and a server that stays broken are statuses of the features, never numbers"
    what = dict(zip(atlas.some, ('prose', 'refuse', 'broken', None)))
    order = []
    def faults(n, text): return order[0]
    with fi.ReaderServer(atlas, faults=faults) as server:
        model = fi.Endpoint(server.url, 'reader', cache=tmp_path/'a.sqlite', retries=1)
        model.pace = .01
        vision,got = fi.VisionExplainer(model),{}
        for f,fault in what.items():
            order[:] = [fault]
            got[f] = fi.explain(atlas, vision, [f], progress=False).status[f]
        assert list(got.values())==['parse_error', 'refused', 'error', 'ok']
        assert [bool(fi.explanations(atlas, vision.name).text[f]) for f in what]==[False, False, False, True]
        order[:] = [None]
        n = len(server.asked)
        assert fi.explain(atlas, vision, list(what), progress=False).status.tolist()==['ok', 'refused', 'ok', 'ok'] # what failed or could not be read is asked again
        assert len(server.asked)==n+2
        t = fi.score(atlas, fi.Detection(n=2, negatives=1), vision.name, list(what), fi.ModelVerdicts(model), progress=False)
        assert t.status.iloc[1]=='refused' and t.value.isna().iloc[1] and t.status.iloc[3]=='ok'

def test_stops(atlas, tmp_path):
    "A wrong key, a server that is down, a budget that is spent: clear errors, and what was answered is kept"
    with fi.ReaderServer(atlas, key='secret') as server:
        with pytest.raises(EndpointError, match='rejects the key'): fi.explain(atlas, fi.VisionExplainer(fi.Endpoint(server.url, 'reader', key='wrong')), atlas.some, progress=False)
        assert not len(fi.explanations(atlas, 'reader, marked'))
        poor = fi.Endpoint(server.url, 'reader', key='secret', cache=tmp_path/'a.sqlite', budget=4, concurrency=2)
        with pytest.raises(BudgetSpent, match='the budget of 4 is spent'): fi.explain(atlas, fi.VisionExplainer(poor), atlas.some, every=1, progress=False)
        kept = fi.explanations(atlas, 'reader, marked')
        assert set(kept.status)=={'ok'} and 1<=len(kept)<=4
        n = len(server.asked)
        rich = fi.Endpoint(server.url, 'reader', key='secret', cache=tmp_path/'a.sqlite')
        said = fi.explain(atlas, fi.VisionExplainer(rich), atlas.some, progress=False)
        assert set(said.status)=={'ok'} and len(server.asked)==n+len(atlas.some)-4
    down = fi.Endpoint(server.url, 'reader', retries=0)
    with pytest.raises(EndpointError, match='cannot be reached'): fi.explain(atlas, fi.VisionExplainer(down), atlas.some, again=True, progress=False)
    (tmp_path/'prompts').mkdir()
    (tmp_path/'prompts'/'explain.txt').write_text('Say what you see.')
    with pytest.raises(ValueError, match='lacks the placeholder'): fi.VisionExplainer(down, prompts=tmp_path/'prompts')

good = '{"pattern": "red things", "score": 1, "second": 1}'

def endpoint(server, tmp_path, **kwargs):
    return fi.Endpoint(server.url.replace('//', '//me:hunter22@'), 'm', key=api_key, cache=tmp_path/'answers.sqlite', retries=0, timeout=3., **kwargs)

def test_odd_answers_one_by_one(tmp_path):
    "Each odd answer has its status and none a wrong value; none of what a server prints of our secrets is kept"
    odd = odd_answers(good)
    questions = [Question(k, [k], lambda s: read_json(s, pattern=str)['pattern']) for k in odd]
    with AnswerServer(lambda n,body: odd[body['messages'][0]['content'][0]['text']][1:]) as server:
        model = endpoint(server, tmp_path, prices=(1., 1.))
        got = {a.id: a for a in model.answers(questions)}
        assert {k: a.status for k,a in got.items()}=={k: v[0] for k,v in odd.items()}
        assert {a.value for a in got.values() if a.status=='ok'}=={'red things'} and all(t>0 for t in model.tokens)
        assert max(len(str(a.detail)) for a in got.values())<15_000
    with AnswerServer(lambda n,body: [completion(good)]) as server:
        assert {a.value for a in endpoint(server, tmp_path).answers(questions)}=={'red things'}
        assert server.asked==sum(v[0]!='ok' for v in odd.values())
    assert not any(s in text for s in ('sk-test', 'hunter22') for text in (str(got), (tmp_path/'answers.sqlite').read_bytes().decode(errors='replace')))

def test_a_run_through_odd_answers(atlas, tmp_path):
    "200 features, every second answer odd: the run ends, each feature has a status, a second run with a good server completes them; scores alike"
    odd = [v[1:] for v in odd_answers(good).values()]
    fires = fi.activating_images(atlas, None)
    some = [int(f) for f in fires.argsort()[::-1][:200]]
    with AnswerServer(lambda n,body: odd[n//2%len(odd)] if n%2 else [completion(good)]) as server:
        vision = fi.VisionExplainer(endpoint(server, tmp_path), count=1, size=16)
        said = fi.explain(atlas, vision, some, progress=False)
        assert set(said.status)=={'ok', 'parse_error', 'error'} and said.status.notna().all() and set(said.text[said.status=='ok'])=={'red things'}
        assert atlas.text.frame('select count(*) as n from explanations where not json_valid(detail)').n[0]==0
        ok = said.index[said.status=='ok'][:12].tolist()
        judge = fi.ModelVerdicts(vision.model, size=16)
        scored = fi.score(atlas, fi.Localization(4), vision.name, ok, judge, progress=False)
        assert set(scored.status)<={'ok', 'parse_error', 'error', 'too_few'} and scored.status.notna().all()
    with AnswerServer(lambda n,body: [completion(good)]) as server:
        vision.model.url,n = server.url,(said.status!='ok').sum()
        assert set(fi.explain(atlas, vision, some, progress=False).status)=={'ok'} and server.asked==n
        assert set(fi.score(atlas, fi.Localization(4), vision.name, ok, judge, progress=False).status)<={'ok', 'too_few'}
        n = server.asked
        fi.explain(atlas, vision, some, progress=False)
        assert server.asked==n
    assert b'sk-test' not in atlas.text.path.read_bytes()
