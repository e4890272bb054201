"""Where the packages live: `config/`, `grids/` and `patches/` sit at the root and ship inside the wheel.

Everything else about the project is in pyproject.toml. The mapping is what lets a checkout, an editable install,
a wheel and a wheel built from the sdist all find the same files (docs: paths.py).
"""

from setuptools import find_packages, setup

ROOT_PACKAGES = ("config", "grids", "patches")

packages = find_packages(include=["micro_musicgen", "micro_musicgen.*"])
package_dir = {"micro_musicgen": "micro_musicgen"}
for root in ROOT_PACKAGES:
    packages += [f"micro_musicgen.{found}" for found in find_packages(include=[root, f"{root}.*"])]
    package_dir[f"micro_musicgen.{root}"] = root

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={"micro_musicgen": ["py.typed"], "micro_musicgen.config": ["**/*.yaml"]},
)
