"""Ranks that are killed (SIGKILL) at random moments, and the same command again on another number of ranks: the files of one process

`kill_ranks.py FOLDER WORK... [--times 20] [--seed 0]`, WORK being among harvest, atlas, live, studies (explanations, scores, a sweep). It takes a few seconds a kill.
"""
import argparse, random, shutil, sys, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import rank_work as ranks, test_ranks as t

def ended(processes, patience=300): # exit codes, and what was said
    end = time.time()+patience
    while any(p.is_alive() for p in processes) and time.time()<end: time.sleep(.1)
    for p in processes: p.terminate() # as torchrun does; a rank 0 that dies before it is there is waited for
    for p in processes: p.join()
    return [p.exitcode for p in processes],[ranks.said(p) for p in processes]

def result(out, work):
    if work=='studies': return t.studied(out)
    return t.contents(out/'sae') if work=='live' else t.tensors(out) if work=='atlas' else t.contents(out)

def begin(out, size, work, env): # -> processes
    import fluxinterp as fi
    if work=='studies' and not out.exists(): fi.Atlas('tiny-flux/double.1.image').copy(out/'atlas')
    return ranks.start(out, size, work, **env)

def acts(folder): # a store for atlases
    import fluxinterp as fi
    fi.harvest(fi.load_pipeline('random-flux'), fi.scene_prompts(64), 'double.0.image', folder/'acts', num_inference_steps=2, progress=False)
    return dict(STORE=str(folder/'acts'))

def killed(folder, work, times, rng):
    folder.mkdir(parents=True)
    env = acts(folder) if work=='atlas' else dict(DIES_IN='') if work=='studies' else {}
    for name in ('imported', 'alone'): # the first one waits until everything is imported
        began = time.time()
        codes,said = ended(begin(folder/name, 1, work, env))
        assert codes==[0], said
    seconds,alone,counts = time.time()-began,result(folder/'alone', work),dict(first=0, other=0, late=0)
    for i in range(times):
        out,size = folder/f'{i}',rng.choice((2, 3))
        processes = begin(out, size, work, env)
        time.sleep(seconds*rng.uniform(.1, 1.3))
        victim = rng.randrange(size)
        processes[victim].kill()
        codes,said = ended(processes, 20)
        counts['late' if codes[victim]==0 else 'other' if victim else 'first'] += 1
        again = [c for r,c in enumerate(codes) if r!=victim and c]
        if again or victim==0:
            codes,said = ended(begin(out, rng.choice((1, 2, 3)), work, env))
            assert not any(codes), (i, said)
        if not out.exists() or result(out, work)!=alone: raise AssertionError(f'{work} {i}: other files than those of one process, in {out}')
        shutil.rmtree(out)
    print(f'{work}: {times} times, rank 0 killed {counts["first"]}, another {counts["other"]}, after its end {counts["late"]}', flush=True)

if __name__=='__main__':
    args = argparse.ArgumentParser()
    args.add_argument('folder', type=Path)
    args.add_argument('work', nargs='+')
    args.add_argument('--times', type=int, default=20)
    args.add_argument('--seed', type=int, default=0)
    a = args.parse_args()
    for w in a.work: killed(a.folder/w, w, a.times, random.Random(a.seed))
