"""Print constraints for pip: each library at the lowest version that pyproject.toml allows. Tools for tests are left out.

python .ci/lowest.py > lowest.txt && pip install -e ".[train,space,test]" -c lowest.txt
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
lowest: dict[str, str] = {}
for requirement in (*project["dependencies"], *extras["torch"], *extras["train"], *extras["space"]):
    if found := re.match(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)", requirement):
        lowest[found[1]] = found[2]
print("\n".join(f"{name}=={version}" for name, version in sorted(lowest.items())))
