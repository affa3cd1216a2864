"""Certificates for the egress proxy, made and read with `cryptography`. Pure but for the clock and chance; no files.

Imported when a sandbox has https egress, not before: the library takes longer to load than everything else here.
"""

from __future__ import annotations

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AUTHORITY_AGE = datetime.timedelta(days=3652)
_LEAF_AGE = datetime.timedelta(days=1)
_SKEW = datetime.timedelta(hours=1)
_RENEWAL = datetime.timedelta(days=7)


def new_authority() -> bytes:
    """Key and self-signed certificate of a new authority in one PEM; it may sign servers and nothing below them."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    serial = x509.random_serial_number()
    name = _name(f"Lockstep egress {serial:x}"[:40])
    certificate = (
        _begun(name, name, key.public_key(), serial, _AUTHORITY_AGE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(own, critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(key, certificate)


class Authority:
    """An authority read from its PEM; signs certificates that live for a day, all for one key of its own making."""

    def __init__(self, pem: bytes) -> None:
        """Raises ValueError: there is no key and certificate in it."""
        key = serialization.load_pem_private_key(pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is of another kind")
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(pem)
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())

    @property
    def certificate(self) -> bytes:
        """What the sandbox is to trust, in PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def ends_soon(self) -> bool:
        return self._certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC) + _RENEWAL

    def leaf(self, host: str) -> bytes:
        """Key and certificate in PEM for one host name or address."""
        public = self._leaf_key.public_key()
        own = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        above = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
        certificate = (
            _begun(_name("Lockstep egress"), self._certificate.subject, public, x509.random_serial_number(), _LEAF_AGE)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_subject(host)]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(above, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return _pem(self._leaf_key, certificate)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, serial: int, age: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + age)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _subject(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> bytes:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
