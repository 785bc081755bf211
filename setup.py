"""What setup.cfg cannot say: configs, tools and model-index.yml travel in the package, as `mmdat/.mim`."""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_ENTRIES = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Copies the entries into what is built; for an editable install, links to them in the source tree."""

    def run(self):
        built = Path(self.build_lib, 'mmdat')
        if not self.editable_mode:
            # setuptools builds on top of the last build, and would ship what has been removed since.
            shutil.rmtree(built, ignore_errors=True)
        super().run()

        mim = (ROOT / 'mmdat' if self.editable_mode else built) / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for entry in MIM_ENTRIES:
            source, target = ROOT / entry, mim / entry
            if self.editable_mode:
                target.symlink_to(os.path.relpath(source, mim))
            elif source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, target)


setup(cmdclass={'build_py': BuildWithMim})
