"""Write the manifests in this folder: `python deploy/kubernetes/write.py`.

They are what `demi deploy` writes for one model, MiniLM, so that they can be read without it; alerts.yaml is
deploy/alerts.yml for the Prometheus operator. For your own models, run `demi deploy`.
"""

from __future__ import annotations

from pathlib import Path

from demi.deploy.models import DeployedModel
from demi.deploy.options import DeployOptions
from demi.deploy.render import render_manifests

FOLDER = Path(__file__).resolve().parent
EXAMPLE = (DeployedModel("minilm", versions=(1,), file_bytes=131 << 20, max_batch=32),)

HEADER = """\
# deploy/alerts.yml for the Prometheus operator: kubectl apply -f deploy/kubernetes/alerts.yaml
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: demi
  labels:
    app.kubernetes.io/name: demi
spec:
"""


def manifests() -> dict[str, str]:
    """Return the text of each file in this folder by its name."""
    gpu = DeployOptions(name="demi-gpu", device="cuda", replicas=(1, 1))
    return {
        "deployment.yaml": render_manifests("kubernetes", EXAMPLE, DeployOptions()),
        "deployment-gpu.yaml": render_manifests("kubernetes", EXAMPLE, gpu),
        "kserve.yaml": render_manifests("kserve", EXAMPLE, DeployOptions()),
        "kserve-gpu.yaml": render_manifests("kserve", EXAMPLE, gpu),
        "alerts.yaml": HEADER + _indented((FOLDER.parent / "alerts.yml").read_text()),
    }


def _indented(text: str) -> str:
    """Return YAML one level deeper, without the comments and blank lines at its start."""
    lines = text[text.index("groups:") :].splitlines()
    return "".join(f"  {line}\n" if line else "\n" for line in lines)


if __name__ == "__main__":
    for name, text in manifests().items():
        (FOLDER / name).write_text(text)
