"What the tutorials show is what a fresh run shows, within a tolerance"
import html, re
from pathlib import Path

import numpy as np
import pytest
from execnb.nbio import read_nb
from execnb.shell import CaptureShell

root = Path(__file__).parent.parent/'nbs/tutorials'

def numbers(nb): # cell id -> numbers of its tables, in order
    res = {}
    for cell in nb.cells:
        if cell.cell_type!='code': continue
        tables = [''.join(o['data']['text/html']) for o in cell.outputs if 'text/html' in o.get('data', {})]
        cells = [html.unescape(re.sub('<[^>]+>', '', c)) for t in tables for c in re.findall('<td.*?>(.*?)</td>', t, re.S)]
        found = [float(c) for c in cells if re.fullmatch(r'-?\d*\.\d+', c.strip())]
        if found: res[cell.id] = np.array(found)
    return res

@pytest.mark.parametrize('name', ['first_features', 'what_does_this_feature_do'])
def test_stored_tables(name, monkeypatch):
    monkeypatch.chdir(root)
    nb = read_nb(root/f'{name}.ipynb')
    stored = numbers(nb)
    shell = CaptureShell()
    shell.run_all(nb, exc_stop=True)
    again = numbers(nb)
    assert len(stored)>=4 and stored.keys()==again.keys()
    for k,old in stored.items():
        new = again[k]
        assert len(old)==len(new), f'{name}, cell {k}: {len(old)} numbers are stored, a run gives {len(new)}'
        near = np.abs(old-new)<=.05+.1*np.abs(old)
        assert near.mean()>=.9, f'{name}, cell {k}: {old[~near]} are stored, a run gives {new[~near]}'
