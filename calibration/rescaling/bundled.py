"""The certificate in a bundle, and its check."""

from __future__ import annotations

import onnx_ir as ir

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.calibration.rescaling.certificate import Certificate, read_certificate
from demi.calibration.rescaling.checker import check_lowered
from demi.errors import BundleError


def certificate_of(bundle: Bundle) -> Certificate | None:
    """Return the bundle's certificate; None if nothing was rescaled. Raises BundleError if it is missing or damaged."""
    if not bundle.manifest.rescaled:
        return None
    if manifests.RESCALE not in bundle.manifest.files:
        raise BundleError(
            f"the model was rescaled, and the bundle holds no `{manifests.RESCALE}`",
            where=str(bundle.path),
            hint="export the model again",
        )
    return read_certificate(bundle.path / manifests.RESCALE)


def rescaling_problems(bundle: Bundle) -> tuple[str, ...] | None:
    """Return the errors in the certificate of a rescaled bundle; None if nothing was rescaled."""
    certificate = certificate_of(bundle)
    if certificate is None:
        return None
    path = bundle.model_path
    try:
        mixed = ir.load(path)
        path = bundle.reference_path or path
        reference = ir.load(path) if bundle.reference_path is not None else None
    except Exception as error:
        raise BundleError(
            f"`{path.name}` cannot be read: {error}", where=str(bundle.path), hint="export the model again"
        ) from error
    return tuple(check_lowered(mixed, certificate, reference))
