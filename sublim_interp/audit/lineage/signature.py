"""A model signed as the OpenSSF has it, by the user's own key."""

import tempfile
from pathlib import Path

from sublim_interp.audit.lineage.exports import library, product
from sublim_interp.audit.lineage.graph import Lineage
from sublim_interp.core.errors import SublimError


def oms(found: Lineage, _path: Path, key: Path | None = None) -> bytes:
    """A detached signature over every file of a model directory, as a Sigstore bundle.

    key: an elliptic curve's private key, in a PEM file without a password

    `model_signing verify key DIRECTORY --signature FILE --public_key KEY` checks it. Of a record it signs the directory
    `model`; of other models the whole directory. Raises SublimError where there is no key, or no such one.
    """
    if key is None:
        raise SublimError("oms signs with your own key: --key FILE, an elliptic curve's private key in PEM")
    if not key.is_file():
        raise SublimError(f"--key {key}: there is no such file")
    of = product(found, "oms", "student", "teacher", "model", "base")
    assert of.path
    directory = of.path / "model" if of.manifest else of.path
    if not directory.is_dir():
        raise SublimError(f"{of.title} has no weights of its own: they are its base's, so sign that")
    with library("oms"), tempfile.TemporaryDirectory() as folder:
        from model_signing import signing

        path = Path(folder) / "model.sig"
        signing.Config().use_elliptic_key_signer(private_key=key).sign(directory, path)
        return path.read_bytes()
