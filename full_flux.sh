. /tmp/w/truth/env.sh; cd nbs/papers
T=900 /tmp/w/t exec_nb flux_sae.ipynb --dest /tmp/w/truth/flux_sae_out.ipynb --exc_stop > /tmp/w/truth/flux_full.log 2>&1; echo rc $? >> /tmp/w/truth/flux_full.log
