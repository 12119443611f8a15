"""Explains features through an endpoint and scores the explanations: `ask_endpoint.py ATLAS URL CACHE FEATURE...`"""
import sys

import fluxinterp as fi

folder,url,cache,*features = sys.argv[1:]
atlas,features = fi.Atlas(folder),[int(f) for f in features]
model = fi.Endpoint(url, 'reader', key='secret', cache=cache, timeout=20, retries=3, concurrency=4)
model.pace = .05
vision = fi.VisionExplainer(model)
fi.explain(atlas, vision, features, every=1, progress=False)
fi.score(atlas, fi.Localization(4), vision.name, features, fi.ModelVerdicts(model), every=2, progress=False)
print('calls', model.calls, 'known', model.known)
