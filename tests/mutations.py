"Seeded damage to files, for tests that nothing but a clear error or the right answer comes of it"
import json, math, random

def _bytes_mutation(data, rng):
    data,kind = bytearray(data),rng.randrange(6)
    at = rng.randrange(len(data)+1)
    n = rng.choice((1, 2, 8, 64))
    if kind==0:
        for _ in range(n): data[rng.randrange(len(data))] ^= 1<<rng.randrange(8)
        return f'{n} bits flipped', bytes(data)
    if kind==1: return f'cut off at {at}', bytes(data[:at])
    if kind==2: return f'{n} bytes removed at {at}', bytes(data[:at]+data[at+n:])
    if kind==3: return f'{n} bytes inserted at {at}', bytes(data[:at]+rng.randbytes(n)+data[at:])
    if kind==4: return f'{n} bytes doubled at {at}', bytes(data[:at]+data[at:at+n]+data[at:])
    for i in range(at, min(at+n, len(data))): data[i] = rng.choice((0, 255))
    return f'{n} bytes at {at} overwritten', bytes(data)

_odd = (None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**400, -10**400, .5, 1e308, math.nan, math.inf, -math.inf, '', 'x', '../../etc', '\0', '\ud800', [], {}, [[]], [1]*5, {'x': 1})

def json_mutation(obj, rng):
    "A copy of a JSON object with one thing in it changed, and what was changed"
    obj = json.loads(json.dumps(obj))
    places,stack = [],[obj]
    while stack:
        o = stack.pop()
        for k in (list(o) if isinstance(o, dict) else range(len(o))):
            places.append((o, k))
            if isinstance(o[k], (dict, list)): stack.append(o[k])
    o,k = rng.choice(places)
    kind = rng.randrange(5)
    if kind==0: del o[k]; return f'{k!r} removed', obj
    if kind==1 and isinstance(o[k], list): o[k] = o[k]*2 if rng.random()<.5 else o[k][:-1]; return f'{k!r} longer or shorter', obj
    if kind==2 and isinstance(o[k], (int, float)) and not isinstance(o[k], bool): o[k] = rng.choice((o[k]+1, o[k]-1, -o[k], o[k]*1000, float(o[k]), str(o[k]))); return f'{k!r} is {o[k]!r}', obj
    if kind==3 and isinstance(o, dict): o[f'{k}_'] = o.pop(k); return f'{k!r} renamed', obj
    o[k] = rng.choice(_odd)
    return f'{k!r} is {str(o[k])[:40]}', obj

def mutations(data:bytes, # of a file
              n:int,      # how many
              seed:int,
             ):           # yields (what was done, bytes)
    "Damaged copies of a file: of its bytes, and for JSON half of them of its meaning"
    rng = random.Random(seed)
    try: obj = json.loads(data)
    except ValueError: obj = None
    for i in range(n):
        if obj is not None and i%2:
            what,new = json_mutation(obj, rng)
            yield what, json.dumps(new).encode()
        else:
            what,new = _bytes_mutation(data, rng)
            yield what, new
