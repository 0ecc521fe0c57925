"""Bearer tokens: who signed them, whose they are and what they allow.

A token is a JWT with `iss`, `aud`, `exp`, `sub`, `tenant` and `roles`. It is signed by a key of the
JWKS file: HS256 by an `oct` key, RS256 and ES256 by theirs; the algorithm decides which kind of key is
asked, so that a public key is never taken for a secret. Envoy checks the same at the edge with the
same file; checking again here means that going round Envoy gains nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from joserfc import jws, jwt
from joserfc.errors import BadSignatureError, ExpiredTokenError, JoseError
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from weftd.errors import Unauthenticated

ROLES: Final = ("member", "editor", "operator")
"""Each role may do what those before it may."""

_Key = OctKey | RSAKey | ECKey

# Tenants become part of paths and keys, so they are as narrow as the contract's ids.
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")
_SUBJECT: Final = re.compile(r"[\x21-\x7e]{1,255}")
_KINDS: Final[Mapping[str, type[_Key]]] = {"HS256": OctKey, "RS256": RSAKey, "ES256": ECKey}
_SHORTEST_SECRET_BITS: Final = 256
_LONGEST_TOKEN: Final = 8192
_CLOCK_SKEW_S: Final = 60
_CACHED_TOKENS: Final = 4096
_FILE_CHECK_S: Final = 1.0

_REFUSED: Final = "The token is not valid here: {}. Get a new one and call again."

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. `expires_at` is in seconds of `time.time()`."""

    tenant: str
    subject: str
    roles: frozenset[str]
    expires_at: float


class TokenVerifier:
    """Verifies tokens; remembers the good ones by their hash, a bounded number of them.

    The file holds one key or more (ValueError where it has none that can be used, or a secret that is
    too short). It is read again when it changes; while it cannot be read, the keys known before stay.
    """

    def __init__(self, *, issuer: str, audience: str, jwks_file: Path) -> None:
        self._jwks_file = jwks_file
        self._stamp = _stamp(jwks_file)
        self._keys = _read_keys(jwks_file)
        self._checked_at = 0.0
        # The skew is for `nbf` and `iat` only: `exp` is checked to the second, see verify().
        self._registry = jwt.JWTClaimsRegistry(
            leeway=_CLOCK_SKEW_S,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            exp={"essential": True},
            sub={"essential": True},
        )
        self._known: OrderedDict[bytes, Claims] = OrderedDict()

    def verify(self, token: str) -> Claims:
        """The claims of a token that is good now; Unauthenticated for any other."""
        self._follow_file()
        digest = hashlib.sha256(token.encode()).digest()
        claims = self._known.get(digest)
        if claims is None:
            claims = self._verify(token)
            if len(self._known) >= _CACHED_TOKENS:
                self._known.popitem(last=False)
            self._known[digest] = claims
        if claims.expires_at <= time.time():
            self._known.pop(digest, None)
            raise Unauthenticated(_REFUSED.format("it has expired"))
        return claims

    def _verify(self, token: str) -> Claims:
        if len(token) > _LONGEST_TOKEN:
            raise Unauthenticated(_REFUSED.format("it is too long"))
        try:
            claims = self._decode(token)
            self._registry.validate(claims)
        except ExpiredTokenError:
            raise Unauthenticated(_REFUSED.format("it has expired")) from None
        except (JoseError, ValueError, TypeError, KeyError) as error:
            # The library's errors name what is wrong, never the token itself.
            log.info("token refused", why=type(error).__name__)
            raise Unauthenticated(_REFUSED.format("its signature or a claim is wrong")) from None
        return _claims(claims)

    def _decode(self, token: str) -> dict[str, Any]:
        keys = self._keys_for(jws.extract_compact(token.encode()).headers())
        for i, key in enumerate(keys):
            try:
                return jwt.decode(token, key, algorithms=list(_KINDS)).claims
            except BadSignatureError:
                if i == len(keys) - 1:
                    raise
        raise ValueError("no key for this token")

    def _keys_for(self, header: Mapping[str, Any]) -> Sequence[_Key]:
        """The keys that may have signed a token with this header; the algorithm tells their kind."""
        kind, name = _KINDS[header["alg"]], header.get("kid")
        return [
            key for key in self._keys if isinstance(key, kind) and (name is None or key.kid in (None, name))
        ]

    def _follow_file(self) -> None:
        if time.monotonic() - self._checked_at < _FILE_CHECK_S:
            return
        self._checked_at = time.monotonic()
        try:
            stamp = _stamp(self._jwks_file)
            if stamp == self._stamp:
                return
            self._keys = _read_keys(self._jwks_file)
        except (OSError, ValueError) as error:
            log.warning("JWKS file not read, its last keys stay", error=str(error))
            return
        self._stamp = stamp
        self._known.clear()
        log.info("JWKS file read again", keys=len(self._keys))


def mint(
    jwks_file: Path,
    *,
    issuer: str,
    audience: str,
    tenant: str,
    subject: str,
    roles: Iterable[str],
    ttl_s: float,
) -> str:
    """A token signed with the first secret of the file: for development, and for jobs that call services.

    ValueError where the file has no secret, for a role that does not exist, and for a tenant or a
    subject that would be refused.
    """
    roles = list(roles)
    if unknown := set(roles) - set(ROLES):
        raise ValueError(f"There is no role {sorted(unknown)[0]!r}; there are {', '.join(ROLES)}.")
    if not _TENANT.fullmatch(tenant):
        raise ValueError("A tenant is up to 128 of letters, digits and _ - . : @, a letter or digit first.")
    if not _SUBJECT.fullmatch(subject):
        raise ValueError("A subject is up to 255 printable ASCII characters without spaces.")
    now = time.time()
    claims = {
        "iss": issuer,
        "aud": audience,
        "sub": subject,
        "tenant": tenant,
        "roles": roles,
        "iat": int(now),
        "exp": int(now + ttl_s),
    }
    secret = next((key for key in _read_keys(jwks_file) if isinstance(key, OctKey)), None)
    if secret is None:
        raise ValueError(
            f"{jwks_file} has no secret (kty oct) to sign with: let your identity provider sign."
        )
    header = {"alg": "HS256"} if secret.kid is None else {"alg": "HS256", "kid": secret.kid}
    return jwt.encode(header, claims, secret)


def _claims(claims: Mapping[str, Any]) -> Claims:
    tenant, subject, roles = claims.get("tenant"), claims["sub"], claims.get("roles", [])
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise Unauthenticated(
            _REFUSED.format("it names no tenant, or one with other than A-Z a-z 0-9 _ - . : @")
        )
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
        raise Unauthenticated(_REFUSED.format("its subject is not up to 255 printable ASCII characters"))
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise Unauthenticated(_REFUSED.format("its roles are not a list of names"))
    return Claims(tenant, subject, frozenset(roles) & frozenset(ROLES), float(claims["exp"]))


def _read_keys(file: Path) -> list[_Key]:
    """The keys of a JWKS file; ValueError where it has none that can be used."""
    try:
        listed = KeySet.import_key_set(json.loads(file.read_bytes()))
    except (KeyError, TypeError, AttributeError, JoseError, ValueError) as error:
        raise ValueError(f"{file} is no JWKS file: {type(error).__name__}.") from None
    keys = [key for key in listed.keys if isinstance(key, _Key)]
    if not keys:
        raise ValueError(f"{file} has no oct, RSA or EC key.")
    for key in keys:
        if isinstance(key, OctKey) and len(key.raw_value) * 8 < _SHORTEST_SECRET_BITS:
            raise ValueError(f"{file} has a secret of under {_SHORTEST_SECRET_BITS} bits: make a longer one.")
    return keys


def _stamp(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
