"The README's example does what the README says of it"
import re
from pathlib import Path

import numpy as np

import fluxinterp as fi

root = Path(__file__).parent.parent

def example(): # names that the first block of Python leaves behind
    block = re.search(r'```python\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S)[1]
    names = {}
    exec(compile(block, 'README.md', 'exec'), names)
    return names

def test_example():
    "One feature turns the star yellow, and nothing else changes"
    e = example()
    yellow = fi.as_world().concepts.index(('color', 'yellow'))
    before,after = fi.read_images([e['image'], e['steered'].images[0]])
    assert before.probabilities[yellow]<.1 and after.probabilities[yellow]>.9
    assert after.concept_map('color', 'yellow')[e['star']].mean()>.5 # where the star was
    change = np.abs(np.asarray(e['steered'].images[0], float)-np.asarray(e['image'], float)).mean(2)/255
    side = change.shape[0]//e['star'].shape[0]
    outside = change[~np.kron(e['star'], np.ones((side, side), bool))]
    assert outside.mean()<.01, outside.mean()
    score = fi.scores(e['atlas'], 'prompts', 'detection/reader').loc[e['feature']]
    assert score.value>max(.75, score.shuffled), score
    assert e['edit'].feature==e['feature']
