"""Package `megatron-urpo`. Exact tested versions stand in `constraints/`; here are only the bounds."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "megatron_urpo" / "__init__.py").read_text())
assert VERSION is not None

EXTRAS = {
    "gpu": ["transformer-engine[pytorch]"],
    "sglang": ["sglang>=0.5.19"],
    "vllm": ["vllm>=0.27"],
    "wandb": ["wandb"],
    "dev": [
        "hypothesis", "mypy", "pytest", "pytest-timeout", "ruff", "scipy", "selenium", "types-PyYAML",
        "wandb",
    ],
}  # fmt: skip

setup(
    name="megatron-urpo",
    version=VERSION[1],
    description="Unified Reward & Policy Optimization on Megatron-Core",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_urpo", "megatron_urpo.*"]),
    package_data={"megatron_urpo.reporting.report": ["*.html", "*.css", "*.js"]},
    install_requires=[
        "torch>=2.6",
        "megatron-core==0.16.1",
        "psutil",  # megatron-core's checkpoint writer imports it without declaring it
        "transformers>=5",
        "tokenizers",
        "safetensors",
        "pydantic>=2.7",
        "pyyaml",
        "click>=8.1",
        "aiohttp>=3.10",
        "rich",
        "numpy",
        "pyarrow",
        "math-verify==0.9.0",
        "regex",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megatron-urpo = megatron_urpo.cli:main"]},
)
