"Every comparison of features says how they were read, and unlike read-outs are never compared"
import ast, dataclasses
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch

import fluxinterp as fi
from fluxinterp.dashboards.comparison_charts import correlation_chart
from fluxinterp.dictionaries.readouts import readouts
from fluxinterp.evaluation import concept_structure, concepts, interchange, method_comparison, probes, unit_comparison
from fluxinterp.features import across_layers, feature_matches

site = 'double.1.image'

@pytest.fixture(scope='module')
def things():
    "A dictionary, a baseline and two lots of known scenes at two noise levels"
    torch.manual_seed(0)
    pipe = fi.load_pipeline('tiny-flux')
    how = dict(noise_level=(.75, .25), progress=False)
    train,test = (concepts.record_scenes(pipe, [site], 12, s, **how) for s in ('train', 'test'))
    record = train.recording[site]
    some = [i for i,(kind,_) in enumerate(train.names) if kind in ('color', 'style')]
    def few(acts): return dataclasses.replace(acts, labels=acts.labels[some], names=[acts.names[i] for i in some])
    return dict(sae=fi.load_dictionary(f'tiny-flux/{site}'), pca=fi.pca(record, 16), record=record, pairs=interchange.record_pairs(pipe, site, 12, noise_level=.25, progress=False), all=(train, test), train=few(train), test=few(test))

def with_scenes(f, **kwargs): return lambda t, d, r: f(d, t['train'], t['test'], readout=r, **kwargs)

# every function of the library that says what features find or match: (things, dictionary, read-out) -> its result
comparisons = dict(
    find_concepts=with_scenes(concepts.find_concepts, candidates=16, bootstrap=0),
    best_concepts=with_scenes(concepts.best_concepts, features=range(4)),
    concepts_by_step=with_scenes(concept_structure.concepts_by_step, candidates=16),
    features_by_step=with_scenes(concept_structure.features_by_step, features=range(4)),
    concepts_beside_chance=with_scenes(concept_structure.concepts_beside_chance, candidates=16),
    concept_splitting=with_scenes(concept_structure.concept_splitting, candidates=16),
    sparse_probes=with_scenes(probes.sparse_probes, k=(1, 2), candidates=16),
    compare_methods=lambda t, d, r: method_comparison.compare_methods(dict(it=d), t['train'], t['test'], (r,), (1,), 16, progress=False).lines,
    compare_units=lambda t, d, r: unit_comparison.compare_units(d, t['train'], t['test'], ('token',), r, 16),
    cause_and_isolation=lambda t, d, r: interchange.cause_and_isolation(dict(it=d), concepts.scenes_by_step(t['all'][0])[1][1], t['pairs'], (1,), ('color', 'size'), (r,),
                                                                        candidates=16, resamples=10),
    match_features=lambda t, d, r: feature_matches.match_features(d, t['pca'], t['record'], range(8), readout=r),
    match_firings=lambda t, d, r: feature_matches.match_firings(feature_matches.record_firing(d, t['record'], readout=r),
                                                                feature_matches.record_firing(t['pca'], t['record'], readout=r),
                                                                t['record'].rows.guidance, range(8)))
of_codes = dict( # about what fires and what is silent: no other read-out
    concept_absorption=lambda t, d: concept_structure.concept_absorption(d, *t['all'], least=1, candidates=16),
    feature_family=lambda t, d: across_layers.feature_family({site: d}, t['train'].recording, site, strongest(t, d)).frame)

def strongest(t, d): return int(concepts.strongest_features(d, t['record'].x, 1+d.signed)[0])

@pytest.fixture(scope='module')
def result(things): return cache(lambda name, kind, readout: comparisons[name](things, things[kind], readout))

@pytest.mark.parametrize('readout', readouts)
@pytest.mark.parametrize('kind', ('sae', 'pca'))
@pytest.mark.parametrize('name', comparisons)
def test_results_say_how_they_were_read(result, name, kind, readout):
    "A column `readout`, the one that was asked for, in every line"
    table = result(name, kind, readout)
    assert len(table) and set(table.readout)=={readout}

@pytest.mark.parametrize('name', of_codes)
def test_results_of_codes_say_so(things, name):
    table = of_codes[name](things, things['sae'])
    assert len(table) and set(table.readout)=={'code'}

of_one = {'check_readout', 'feature_activations', 'feature_scores', 'feature_auroc', 'record_firing', 'best_features'} # numbers of one dictionary

def test_none_is_forgotten():
    "Every public function of the library that takes a read-out stands in a table above"
    found = set()
    for p in Path(fi.__file__).parent.rglob('*.py'):
        for f in ast.parse(p.read_text()).body:
            if isinstance(f, ast.FunctionDef) and f.name[0]!='_' and {'readout', 'readouts'}&{a.arg for a in f.args.args}: found.add(f.name)
    new = found-set(comparisons)-of_one
    assert not new, f'{new} take a read-out: add them to the table of comparisons, their results say how features were read'
    assert not (set(comparisons)|of_one)-found-{'match_firings'} # which takes it from the firings

def mixed(*t): return pd.concat(t)
def with_ceiling(t): return t if 'decodable' in t else t.assign(decodable=True)

def test_mixtures_are_refused(things, result):
    "By every function that compares such results"
    def both(name): return [result(name, 'sae', r) for r in readouts]
    code,dense = both('find_concepts')
    refused = dict(check_alike=lambda: concepts.check_alike(code, dense), recovered=lambda: concepts.recovered(mixed(code, dense)))
    for n in ('concepts_by_step', 'sparse_probes', 'compare_methods'):
        a,b = (with_ceiling(t) for t in both(n))
        refused[n] = lambda a=a, b=b: method_comparison.paired_difference(a, b)
        refused[f'{n}, mixed in itself'] = lambda a=a, b=b: method_comparison.paired_difference(mixed(a, b), mixed(a, b))
    refused['correlation_chart'] = lambda: correlation_chart(mixed(*both('match_features')), 'SAE in PCA')
    firings = [feature_matches.record_firing(things[d], things['record'], readout=r) for d,r in zip(('sae', 'pca'), readouts)]
    refused['match_firings'] = lambda: feature_matches.match_firings(*firings, things['record'].rows.guidance)
    split = result('concept_splitting', 'sae', 'pre_acts')
    refused['concept_absorption'] = lambda: concept_structure.concept_absorption(things['sae'], *things['all'], split)
    for name,call in refused.items():
        with pytest.raises(ValueError, match='not comparable|read by|so about codes'): call(); pytest.fail(f'{name} compares unlike read-outs')

def test_a_result_without_its_readout_is_refused(result):
    bare = result('concepts_by_step', 'sae', 'code').drop(columns='readout')
    for call in (lambda: concepts.recovered(bare), lambda: method_comparison.paired_difference(with_ceiling(bare), with_ceiling(bare))):
        with pytest.raises(ValueError, match='keep the column readout'): call()

def test_methods_are_compared_by_each_readout_apart(things):
    "No line of a comparison's tables mixes read-outs, and every method has the same ones"
    both = fi.compare_methods(dict(SAE=things['sae'], PCA=things['pca']), things['train'], things['test'], k=(1,), candidates=16, progress=False)
    by_method = both.lines.groupby('method').readout.unique().map(sorted)
    assert by_method.map(tuple).nunique()==1 and by_method.iloc[0]==sorted(readouts)
    for table in (both.shares(), both.differences('SAE'), both.by_factor()):
        assert set(table.index.get_level_values(0))==set(readouts)

def test_a_readout_that_a_dictionary_has_not(things):
    class Plain(fi.Dictionary):
        num_latents,signed,normalizer = things['sae'].num_latents,False,things['sae'].normalizer
        meta,width = things['sae'].meta,things['sae'].width
        def codes(self, z): return things['sae'].codes(z)
    for call in (comparisons['find_concepts'], comparisons['match_features'], comparisons['sparse_probes']):
        with pytest.raises(ValueError, match='Plain has no pre-activations, only codes'): call(things, Plain(), 'pre_acts')
