"Thin setup.py: every fact lives in settings.ini, which nbdev reads too; edit that file instead."
from configparser import ConfigParser
from pathlib import Path
import shlex

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

root = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=['='])
parser.read(root/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

def requirements(kind=''): return shlex.split(cfg.get(f'{kind}requirements', ''))

class SDist(sdist):
    "Source archives must carry `settings.ini`, which this file reads"
    def make_distribution(self):
        self.filelist.append('settings.ini')
        super().make_distribution()

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], license='Apache-2.0',
    long_description=(root/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    python_requires='>='+cfg['min_python'],
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*']),
    package_data={cfg['lib_path']: cfg['package_data'].split()}, include_package_data=False,
    install_requires=requirements(), extras_require={k: requirements(f'{k}_') for k in ('dev', 's3', 'http', 'plan')},
    entry_points={'console_scripts': shlex.split(cfg['console_scripts']), 'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
    cmdclass={'sdist': SDist}, zip_safe=False)
