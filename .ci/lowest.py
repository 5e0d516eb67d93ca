"""Prints the lowest versions that setup.cfg allows, as requirements for pip.

Takes the names of extras: ``python .ci/lowest.py test``. torch is left out of this: the
constraint of ``.ci/run`` says which version is tested.
"""

import configparser
import re
import sys
from pathlib import Path

LEFT_TO_THE_CONSTRAINT = {"torch"}

config = configparser.ConfigParser()
config.read(Path(__file__).parents[1] / "setup.cfg")
stated = [config["options"]["install_requires"]]
stated += [config["options.extras_require"][extra] for extra in sys.argv[1:]]
for requirement in sorted({*"\n".join(stated).split("\n")} - {""}):
    name, at_least, version = requirement.partition(">=")
    if name in LEFT_TO_THE_CONSTRAINT:
        print(name)
    elif at_least:
        print(f"{name}=={re.match(r'[^,; ]+', version)[0]}")
    else:  # already one version
        print(requirement)
