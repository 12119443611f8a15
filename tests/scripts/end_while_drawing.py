"""Programs that end, or are ended by Ctrl-C, while a view draws: how many end as they should.

    python tests/scripts/end_while_drawing.py 50

Each is a fork of this process, which has the models loaded, and ends by itself in the middle of an image of 60 steps."""
import os, random, signal, sys, time
from collections import Counter

import torch
torch.set_num_threads(1)
import fluxinterp as fi

atlas,pipe,sae = fi.Atlas('tiny-flux/double.1.image'),fi.load_pipeline('tiny-flux'),fi.load_dictionary('tiny-flux/double.1.image')
views = dict(
    SteeringStudio=lambda: fi.SteeringStudio(atlas, pipe, sae, num_inference_steps=60),
    TimestepViewer=lambda: fi.TimestepViewer(pipe, sae, num_inference_steps=60),
    PromptInspector=lambda: fi.PromptInspector(pipe, sae, num_inference_steps=60),
    FeatureBrowser=lambda: fi.FeatureBrowser(atlas, pipe, sae))

def end(make, delay, interrupted): # in a fork: the view draws, the program goes
    view = make()
    time.sleep(delay)
    if interrupted: os.kill(os.getpid(), signal.SIGINT)
    sys.exit(1 if view.error else 0)

def main():
    n = int(sys.argv[1]) if sys.argv[1:] else 50
    rng,found,slowest = random.Random(0),Counter(),0.
    for i in range(n):
        name,interrupted = list(views)[i%len(views)],i//len(views)%3==2
        delay = rng.choice((0., .05, .1, .2))
        sys.stdout.flush()
        if not (pid := os.fork()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2) # tracebacks of Ctrl-C
            end(views[name], delay, interrupted)
        began = time.monotonic()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        slowest = max(slowest, time.monotonic()-began-delay)
        right = code==(-signal.SIGINT if interrupted else 0)
        found['as they should' if right else f'{name}, {"Ctrl-C" if interrupted else "end"} after {delay} s: {code}'] += 1
    print(f'{n} programs: {dict(found)}; the slowest took {slowest:.1f} s to end')
    return found['as they should']!=n

if __name__=='__main__': sys.exit(main())
