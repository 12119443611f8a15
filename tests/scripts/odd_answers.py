"Asks a server of mutated answers many questions: `odd_answers.py [QUESTIONS] [SEED]`; each ends with a status, soon, and a good server completes them"
import json, random, sys, tempfile, time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from answers import AnswerServer, api_key, completion, odd_answers
from mutations import mutations

from fluxinterp.autointerp.endpoint import Endpoint
from fluxinterp.autointerp.questions import Question, read_json

total = int(sys.argv[1]) if len(sys.argv)>1 else 5000
seed = int(sys.argv[2]) if len(sys.argv)>2 else 0
good = '{"pattern": "red things", "notes": ["red", 1.5, {"a": null}]}'

def odd_ones(rng):
    "Bodies with a part of the answer, of the body, or of both damaged; now and then one of the named"
    named = [what for _,*what in odd_answers(good).values() if what[0] not in ('drip', 'no end')]
    while True:
        for _,text in mutations(good.encode(), 8, rng.randrange(2**31)):
            said = text.decode('utf-8', 'replace') if rng.random()<.9 else text.decode('latin-1')
            body = completion(said, usage=dict(prompt_tokens=rng.choice((3, -1, 1e300, 'x')), completion_tokens=4))
            yield [body]
            for _,damaged in mutations(body, 2, rng.randrange(2**31)): yield [damaged]
        yield rng.choice(named)

def run(bodies, folder, say):
    with AnswerServer(say) as server:
        model = Endpoint(server.url, 'm', key=api_key, cache=folder/'answers.sqlite', retries=0, timeout=5., prices=(1., 1.))
        start,longest = time.time(),0.
        got = {}
        for a in model.answers([Question(i, [str(i)], lambda s: read_json(s, pattern=str)) for i in range(total)]):
            got[a.id],longest,start = a,max(longest, time.time()-start),time.time()
            if a.status=='ok': json.dumps(a.value, allow_nan=False, ensure_ascii=False).encode()
            json.dumps(a.detail, allow_nan=False, ensure_ascii=False).encode()
        assert min(model.tokens)>=0 and len(got)==total
        return got,server.asked,longest

with tempfile.TemporaryDirectory() as d:
    source = odd_ones(random.Random(seed))
    bodies = [next(source) for _ in range(total)]
    got,asked,longest = run(bodies, Path(d), lambda n,body: bodies[int(body['messages'][0]['content'][0]['text'])])
    first = Counter(a.status for a in got.values())
    print(f'{total} questions, {asked} requests, longest wait {longest:.2f} s:', dict(first))
    better,asked,longest = run(bodies, Path(d), lambda n,body: [completion(good)])
    print(f'then a good server: {asked} requests,', dict(Counter(a.status for a in better.values())))
    assert {a.status for a in better.values()}<={'ok', 'refused'} and asked==total-first['ok']-first['refused']
