"""Content credentials (C2PA 2): a signed manifest in a picture's file that says what made it and from what.

Signed with an operator's certificate, or with a local authority and its leaf, which are made on first use; readers
elsewhere show the latter as valid and not trusted. A picture that was edited is named as the parent, references as
inputs, each with the manifest that it came with. `check` reads a file's manifest again. Nothing is ever fetched.

The manifest is beside the recipe, not in it: a signature differs every time, so a signed file is compared by its pixels
when it is made again. Needs the extra `c2pa`. Not here: which edit has which parents (`message.py`).
"""

from __future__ import annotations

import datetime
import importlib.util
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace.errors import ConfigError, MissingDependencyError, OutputError
from ace.files import cache_folder, write_atomically

if TYPE_CHECKING:
    from ace.conversation.recipe import Recipe

EXTRA = "pip install 'ace-allround[c2pa]'"
LOCAL = "local"  # instead of a certificate: the authority of this machine
MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "TIFF": "image/tiff"}
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_SETTINGS = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},  # they would be many times a small picture
}
_YEARS = {"authority": 10, "leaf": 2}


@dataclass(frozen=True)
class Origin:
    """A picture that another was made from: its name, and its file or the bytes that came."""

    name: str
    data: Path | bytes

    def read(self) -> bytes:
        """The file's bytes."""
        return self.data.read_bytes() if isinstance(self.data, Path) else self.data


@dataclass(frozen=True)
class Signer:
    """Who signs. chain: certificates as PEM, the leaf first; key: of the leaf, PEM; local: nobody else trusts it."""

    chain: str
    key: str
    algorithm: str
    local: bool

    @classmethod
    def of(cls, choice: str) -> Signer:
        """ "local", or "CHAIN.pem,KEY.pem" of an operator. Raises MissingDependencyError or ConfigError."""
        if importlib.util.find_spec("c2pa") is None or importlib.util.find_spec("cryptography") is None:
            raise MissingDependencyError(f"content credentials need c2pa-python: {EXTRA}")
        if choice == LOCAL:
            return _local_signer(cache_folder() / "credentials")
        chain, comma, key = choice.partition(",")
        if not comma:
            raise ConfigError(f"--sign {choice[:80]}: write local, or the certificate chain and its key as A.pem,B.pem")
        try:
            texts = [Path(name.strip()).expanduser().read_text(encoding="ascii") for name in (chain, key)]
        except (OSError, UnicodeDecodeError):
            raise ConfigError("the certificate or its key cannot be read: name two PEM files as A.pem,B.pem") from None
        return cls(texts[0], texts[1], _algorithm_of(texts[1]), False)

    @property
    def note(self) -> str:
        """A line for people."""
        return (
            "signed by this machine's own authority, which readers elsewhere do not trust" if self.local else "signed"
        )


@dataclass(frozen=True)
class Credentials:
    """A manifest as it was read. state: "trusted" (by this machine's or the operator's authority), "valid" or
    "invalid"; issuer: of the certificate; ingredients: names of what it was made from; problems: what is wrong, a line
    each."""

    state: str
    issuer: str
    ingredients: tuple[str, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        """One line."""
        made_from = f", made from {', '.join(self.ingredients)}" if self.ingredients else ""
        wrong = f" ({'; '.join(self.problems)})" if self.problems else ""
        return f"content credentials: {self.state}, signed by {self.issuer or 'nobody named'}{made_from}{wrong}"


def sign(data: bytes, file_format: str, recipe: Recipe, origins: Sequence[Origin], signer: Signer) -> bytes:
    """A picture's file with a manifest. file_format: as `encode` has it; origins: the edited picture first if the
    recipe edits one. Raises OutputError."""
    import c2pa

    edits = bool(origins) and recipe.settings.get("edits") is not False
    composite = bool(recipe.images or recipe.history)
    kind = "compositeWithTrainedAlgorithmicMedia" if composite else "trainedAlgorithmicMedia"
    version = recipe.environment.packages.get("ace-allround", "")
    agent = {"name": "ace", **({"version": version} if version else {})}
    actions = [
        {
            "action": "c2pa.edited" if edits else "c2pa.created",
            "softwareAgent": agent,
            "digitalSourceType": _SOURCE_TYPES + kind,
            "description": f"{recipe.model}: {recipe.instruction}"[:500],
        }
    ]
    told = {"label": "c2pa.actions.v2", "data": {"actions": actions}}
    manifest = {"claim_generator_info": [agent], "assertions": [told]}
    info = c2pa.C2paSignerInfo(
        alg=signer.algorithm.encode(), sign_cert=signer.chain.encode(), private_key=signer.key.encode(), ta_url=None
    )
    try:
        with c2pa.Context(c2pa.Settings.from_dict(_SETTINGS)) as context, c2pa.Builder(manifest, context) as builder:
            if edits:
                builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
            for number, origin in enumerate(origins):
                content = origin.read()
                mime = _mime_of(content)
                if mime is None:
                    continue  # a kind that carries no manifest
                relation = "parentOf" if edits and number == 0 else "inputTo"
                about = {"title": origin.name, "relationship": relation}
                builder.add_ingredient(json.dumps(about), mime, io.BytesIO(content))
            signed = io.BytesIO()
            with c2pa.Signer.from_info(info) as own:
                builder.sign(own, MIME[file_format], io.BytesIO(data), signed)
    except (c2pa.C2paError, OSError) as error:
        reason = str(error)[:200]
        raise OutputError(f"the picture cannot be signed ({reason}): check the certificate and its key") from None
    return signed.getvalue()


def check(data: bytes) -> Credentials | None:
    """The content credentials of a picture's file; None if it has none, or without the extra."""
    mime = _mime_of(data)
    if mime is None or importlib.util.find_spec("c2pa") is None:
        return None
    import c2pa

    anchors = cache_folder() / "credentials" / "authority.pem"
    settings: dict[str, Any] = dict(_SETTINGS)
    if anchors.is_file():
        settings = {**settings, "trust": {"trust_anchors": anchors.read_text(encoding="ascii")}}
    try:
        with c2pa.Context(c2pa.Settings.from_dict(settings)) as context:
            reader = c2pa.Reader.try_create(mime, io.BytesIO(data), context=context)
            if reader is None:
                return None
            with reader:
                return _read_report(json.loads(reader.json()))
    except (c2pa.C2paError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Credentials("invalid", "", (), (str(error)[:200],))


def _read_report(report: dict[str, Any]) -> Credentials:
    active = report["manifests"][report["active_manifest"]]
    state = str(report.get("validation_state", "invalid")).lower()
    failures = report.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
    problems = [str(one.get("code", "")) for one in failures]
    if state == "valid":
        problems = [one for one in problems if one != "signingCredential.untrusted"] or [
            "not by an authority known here"
        ]
    titles = [str(one.get("title", "a picture")) for one in active.get("ingredients", ())]
    issuer = str(active.get("signature_info", {}).get("issuer") or "")
    return Credentials(state, _plain(issuer), tuple(map(_plain, titles)), tuple(map(_plain, problems)))


def _plain(text: str) -> str:
    """A text of a file for one line of a terminal."""
    return "".join(c for c in text if c.isprintable())[:120]


def _mime_of(data: bytes) -> str | None:
    """What a file is, of the kinds that can carry a manifest."""
    if data.startswith(b"\x89PNG"):
        return "image/png"
    if data.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "image/tiff"
    if data[4:8] == b"ftyp":
        return "image/avif" if data[8:12] in (b"avif", b"avis") else "image/heic"
    return "image/gif" if data.startswith(b"GIF8") else None


# Certificates


def _algorithm_of(key: str) -> str:
    """C2PA's name for what a private key signs with. Raises ConfigError."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    try:
        loaded = serialization.load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError):
        raise ConfigError("the signing key cannot be read: it must be PEM, without a password") from None
    if isinstance(loaded, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(loaded, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(loaded, ec.EllipticCurvePrivateKey) and loaded.curve.name in _CURVES:
        return _CURVES[loaded.curve.name]
    raise ConfigError("the signing key is of another kind than P-256, P-384, P-521, RSA or Ed25519: use one of these")


_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


def _local_signer(folder: Path) -> Signer:
    """The authority of this machine, made where there is none yet; a leaf that ends soon is made anew."""
    from cryptography import x509

    names = [folder / name for name in ("authority.pem", "authority.key", "leaf.pem", "leaf.key")]
    try:
        if not all(path.is_file() for path in names[:2]):
            _make_authority(*names[:2])
        if not all(path.is_file() for path in names[2:]) or _ends_soon(names[2]):
            _make_leaf(*names)
        authority, _, leaf, key = (path.read_text(encoding="ascii") for path in names)
        x509.load_pem_x509_certificate(leaf.encode())
    except (OSError, ValueError):
        raise OutputError(f"the credentials in {folder} cannot be read or made: delete that folder") from None
    return Signer(leaf + authority, key, "es256", True)


def _make_authority(certificate: Path, key_file: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("ace, the local authority of one machine")
    built = _certificate(name, name, key.public_key(), key.public_key(), _YEARS["authority"])
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    built = built.add_extension(_usage(signs=False), critical=True)
    _keep(key, built, key, certificate, key_file)


def _make_leaf(authority: Path, authority_key: Path, certificate: Path, key_file: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = x509.load_pem_x509_certificate(authority.read_bytes())
    issuing = serialization.load_pem_private_key(authority_key.read_bytes(), password=None)
    key = ec.generate_private_key(ec.SECP256R1())
    built = _certificate(_name("ace"), issuer.subject, key.public_key(), issuing.public_key(), _YEARS["leaf"])
    built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    built = built.add_extension(_usage(signs=True), critical=True)
    built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    _keep(key, built, issuing, certificate, key_file)


def _name(common: str) -> Any:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = ((NameOID.ORGANIZATION_NAME, "ace, local"), (NameOID.COMMON_NAME, common))
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in parts])


def _certificate(subject: Any, issuer: Any, key: Any, issuing_key: Any, years: int) -> Any:
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * years))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuing_key), critical=False)
    )


def _usage(signs: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not signs,
        crl_sign=not signs,
        encipher_only=False,
        decipher_only=False,
    )


def _keep(key: Any, built: Any, issuing: Any, certificate: Path, key_file: Path) -> None:
    from cryptography.hazmat.primitives import hashes, serialization

    certificate.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with open(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(private)
    signed = built.sign(issuing, hashes.SHA256())
    write_atomically(certificate, signed.public_bytes(serialization.Encoding.PEM))


def _ends_soon(certificate: Path) -> bool:
    from cryptography import x509

    ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return ends - datetime.datetime.now(datetime.UTC) < datetime.timedelta(days=30)
