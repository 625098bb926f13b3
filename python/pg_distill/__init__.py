"""pg_distill: small, fast students of large, slow teachers, inside PostgreSQL."""

import os

__all__ = ["__version__"]

__version__ = "0.2.0"

# ONNX Runtime from 1.32 on keeps a database of usage events under the home directory and sends it to its makers; a
# database server does neither. It reads this once, where it is first loaded, which is after this in every process of ours.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
